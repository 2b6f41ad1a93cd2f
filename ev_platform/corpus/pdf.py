"""Text, headings, tables and properties of a PDF, by pymupdf4llm's layout model.

A PDF is read in three steps, so that a long one can use several processes: `open_pdf` once, `read_pages` for each range
of pages, `join_pages` once. What one page alone cannot tell (heading levels, running headers, whether a word broken at
a line's end has a hyphen of its own) is decided in the last step, so the ranges do not show in the result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ev_platform.corpus.extracted import Extracted, UnusableError, licence_id, normalise
from ev_platform.corpus.pdf_pages import Block, layout_parser

# A file with less text than this is a picture of text: nothing can be learned from it without OCR.
MIN_CHARS_PER_PDF = 20
# Ranges this short keep two processes busy to the end of a medium PDF; opening the file again costs some milliseconds.
PAGES_PER_CALL = 8
# Running headers and footers stand in the outer eighth of a page, and on half of its pages (or of its left or right
# ones), three at least.
EDGE = 0.125
MIN_RUNNING_PAGES = 3
_NO_TITLE = re.compile(
    r"microsoft \w+ ?- .*|.*\.(?:docx?|odt|rtf|pptx?|xlsx?|pdf|indd|pub|qxd|tex|dvi|ps|txt|md|html?|pages|key|ai|cdr)"
    r"|untitled.*|(?:document|dokument|slide|presentation|title|book)\s?\d*|powerpoint presentation|\W*|.",
    re.IGNORECASE | re.DOTALL,
)
_NAMESPACES = {
    "cc": "http://creativecommons.org/ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "rights": "http://ns.adobe.com/xap/1.0/rights/",
}
_WORD = re.compile(r"[^\W\d_]{2,}")
# Where an XMP packet (ISO 16684-1) says what; for a licence the most binding first: its address, then words on rights.
_XMP = (
    ("title", "//dc:title//*[not(*)]"),
    ("author", "//dc:creator//*[not(*)]"),
    ("licence", "//cc:license/@rdf:resource"),
    ("licence", "//cc:license"),
    ("licence", "//@cc:license"),
    ("licence", "//rights:WebStatement"),
    ("licence", "//@rights:WebStatement"),
    ("licence", "//rights:UsageTerms//*[not(*)]"),
    ("licence", "//dc:rights//*[not(*)]"),
)


@dataclass(frozen=True)
class PdfFacts:
    """What a PDF says about itself."""

    n_pages: int
    title: str | None
    author: str | None
    published_on: str | None
    modified_on: str | None
    licence: str | None
    language: str | None


def open_pdf(path: Path, max_pages: int) -> PdfFacts:
    """Check that a file is a PDF with text, and return its properties.

    Raises:
        UnusableError: With the reason `broken_pdf`, `encrypted_pdf`, `truncated_pdf`, `too_many_pages` or
            `image_only_pdf`.
    """
    layout_parser()  # before pymupdf, which loads the models as they are set up then
    import pymupdf

    pymupdf.TOOLS.mupdf_display_errors(False)
    pymupdf.TOOLS.mupdf_display_warnings(False)
    data = path.read_bytes()
    try:
        document = pymupdf.open(stream=data, filetype="pdf")
        n_pages = 0 if document.needs_pass else document.page_count
    except MemoryError:
        raise
    except Exception as error:  # the library raises many types for a broken file
        raise UnusableError("broken_pdf", str(error)[:300]) from None
    with document:
        if document.needs_pass:
            raise UnusableError("encrypted_pdf", "a password is needed to open it")
        if not document.is_pdf:
            kind = (document.metadata or {}).get("format")
            raise UnusableError("broken_pdf", f"the file is {kind}, not PDF")
        # ISO 32000-1, 7.5.5: the last line is %%EOF. Where it is missing, pymupdf repairs what it finds, and the
        # pages whose bytes did not come are silently empty.
        if document.is_repaired and b"%%EOF" not in data[-1024:]:
            raise UnusableError("truncated_pdf", f"{len(data)} bytes without the end mark")
        if n_pages == 0:
            raise UnusableError("broken_pdf", "the file opens but has no pages")
        if n_pages > max_pages:
            raise UnusableError("too_many_pages", f"{n_pages} pages, {max_pages} are allowed")
        n_chars = 0
        for page in document:
            n_chars += len(str(page.get_text()).strip())
            if n_chars >= MIN_CHARS_PER_PDF:
                break
        else:
            raise UnusableError("image_only_pdf", f"{n_chars} characters on {n_pages} pages")
        meta, xmp = document.metadata or {}, _xmp(document.get_xml_metadata())
        return PdfFacts(
            n_pages,
            title=_title(meta.get("title")) or _title(xmp.get("title")),
            author=_clean(meta.get("author")) or xmp.get("author"),
            published_on=_pdf_date(meta.get("creationDate")),
            modified_on=_pdf_date(meta.get("modDate")),
            licence=licence_id(xmp.get("licence")),
            language=(document.language or "")[:2].lower() or None,
        )


def join_pages(facts: PdfFacts, pages: Sequence[Sequence[Block]]) -> Extracted:
    """Return a document's text from the blocks of all its pages.

    Raises:
        UnusableError: With the reason `no_text` where the layout model found none.
    """
    running = _running_lines(pages)
    pages = [[b for b in page if not (_at_edge(b) and _key(b.text) in running)] for page in pages]
    levels = {size: min(n, 6) for n, size in enumerate(sorted({b.size for p in pages for b in p if b.size})[::-1], 1)}
    broken = "\x0c".join("\n\n".join(_marked(block, levels) for block in page) for page in pages)
    texts = [normalise(text) for text in mend_words(broken).split("\x0c")]
    if not any(texts):
        raise UnusableError("no_text", "the layout parser found no text")
    offsets, at = [], 0
    for text in texts:
        offsets.append(at)
        at += len(text) + 2
    return Extracted(
        text="\n\n".join(texts),
        page_offsets=offsets,
        title=facts.title or _first_heading(texts),
        author=facts.author,
        published_on=facts.published_on,
        modified_on=facts.modified_on,
        licence=facts.licence,
        language_declared=facts.language,
    )


def mend_words(text: str) -> str:
    """Join the words that were broken at a line's end, where U+00AD stands for the break.

    A word keeps the hyphen if its hyphenated form stands elsewhere in the text, more often than the joined one; where
    neither does, if both halves are words of the text by themselves ("three-phase", but "installation").
    """
    words = Counter(re.findall(r"\w+(?:-\w+)*", text.casefold()))

    def mend(found: re.Match[str]) -> str:
        left, right = found[1].casefold(), found[2].casefold()
        joined, hyphenated = words[left.rpartition("-")[2] + right] + words[left + right], words[f"{left}-{right}"]
        compound = min(len(left), len(right)) > 2 and words[left.rpartition("-")[2]] > 1 and words[right] > 1
        keep = hyphenated > joined or (hyphenated == joined == 0 and compound)
        return f"{found[1]}-{found[2]}" if keep else found[1] + found[2]

    return re.sub(r"(?<![\w-])(\w[\w-]{0,80})\u00ad(\w+)", mend, text)


def _marked(block: Block, levels: dict[int, int]) -> str:
    text = block.text
    return f"{'#' * levels[block.size]} {text.strip()}" if block.size and text.strip() else text


def _running_lines(pages: Sequence[Sequence[Block]]) -> set[str]:
    """Return the lines, digits aside, that stand at the edge of many pages: headers, footers, page numbers."""
    keys = [{_key(b.text) for b in page if _at_edge(b)} for page in pages if page]
    running: set[str] = set()
    for side in (keys, keys[::2], keys[1::2]):
        counts = Counter(key for page in side for key in page)
        running |= {key for key, n in counts.items() if n >= max(MIN_RUNNING_PAGES, len(side) / 2)}
    return running - {""}


def _at_edge(block: Block) -> bool:
    return block.bottom <= EDGE or block.top >= 1 - EDGE


def _key(text: str) -> str:
    return " ".join(re.sub(r"\d+", "0", text.casefold()).split())


def _first_heading(texts: Sequence[str]) -> str | None:
    """Return the largest heading of the first pages, one of two words at least: no date, number or "Contents"."""
    opening = "\n".join([text for text in texts if text][:3])
    headings = [h for h in re.findall(r"^(#+) (.+)$", opening, re.MULTILINE) if len(_WORD.findall(h[1])) > 1]
    return _clean(min(headings, key=lambda heading: len(heading[0]))[1]) if headings else None


def _title(value: str | None) -> str | None:
    title = _clean(value)
    return None if title is None or _NO_TITLE.fullmatch(title) else title


def _clean(value: str | None) -> str | None:
    return " ".join(normalise(value or "").split())[:300] or None


def _pdf_date(value: str | None) -> str | None:
    # ISO 32000-1, 7.9.4: D:YYYYMMDDHHmmSS
    found = re.match(r"D?:?(\d{4})(\d{2})(\d{2})", value or "")
    try:
        return date(*map(int, found.groups())).isoformat() if found else None
    except ValueError:
        return None


def _xmp(packet: str) -> dict[str, str]:
    """Return title, author and licence of an XMP packet, as far as it names them."""
    from lxml import etree  # type: ignore[attr-defined]

    try:
        tree = etree.fromstring(packet.strip().encode(), etree.XMLParser(resolve_entities=False, no_network=True))
    except (etree.XMLSyntaxError, ValueError):
        return {}
    found: dict[str, str] = {}
    for name, path in _XMP:
        text = " ".join(tree.xpath(f"string({path})", namespaces=_NAMESPACES).split())
        if text and name not in found:
            found[name] = text
    return found
