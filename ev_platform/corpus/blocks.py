"""The Markdown of a document as blocks that a chunk should keep whole, and the finer parts of a block that is too long.

markdown-it-py (CommonMark and GitHub's tables) says what is a heading, a list item, a table row or code; sentencex
says where sentences end. Of the sentence splitters tried on 36 lines of charging manuals in nine languages it got 29
right, syntok and nupunkt 22 each; it knows CJK full stops and takes a megabyte in hundredths of a second. pysbd has had
no release since 2021, and spaCy needs a model for each language.

What does not belong here: how blocks are packed into chunks (`chunk`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from math import ceil
from typing import Any
from unicodedata import combining

# What it costs to begin a chunk inside a block, beside 1 for each chunk: a list is cut rather than have one chunk more,
# a table row's neighbours are parted only where they cannot stay together, and a sentence is cut last of all.
ITEM, SENTENCE, LINE, FRAGMENT = 0.3, 0.5, 2.0, 3.0
RULE = 7
# Layout analysis of PDFs and styling of pages turn whole paragraphs into headings. A heading's words are in no chunk's
# text, so what is longer than a heading can be stays text.
MAX_HEADING_CHARS = 200
# sentencex takes time in the square of the open brackets in one text: 14 s for 200,000 of them, 0.1 s for 20,000.
_MAX_SENTENCE_INPUT = 20_000

_MARKS = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+")
# What sentencex takes for the end of a sentence, though a number or a small letter follows.
_ABBREVIATION = re.compile(r"\b(?:approx|ca|ed|excl|incl|max|min|nom|resp|rev|typ|ver)\.\s*$", re.IGNORECASE)
_NUMBER = re.compile(r"\s*\d+[.)]\s*$")
# What it takes for an initial: the unit at the end of "rated at 32 A. Use".
_UNIT_END = re.compile(r"(?<=\d )[AVWJKΩ]\.\s+(?=[A-Z])")
_BREAK = re.compile(r"(?<=\S)\s+(?=\S)|(?<=[，、；：])")  # CJK clauses end at a comma


@dataclass(slots=True)
class Block:
    """A span of the document's text.

    Attributes:
        start: First character.
        end: Behind the last character.
        cut: What it costs to begin a chunk here.
        level: 1 to 6 for a heading, `RULE` for a line or an empty heading between sections, 0 for text.
        title: Of a heading.
        is_code: Whether it is cut between lines.
        parts: Finer blocks that hold the same text, where Markdown says so.
        n_tokens: Filled in by `chunk`.
    """

    start: int
    end: int
    cut: float = 0.0
    level: int = 0
    title: str = ""
    is_code: bool = False
    parts: tuple[Block, ...] = ()
    n_tokens: int = 0


def parse_blocks(text: str) -> list[Block]:
    """Return headings, rules, paragraphs, list items, table rows, quotations and code blocks in order.

    Together they hold every character of the text that is not blank. A table's header stays with its first row.
    """
    from markdown_it.tree import SyntaxTreeNode

    lines = text.split("\n")
    offsets = list(accumulate((len(line) + 1 for line in lines), initial=0))
    source = text.replace("\r", " ")  # the parser would count it as a line end
    # A fence that never closes would make the rest of the document code; its line is taken for text instead.
    for _ in range(8):
        nodes = SyntaxTreeNode(_parser().parse(source)).children
        fences = (node for node in nodes if node.type == "fence")
        open_line = next((_first(node) for node in fences if not _is_closed(node, lines)), None)
        if open_line is None:
            break
        start, end = offsets[open_line], offsets[open_line + 1] - 1
        source = source[:start] + " " * (end - start) + source[end:]
    return list(_blocks(nodes, 0, len(lines), text, offsets))


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    # Raw HTML and link definitions are text here: the one may swallow headings, the other leaves no block at all.
    return MarkdownIt("commonmark").enable("table").disable(["inline", "html_block", "reference"])


def _first(node: Any) -> int:
    return node.map[0] if node.map else 0


def _is_closed(fence: Any, lines: list[str]) -> bool:
    first, end = fence.map
    last = lines[end - 1].strip()
    return end - 1 > first and len(last) >= len(fence.markup) and not last.strip(fence.markup[0])


def _blocks(
    nodes: list[Any], first: int, end: int, text: str, offsets: list[int], is_nested: bool = False
) -> Iterator[Block]:
    """Yield the blocks of nodes that share out the lines from `first` to `end`: each reaches to the next one."""
    starts = [first, *(_first(node) for node in nodes[1:]), end]
    nodes = nodes or [None]
    for node, (a, b) in zip(nodes, pairwise(starts), strict=True):
        span = text[offsets[a] : offsets[b]]
        start, stop = offsets[a] + len(span) - len(span.lstrip()), offsets[a] + len(span.rstrip())
        if start >= stop:
            continue
        kind = node.type if node else "nothing"
        block = Block(start, stop, is_code=kind in ("fence", "code_block"))
        if kind == "hr" and not is_nested:
            yield replace(block, level=RULE)
        elif kind == "heading" and not is_nested and (title := _title(node, span)) is not None:
            yield replace(block, level=int(node.tag[1]) if title else RULE, title=title)
        elif kind in ("bullet_list", "ordered_list"):
            yield from _items(node.children, a, b, text, offsets)
        elif kind == "table":
            yield from _rows(block, text, 2)
        elif kind == "blockquote":
            yield replace(block, parts=tuple(_blocks(node.children, a, b, text, offsets, True)))
        elif kind == "paragraph" and re.search(r"^\s*\|", span, re.MULTILINE):
            yield from _rows(block, text, 0)  # a table without the line of dashes below its header
        else:
            yield block


def _items(items: list[Any], first: int, end: int, text: str, offsets: list[int]) -> Iterator[Block]:
    starts = [first, *(_first(item) for item in items[1:]), end]
    for number, (item, (a, b)) in enumerate(zip(items, pairwise(starts), strict=True)):
        parts = list(_blocks(item.children, a, b, text, offsets, True))
        if parts:
            whole = parts[0] if len(parts) == 1 else Block(parts[0].start, parts[-1].end, parts=tuple(parts))
            yield replace(whole, cut=ITEM if number else 0.0)


def _title(node: Any, span: str) -> str | None:
    """Return a heading's words, "" where it has none, or None where it is no heading after all."""
    content = node.children[0].content if node.children else ""
    # CommonMark makes a heading of a paragraph of any length above a line of dashes, and of a figure above one dash.
    is_underlined = node.markup in ("=", "-")
    if "\n" in content or len(content) > MAX_HEADING_CHARS or (is_underlined and len(span.split()[-1]) < 3):
        return None
    return " ".join(_MARKS.sub(r"\1", content).split())


