"""The pages of a PDF as blocks of Markdown, by pymupdf4llm's layout model.

What needs more than a page to be decided does not belong here (`pdf`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ev_platform.corpus.extracted import plain_superscripts

# A line that ends in a hyphen before one of these goes on as it is: "pre- and post-charging".
_CONJUNCTIONS = frozenset(
    ("and", "or", "und", "oder", "et", "ou", "y", "e", "o", "og", "och", "en", "of", "ve", "veya")
)
_LEADER = re.compile(r"(?:[.·…]\s?){5,}")  # from a title to its page in a table of contents


@dataclass
class Block:
    """One box of a page's layout, rendered."""

    kind: str  # the layout model's class: "text", "title", "section-header", "table", ...
    size: int  # of a heading's largest letters, in points; else 0
    top: float  # edges of the box, as shares of the page's height from above
    bottom: float
    text: str  # Markdown without heading marks; U+00AD where a word was broken at a line's end


def read_pages(path: Path, start: int, stop: int) -> list[list[Block]]:
    """Return the blocks of the pages `start` (0-based) to `stop`, exclusive, in reading order."""
    layout = layout_parser()
    import pymupdf

    pages = []
    with pymupdf.open(stream=path.read_bytes(), filetype="pdf") as document:
        parsed = layout.parse_document(document, pages=list(range(start, stop)), use_ocr=False, force_text=True)
        for page in parsed.pages:
            page.boxes = [box for box in page.boxes if _prepare(box)]
            for box in page.boxes:
                box.header_level = 0
        for page, chunk in zip(parsed.pages, parsed.to_markdown(page_chunks=True), strict=True):
            pages.append(
                [
                    Block(
                        kind=box.boxclass,
                        size=box.max_fontsize or 0,
                        top=box.y0 / page.height,
                        bottom=box.y1 / page.height,
                        text=_plain(box.boxclass, chunk["text"][slice(*place["pos"])]),
                    )
                    for box, place in zip(page.boxes, chunk["page_boxes"], strict=True)
                ]
            )
    return pages


def layout_parser() -> Any:
    """Import the layout parser, with its models set up for one process of several.

    One thread for each model: the processes are what runs side by side. And the memory arena that the parser turns off,
    to stay small in a process that lives long: without it a third of the time goes into asking for the same memory
    again. Same results; a worker does not live long. Must come before the process's first `import pymupdf`.
    """
    import onnxruntime

    class Options(onnxruntime.SessionOptions):
        enable_cpu_mem_arena = property(lambda _: True, lambda _, value: None)  # type: ignore[assignment]

        def __init__(self):
            super().__init__()
            self.intra_op_num_threads = self.inter_op_num_threads = 1

    onnxruntime.SessionOptions = Options
    from pymupdf4llm.helpers import document_layout

    return document_layout


def _prepare(box: Any) -> bool:
    """Make a layout box ready for rendering; False for one that has nothing to say."""
    if box.boxclass in ("page-header", "page-footer"):
        return False
    if box.boxclass == "table":
        box.table["markdown"] = _table(box.table["extract"] or [])
        return bool(box.table["markdown"])
    lines = [line for line in box.textlines or [] if _merge_spans(line)]
    for line, following in pairwise(lines):
        _glue_broken_word(line["spans"][-1], following["spans"][0])
    for line in lines:
        line["spans"] = [span for span in line["spans"] if span["text"].strip()]
    box.textlines = [line for line in lines if line["spans"]]
    return bool(box.textlines)


def _merge_spans(line: dict[str, Any]) -> bool:
    """Join the spans of a line that differ in nothing but weight, slant and colour; False for a blank line."""
    import pymupdf

    spans: list[dict[str, Any]] = []
    for span in line["spans"]:
        span["flags"] &= pymupdf.TEXT_FONT_MONOSPACED | pymupdf.TEXT_FONT_SUPERSCRIPT
        span["char_flags"] = 0
        last = spans[-1] if spans else None
        if last and last["flags"] == span["flags"]:
            gap = span["bbox"][0] - last["bbox"][2]
            last["text"] += (" " if gap > 0.15 * span["size"] else "") + span["text"]
            last["bbox"] = (*last["bbox"][:2], *span["bbox"][2:])
        else:
            spans.append(span)
    line["spans"] = spans
    return any(span["text"].strip() for span in spans)


def _glue_broken_word(span: dict[str, Any], following: dict[str, Any]) -> None:
    """Move the rest of a word that is broken at a line's end up to its beginning.

    The parser would drop every hyphen at a line's end: also those of "three-phase", "pre- and post-" and "61851-1".
    """
    text, rest = span["text"].rstrip(), following["text"].lstrip()
    end, begin = re.search(r"\w[-\u2010\u00ad]$", text), re.match(r"\w+", rest)
    if not end or not begin:
        return
    if begin[0].casefold() in _CONJUNCTIONS and not text.endswith("\u00ad"):
        span["text"] = text + "\u2060"  # no longer at the end, and `normalise` takes it away
        return
    soft = begin[0][0].islower() and not end[0][0].isdigit()
    span["text"] = text[:-1] + ("\u00ad" if soft else "-") + begin[0]
    tail = rest[begin.end() :]
    if punctuation := re.match(r"\S+", tail):
        span["text"], tail = span["text"] + punctuation[0], tail[punctuation.end() :]
    following["text"] = tail


def _table(rows: Sequence[Sequence[str | None]]) -> str:
    """Render a table in Markdown, without its empty rows and columns."""
    cells = [[_cell(cell or "") for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    if not cells:
        return ""
    used = [n for n in range(len(cells[0])) if any(row[n] for row in cells)]
    lines = ["|" + "|".join(row[n] for n in used) + "|" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(used), *lines[1:]])


def _cell(text: str) -> str:
    text = re.sub(r"(?<=[^\W\d_])[-\u2010\u00ad]\s*\n\s*(?=[^\W\d_])", _cell_break, text)
    return " ".join(text.split()).replace("|", r"\|")


def _cell_break(found: re.Match[str]) -> str:
    following = found.string[found.end() :]
    word = re.match(r"\w+", following)
    if word and word[0].casefold() in _CONJUNCTIONS:
        return "- "
    return "\u00ad" if following[0].islower() else "-"


def _plain(kind: str, markdown: str) -> str:
    """Drop what the parser adds and no reader needs."""
    if kind in ("picture", "formula"):
        markdown = re.sub("<!-- (?:Start|End) of picture text -->", "", markdown).replace("<br>", "\n")
    elif kind != "table" and not markdown.startswith("```"):
        markdown = plain_superscripts(markdown)
    if not markdown.startswith("```"):
        markdown = _LEADER.sub("... ", markdown)
    return markdown.strip("\n").replace("\x0c", " ")
