"""Lines that a site repeats on its pages: menus, notices and adverts that main-content extraction let through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit


def strip_boilerplate(pages: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Remove the lines that one site repeats across its pages.

    Args:
        pages: Documents of a whole corpus with `url`, `kind` and `text`; only web pages are touched.

    Returns:
        For each page, its text without those lines and the number of lines removed.
    """
    seen: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    n_pages: dict[str, int] = defaultdict(int)
    for page in pages:
        if page["kind"] == "web":
            host = urlsplit(page["url"]).netloc
            n_pages[host] += 1
            for line in {line.strip() for line in page["text"].splitlines()} - {""}:
                seen[host][line] += 1
    results = []
    for page in pages:
        host = urlsplit(page["url"]).netloc
        limit = max(3, n_pages[host] // 2)
        lines = page["text"].splitlines()
        kept = [line for line in lines if page["kind"] != "web" or seen[host].get(line.strip(), 0) < limit]
        results.append(("\n".join(kept).strip(), len(lines) - len(kept)))
    return results
