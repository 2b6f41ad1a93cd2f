"""Lines that a site repeats on its pages: menus, notices and calls to action that main-content extraction let through.

What does not belong here: finding the main content of one page (`html`), running headers and footers of a PDF (`pdf`),
and whole documents that say the same (`duplicates`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ev_platform.corpus.duplicates import similar_pairs

# A line is boilerplate where most of a site's pages have it. Around a half it is as often a fact that holds for many
# pages ("No more than 1,000 requests may be made in any hour"), and a fact that goes is lost to every answer, while a
# menu that stays costs a few tokens.
MIN_SHARE = 0.6
# On a smaller site most of the pages are two or three, and three pages on one subject do share sentences.
MIN_PAGES = 5
# A page of which more would go is no page with boilerplate: the rule has misfired, and the quality filter may judge.
MAX_REMOVED_SHARE = 0.5
# Print versions, mirrors and old versions of one page count as one page, or its whole text would look repeated.
SAME_PAGE_JACCARD = 0.8

_HEADING = re.compile(r"(#{1,6})\s")
_FENCE = re.compile(r"(`{3,}|~{3,})")
# Lines without a letter, and lines that end as only code does: extraction may lose a fence.
_NO_TEXT = re.compile(r"[\W\d_]*$|.*[{\[(,;]$")


def strip_boilerplate(pages: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Remove the lines that one site repeats across its pages.

    A site is a host, and also each folder at its root, since projects and languages often share a host. Text and list
    items are removed; table rows and code are not, for they repeat by nature ("| Parameter | Required |"). A heading
    that many pages have is their structure ("Installation") and stays, unless all that follows it was removed too.

    The order of pages does not matter, and a page changes only when a line passes the threshold.

    Args:
        pages: Documents of a whole corpus with `url`, `kind` and `text`; only web pages are touched.

    Returns:
        For each page, its text without those lines and the number of lines removed.
    """
    lines = {
        index: {_key(line) for line in page["text"].split("\n")} - {""}
        for index, page in enumerate(pages)
        if page["kind"] == "web"
    }
    sites: dict[str, list[int]] = defaultdict(list)
    for index in lines:
        for site in _sites(pages[index]["url"]):
            sites[site].append(index)
    # Near-copies are found only where they matter: counting them once can but lower a line's count.
    often = {site: _often(lines[index] for index in found) for site, found in sites.items()}
    suspects = sorted({index for site, found in sites.items() if often[site] for index in found})
    original = _originals(suspects, [pages[index]["text"] for index in suspects])

    repeated: dict[int, set[str]] = defaultdict(set)
    for site, found in sites.items():
        owners: dict[str, set[int]] = defaultdict(set)
        for index in found:
            for line in lines[index] & often[site]:
                owners[line].add(original[index])
        least = max(MIN_PAGES, MIN_SHARE * len({original.get(index, index) for index in found}))
        everywhere = {line for line, owner in owners.items() if len(owner) >= least}
        for index in found:
            repeated[index] |= everywhere
    return [_strip(page["text"], repeated[index]) for index, page in enumerate(pages)]


def _key(line: str) -> str:
    """Return a line as it is compared, or "" where it is no text."""
    key = " ".join(line.split())
    return "" if _NO_TEXT.match(key) else key


def _sites(url: str) -> list[str]:
    """Return the host, and its folder at the root if the page lies in one."""
    parts = urlsplit(url)
    folder, slash, _ = parts.path.removeprefix("/").partition("/")
    return [parts.netloc, f"{parts.netloc}/{folder}"] if slash and folder else [parts.netloc]


def _often(pages: Iterable[set[str]]) -> set[str]:
    counts = Counter(line for lines in pages for line in lines)
    return {line for line, n_pages in counts.items() if n_pages >= MIN_PAGES}


def _originals(indices: list[int], texts: list[str]) -> dict[int, int]:
    """Return for each page the first of the pages that say nearly the same, directly or by way of others."""
    first = list(range(len(texts)))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = index = first[first[index]]
        return index

    for a, b, _ in similar_pairs(texts, SAME_PAGE_JACCARD) if texts else []:
        low, high = sorted((root(a), root(b)))
        first[high] = low
    return {index: indices[root(number)] for number, index in enumerate(indices)}


def _strip(text: str, repeated: set[str]) -> tuple[str, int]:
    if not repeated:
        return text, 0
    lines = text.split("\n")
    is_gone = [False] * len(lines)
    fence = ""
    for number, line in enumerate(lines):
        bare = line.strip()
        mark = _FENCE.match(bare)
        if fence:
            if mark and mark[1].startswith(fence) and mark[1] == bare:
                fence = ""
        elif mark:
            fence = mark[1]
        elif not bare.startswith("|") and not _HEADING.match(bare):
            is_gone[number] = _key(line) in repeated
    _mark_headings(lines, is_gone, repeated)

    n_chars = sum(len(line.strip()) for line in lines)
    n_gone = sum(len(line.strip()) for line, gone in zip(lines, is_gone, strict=True) if gone)
    if not n_gone or n_gone > MAX_REMOVED_SHARE * n_chars:
        return text, 0
    kept = "\n".join(line for line, gone in zip(lines, is_gone, strict=True) if not gone)
    return re.sub(r"\n{3,}", "\n\n", kept).strip(), sum(is_gone)


def _mark_headings(lines: list[str], is_gone: list[bool], repeated: set[str]) -> None:
    """Mark the repeated headings below which there was text and all of it goes, sub-headings included."""
    # From the end: for each level, whether anything below a heading stays, and whether anything goes.
    stays, goes = [False] * 7, [False] * 7
    for number in range(len(lines) - 1, -1, -1):
        bare = lines[number].strip()
        found = _HEADING.match(bare)
        if found and _key(bare) in repeated:
            level = len(found[1])
            is_gone[number] = goes[level] and not stays[level]
        elif found:
            level = len(found[1])
        else:
            level = 6
        if bare:
            for above in range(1, 7):
                if found and above >= level:
                    stays[above] = goes[above] = False
                elif is_gone[number]:
                    goes[above] = True
                else:
                    stays[above] = True
