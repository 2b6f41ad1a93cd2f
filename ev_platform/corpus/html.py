"""Main text of a web page, by trafilatura, and what the page declares about itself.

How pages are fetched does not belong here (`collect`), nor what is done with lines that a site repeats (`boilerplate`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any
from urllib.parse import urljoin, urlsplit

from ev_platform.collect.bodies import decode_page
from ev_platform.corpus.extracted import Extracted, UnusableError, licence_id, normalise, plain_superscripts

# trafilatura looks for an article. Where it takes less than half of a page's visible text, its wider setting is tried
# too, and believed if it finds a quarter more: home pages and product pages made of many small boxes.
MIN_VISIBLE_SHARE = 0.5
MIN_RECALL_GAIN = 1.25
# A page with scripts and less visible text than this waits for them to write it; nothing so short would be kept.
MAX_SHELL_CHARS = 200
# Declarations of a date in the head of a page, the most exact vocabulary first.
_PUBLISHED = (
    "article:published_time",
    "datePublished",
    "dcterms.created",
    "dc.date.issued",
    "citation_date",
    "dc.date",
    "date",
)
_MODIFIED = ("article:modified_time", "dateModified", "og:updated_time", "dcterms.modified", "last-modified")
_EMPTY_LINE = "\u2424"  # stands for one inside code until trafilatura is through
_LIST_ITEM = re.compile(r" *(?:[-*]|\d+\.) ")
_SPACE = re.compile(r"\s+")


def read_html(data: bytes, url: str, charset: str | None = None) -> Extracted:
    """Return the main text of a page as Markdown, and its metadata.

    Args:
        data: The page's bytes.
        url: Where they came from, after redirects.
        charset: As the Content-Type header declares.

    Raises:
        UnusableError: With the reason `not_html` or `no_text`.
    """
    import trafilatura
    from trafilatura.utils import load_html

    tree = load_html(_decode(data, charset))
    if tree is None:
        raise UnusableError("not_html", "no HTML tree could be built")
    linked = list(_linked_data(tree))
    meta = trafilatura.extract_metadata(tree, default_url=url, extensive=False)
    got = Extracted(
        title=meta.title,
        author=meta.author,
        # trafilatura falls back to the host name, which is no declaration.
        publisher=meta.sitename if meta.sitename and meta.sitename not in (meta.url or url) else None,
        # Not trafilatura's: it takes the date of a change, or any in the text, where none is declared.
        published_on=_date(tree, linked, _PUBLISHED) or _only_article_date(tree),
        modified_on=_date(tree, linked, _MODIFIED),
        licence=_licence(tree, linked) or licence_id(meta.license),
        language_declared=_language(tree),
        canonical=_canonical(_attributes(tree, "//link[@rel='canonical']/@href"), url),
    )
    _prepare(tree)
    got.text = _main_text(tree, url)
    return got


def _decode(data: bytes, charset: str | None) -> str:
    """Return a page's characters: UTF-8 where the bytes are that, whatever is declared; else as declared."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = decode_page(data, charset)
    return text.replace("\x00", "")


def _main_text(tree: Any, url: str) -> str:
    import trafilatura

    def extract(recall: bool) -> str:
        markdown = trafilatura.extract(
            tree,
            url=url,
            output_format="markdown",
            include_tables=True,
            include_comments=False,
            include_formatting=True,
            favor_recall=recall,
        )
        return normalise(_tidy(markdown or ""))

    n_visible = len(trafilatura.html2txt(tree))
    n_scripts = int(tree.xpath("count(//script[@src]) + count(//script[string-length() > 5000])"))
    text = "" if n_scripts and n_visible < MAX_SHELL_CHARS else extract(recall=False)
    if text and len(text) < MIN_VISIBLE_SHARE * n_visible:
        wider = extract(recall=True)
        text = wider if len(wider) > MIN_RECALL_GAIN * len(text) else text
    if not text:
        found = f"no main text, {n_visible} visible characters"
        hint = f" and {n_scripts} scripts: where they write the page, set fetcher: browser" if n_scripts else ""
        raise UnusableError("no_text", found + hint)
    return text


def _prepare(tree: Any) -> None:
    """Put into the tree what the Markdown should show: line breaks mean nothing except in code, captions are text."""
    for pre in list(tree.iter("pre")):
        for line_break in pre.iter("br"):
            line_break.tail = "\n" + (line_break.tail or "")
        code = pre.text_content().strip("\n")
        for child in list(pre):
            pre.remove(child)
        # Without `code` inside it would come out as running text; an empty line would vanish.
        pre.text = None
        pre.append(pre.makeelement("code"))
        pre[0].text = re.sub(r"\n(?=\n)", f"\n{_EMPTY_LINE}", code)
    kept = {"pre", "code", "textarea", "script", "style"}
    for element in tree.iter():
        if element.tag not in kept and element.text:
            element.text = _SPACE.sub(" ", element.text)
        if element.tail:
            element.tail = _SPACE.sub(" ", element.tail)
    # trafilatura takes a caption for the table's header row.
    for caption in list(tree.iter("caption")):
        table = caption.getparent()
        if table is not None and table.tag == "table" and table.getparent() is not None:
            tail, caption.tail, caption.tag = caption.tail, None, "p"
            table.addprevious(caption)
            table.text = (table.text or "") + (tail or "")