def _rows(block: Block, text: str, n_header: int) -> Iterator[Block]:
    """Yield the lines of a block, the first `n_header` lines together with the one after them."""
    lines = _lines(block, text)
    if n_header and len(lines) > n_header:
        header, row = replace(block, end=lines[n_header - 1][1]), lines[n_header]
        yield Block(block.start, row[1], parts=(header, Block(*row, LINE)))
        lines = lines[n_header + 1 :]
    elif n_header:
        yield block
        return
    yield from (Block(*line, LINE if line[0] > block.start else 0.0) for line in lines)


def _lines(block: Block, text: str) -> list[tuple[int, int]]:
    at = block.start
    spans = []
    for line in text[block.start : block.end].split("\n"):
        if line.strip():
            spans.append((at + len(line) - len(line.lstrip()), at + len(line.rstrip())))
        at += len(line) + 1
    return spans


def finer(block: Block, text: str, language: str | None, limit: int) -> list[Block]:
    """Cut a block that has more than `limit` tokens one step finer.

    Args:
        block: With `n_tokens`.
        text: The document's.
        language: ISO 639-1, for the abbreviations; unknown ones get the English rules.
        limit: In tokens.

    Returns:
        Its Markdown parts, else its lines if it is code, else its sentences, else even fragments between words; only
        a word without any blank is cut inside. The block itself, if it is one character.
    """
    n_chars = block.end - block.start
    if n_chars < 2:
        return [block]
    if block.parts:
        parts = [replace(part, cut=part.cut or ITEM) for part in block.parts]
    elif block.is_code and len(spans := _lines(block, text)) > 1:
        parts = [Block(*span, LINE) for span in spans]
    elif n_chars > _MAX_SENTENCE_INPUT:
        parts = [Block(*span, FRAGMENT) for span in _fragments(block, text, ceil(2 * n_chars / _MAX_SENTENCE_INPUT))]
    elif len(spans := _sentences(block, text, language)) > 1:
        parts = [Block(*span, SENTENCE) for span in spans]
    else:
        n_parts = max(2, ceil(1.2 * block.n_tokens / limit))  # a fifth more: words differ in tokens
        parts = [Block(*span, FRAGMENT) for span in _fragments(block, text, n_parts)]
    return [replace(parts[0], cut=block.cut), *parts[1:]]


def _sentences(block: Block, text: str, language: str | None) -> list[tuple[int, int]]:
    from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue] - a compiled module

    cuts, at, last = [block.start], block.start, ""
    for piece in segment(language or "en", text[block.start : block.end]):
        if last and not (_NUMBER.match(last) or (_ABBREVIATION.search(last) and re.match(r"[\da-z]", piece))):
            cuts.append(at)
        cuts += [at + match.end() for match in _UNIT_END.finditer(piece)]
        at += len(piece)
        last = piece
    return _stripped(text, [*cuts, block.end])


def _fragments(block: Block, text: str, n_parts: int) -> list[tuple[int, int]]:
    """Cut a span into even parts at the blank next to each cut, or where there is none near, inside a word."""
    step = (block.end - block.start) / n_parts
    blanks = [block.start + match.end() for match in _BREAK.finditer(text[block.start : block.end])]
    cuts = [block.start]
    for number in range(1, n_parts):
        target = block.start + round(number * step)
        i = bisect_left(blanks, target)
        near = min(blanks[max(0, i - 1) : i + 1], key=lambda blank: abs(blank - target), default=target)
        cut = near if abs(near - target) <= step / 2 else target
        while cut == target and cut < block.end and combining(text[cut]):
            cut += 1  # an accent stays with its letter
        if cuts[-1] < cut < block.end:
            cuts.append(cut)
    return _stripped(text, [*cuts, block.end])


def _stripped(text: str, cuts: list[int]) -> list[tuple[int, int]]:
    spans = []
    for a, b in pairwise(cuts):
        span = text[a:b]
        if span.strip():
            spans.append((a + len(span) - len(span.lstrip()), a + len(span.rstrip())))
    return spans