def _tidy(markdown: str) -> str:
    """Give every table one rule, below its first row, and let headings stand at the left."""
    lines: list[str] = []
    in_code = False
    # A code block that follows a line without an element between comes out glued to it.
    for line in re.sub(r"(?m)^(?!```)(.*[^\s`]`?)```$", r"\1\n```", markdown).splitlines():
        bare = line.strip(" ")
        if bare.startswith("```"):
            in_code = not in_code
            lines += ["", bare] if in_code else [bare, ""]
        elif in_code:
            lines.append("" if line == _EMPTY_LINE else line)
        elif not bare.startswith("|"):
            lines.append(_plain(line if _LIST_ITEM.match(line) else bare))
        elif not re.fullmatch(r"\|(?: *:?-+:? *\|)+", bare):
            is_first = not (lines and lines[-1].startswith("|"))
            lines.append(_plain(bare))
            if is_first:
                lines.append("|" + "---|" * max(len(re.findall(r"(?<!\\)\|", bare)) - 1, 1))
    return "\n".join(lines)


def _plain(line: str) -> str:
    # trafilatura escapes every underscore, which are many in names of settings and which nobody reads as emphasis.
    return plain_superscripts(line.replace("\\_", "_"))


def _linked_data(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the things that a page describes in JSON-LD, one level deep."""
    for script in tree.xpath("//script[@type='application/ld+json']"):
        try:
            found = json.loads(script.text or "", strict=False)
        except (ValueError, RecursionError):
            continue
        for thing in found if isinstance(found, list) else [found]:
            if isinstance(thing, dict):
                graph = thing.get("@graph")
                yield from (t for t in [thing, *(graph if isinstance(graph, list) else [])] if isinstance(t, dict))


def _attributes(tree: Any, path: str, **variables: str) -> list[str]:
    return [str(value).strip() for value in tree.xpath(path, **variables) if str(value).strip()]


def _meta(tree: Any, name: str) -> list[str]:
    lower = "translate({}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')"
    tests = " or ".join(f"{lower.format(at)} = $name" for at in ("@property", "@name", "@itemprop", "@http-equiv"))
    return _attributes(tree, f"//meta[{tests}]/@content", name=name.lower())


def _date(tree: Any, linked: Iterable[dict[str, Any]], names: Iterable[str]) -> str | None:
    """Return the first declared date that is one, as YYYY-MM-DD."""
    for name in names:
        declared = [*_meta(tree, name), *(str(thing[name]) for thing in linked if name in thing)]
        declared += _attributes(tree, "//time[@itemprop = $name]/@datetime", name=name)
        if found := next(filter(None, map(_iso_date, declared)), None):
            return found
    return None


def _only_article_date(tree: Any) -> str | None:
    times = _attributes(tree, "//article//time/@datetime") if tree.xpath("count(//article)") == 1 else []
    return _iso_date(times[0]) if times else None


def _iso_date(value: str) -> str | None:
    try:
        return date.fromisoformat(value[:10]).isoformat()
    except ValueError:
        return None


def _licence(tree: Any, linked: Iterable[dict[str, Any]]) -> str | None:
    rel = "contains(concat(' ', normalize-space(@rel), ' '), ' license ')"
    declared = _attributes(tree, f"//link[{rel}]/@href | //a[{rel}]/@href")
    for thing in linked:
        licence = thing.get("license")
        licence = licence.get("url") or licence.get("@id") if isinstance(licence, dict) else licence
        declared += [licence] if isinstance(licence, str) else []
    declared += _meta(tree, "dcterms.license") + _meta(tree, "license")
    return licence_id(next(iter(declared), None))


def _language(tree: Any) -> str | None:
    declared = [*_attributes(tree, "/html/@lang"), *_meta(tree, "content-language"), *_meta(tree, "og:locale")]
    for value in declared:
        if found := re.match(r"[a-z]{2}(?=$|[-_,;\s])", value.lower()):
            return found[0]
    return None


def _canonical(hrefs: list[str], url: str) -> str | None:
    # A canonical link to another site is advertising at best; only the page's own host may rename it.
    try:
        target = urljoin(url, hrefs[0]) if hrefs else ""
        return target if target and urlsplit(target).netloc == urlsplit(url).netloc else None
    except ValueError:  # no address at all
        return None
