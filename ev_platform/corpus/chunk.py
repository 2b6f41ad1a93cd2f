"""Cutting documents into passages along their headings, measured in the student's tokens.

What does not belong here: what Markdown and sentences are (`blocks`), which documents are worth cutting (`clean`) and
which tokenizer counts (`training.tokens`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import inf
from typing import Any

import polars as pl

from ev_platform.corpus.blocks import RULE, Block, finer, parse_blocks
from ev_platform.identity import short_id
from ev_platform.records import Chunk, to_frame
from ev_platform.tasks.config import CorpusConfig

CountTokens = Callable[[Sequence[str]], list[int]]

# Tokens are counted for so many documents at once: few calls of the tokenizer, and memory that does not grow.
_BATCH = 256
# What it costs to part "Proceed as follows:" from what follows; one chunk costs 1 (see `blocks`).
_INTRODUCTION = 1.0

# The headings above a span, as their numbers in the document: two sections may bear the same name.
_Path = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    path: _Path  # of the headings above it
    parent: _Path  # the section that it lies in, whose other pieces it may join
    n_tokens: int  # an estimate: blocks and gaps are counted apart
    n_gap: int  # tokens between it and the next piece
    n_blocks: int


class _Document:
    """A document on its way into chunks."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.text: str = row["text"]
        self.titles: list[str] = []
        self.units: list[tuple[_Path, Block]] = []  # what is packed
        self.pieces: list[_Piece] = []
        self.n_tokens: list[int] = []  # of the pieces' texts as they stand
        self._read_sections([block for block in parse_blocks(self.text) if block.level != RULE])

    def _read_sections(self, blocks: list[Block]) -> None:
        stack: list[tuple[int, int]] = []  # level and number of the headings above
        bare: list[Block] = []  # headings without text of one parent, in a row
        for block, following in zip(blocks, [*blocks[1:], Block(0, 0, level=1)], strict=False):
            if not block.level:
                self.units.append((tuple(number for _, number in stack), block))
                continue
            stack = [(level, number) for level, number in stack if level < block.level]
            # Cards and price lists of the web are headings alone: two or more in a row are text of the section above.
            bare = bare if bare and bare[-1].level == block.level else []
            if 0 < following.level <= block.level:
                bare.append(block)
                if len(bare) > 1:
                    if len(bare) > 2:
                        self.units.pop()
                    whole = Block(bare[0].start, block.end)
                    self.units.append((tuple(number for _, number in stack), whole))
            else:
                bare = []
            stack.append((block.level, len(self.titles)))
            self.titles.append(block.title)

    def pack(self, gaps: dict[str, int], limit: int, least: int) -> None:
        """Pack the units into pieces of at most `limit` tokens, as far as estimates tell."""
        n_gaps = [gaps[gap] for gap in self.gaps()]
        pieces: list[_Piece] = []
        for path, group in groupby(enumerate(self.units), key=lambda unit: unit[1][0]):
            numbers = [number for number, _ in group]
            blocks = [self.units[number][1] for number in numbers]
            inner = n_gaps[numbers[0] : numbers[-1] + 1]
            for first, last, n_tokens in _breaks(blocks, inner, self.text, limit):
                start, end = blocks[first].start, blocks[last].end
                pieces.append(_Piece(start, end, path, path[:-1], n_tokens, inner[last], last + 1 - first))
        self.pieces = _join(pieces, limit, least)

    def gaps(self) -> list[str]:
        """Return what stands behind each unit: blanks, and headings between sections."""
        ends = [*(block.start for _, block in self.units[1:]), self.units[-1][1].end] if self.units else []
        return [self.text[block.end : end] for (_, block), end in zip(self.units, ends, strict=True)]

    def texts(self) -> list[str]:
        return [self.text[piece.start : piece.end] for piece in self.pieces]

    def chunks(self) -> Iterable[Chunk]:
        row = self.row
        for ordinal, (piece, body, n_tokens) in enumerate(zip(self.pieces, self.texts(), self.n_tokens, strict=True)):
            yield Chunk(
                chunk_id=short_id("chk", row["document_id"], piece.start, body),
                document_id=row["document_id"],
                cluster_id=row["cluster_id"],
                ordinal=ordinal,
                start=piece.start,
                end=piece.end,
                heading_path=" > ".join(_names(row["title"] or "", [self.titles[number] for number in piece.path])),
                page=bisect_right(row["page_offsets"], piece.start) if row["page_offsets"] else None,
                text=body,
                n_tokens=n_tokens,
            )


def chunk_documents(documents: pl.DataFrame, count_tokens: CountTokens, config: CorpusConfig) -> pl.DataFrame:
    """Cut every clean document into chunks.

    A chunk's text is exactly `document.text[start:end]`, and every word of the document that is not in a heading is in
    exactly one chunk. Headings are in the `heading_path`; headings in a row without any text are text themselves.

    A chunk never crosses a heading, except that a piece shorter than `chunk_min_tokens` joins the shorter of its
    neighbours under the same parent, where both fit into one chunk; so a change in one section leaves the chunks of
    distant sections as they are. Inside a section paragraphs, list items, table rows and code blocks are packed whole
    into as few chunks as hold them, of even length rather than full ones with a scrap behind them, and cut where it
    hurts least: between blocks, then between list items, and inside a table or code only if it does not fit into one
    chunk. A block that is too long by itself is cut at its next finer parts, sentences before words.

    A table in several chunks has its header in the first only: to repeat it would break the exact span, by which
    answers are followed back to the page. A chunk of a PDF that reaches over a page break bears the page where it
    begins.

    Args:
        documents: The `clean_documents` table.
        count_tokens: Counts tokens of many texts at once, with the student's tokenizer; called a few times for every
            256 documents.
        config: Sizes. Only a single character may be longer than `chunk_tokens`.

    Returns:
        The `chunks` table, in the order of documents and spans.
    """
    chunks: list[Chunk] = []
    for batch in documents.iter_slices(_BATCH):
        work = [_Document(row) for row in batch.iter_rows(named=True)]
        _cut_long_units(work, count_tokens, config.chunk_tokens)
        gaps = list({gap: None for document in work for gap in document.gaps()})
        _pack(work, dict(zip(gaps, count_tokens(gaps), strict=True)), count_tokens, config)
        chunks += [chunk for document in work for chunk in document.chunks()]
    return to_frame("chunks", chunks)


def _cut_long_units(work: list[_Document], count_tokens: CountTokens, limit: int) -> None:
    """Count the tokens of all units and replace those over the limit by finer ones, until all fit."""
    fresh = [(document, block) for document in work for _, block in document.units]
    while fresh:
        counts = count_tokens([document.text[block.start : block.end] for document, block in fresh])
        for (_, block), n_tokens in zip(fresh, counts, strict=True):
            block.n_tokens = n_tokens
        fresh = []
        for document in work:
            units = []
            for path, block in document.units:
                if block.n_tokens <= limit or block.end - block.start < 2:
                    units.append((path, block))
                else:
                    parts = finer(block, document.text, document.row["language"], limit)
                    units += [(path, part) for part in parts]
                    fresh += [(document, part) for part in parts]
            document.units = units


def _pack(work: list[_Document], gaps: dict[str, int], count_tokens: CountTokens, config: CorpusConfig) -> None:
    """Pack all documents; where pieces prove longer than their blocks and gaps counted apart, pack again tighter."""
    todo = [(document, config.chunk_tokens) for document in work]
    while todo:
        for document, limit in todo:
            document.pack(gaps, limit, config.chunk_min_tokens)
        counts = iter(count_tokens([text for document, _ in todo for text in document.texts()]))
        again = []
        for document, limit in todo:
            document.n_tokens = [next(counts) for _ in document.pieces]
            # A piece of one block was counted exactly: it is not longer than the limit, or cannot be cut.
            joined = zip(document.pieces, document.n_tokens, strict=True)
            excess = max((n - config.chunk_tokens for piece, n in joined if piece.n_blocks > 1), default=0)
            if excess > 0 and limit > 1:
                again.append((document, max(1, limit - excess)))
        todo = again


def _breaks(blocks: list[Block], gaps: list[int], text: str, limit: int) -> list[tuple[int, int, int]]:
    """Return (first block, last block, tokens) of the pieces of one section that cost least in all.

    A piece costs 1, the square of the share of the limit that it leaves empty (so that lengths are even), and what it
    costs to begin at its first block. This is the optimal line breaking of Knuth and Plass (1981), for passages.
    """
    best: list[tuple[int, int]] = []  # for each last block, the first block and the tokens of the cheapest last piece
    total = [0.0]  # cost of the blocks before each
    begin = [0.0]  # cost of beginning a piece at each
    for before, block in pairwise(blocks):
        begin.append(block.cut + (_INTRODUCTION if text[before.end - 1] in ":：" else 0.0))
    for last in range(len(blocks)):
        cheapest = inf
        choice = (last, 0)
        n_tokens = -gaps[last]
        for first in range(last, max(-1, last - limit), -1):  # no block has less than one token
            n_tokens += blocks[first].n_tokens + gaps[first]
            if n_tokens > limit and first < last:
                break
            empty = max(0.0, 1 - n_tokens / limit)
            cost = total[first] + begin[first] + 1 + empty * empty
            if cost < cheapest:
                cheapest, choice = cost, (first, n_tokens)
        best.append(choice)
        total.append(cheapest)
    pieces = []
    end = len(blocks)
    while end:
        first, n_tokens = best[end - 1]
        pieces.append((first, end - 1, n_tokens))
        end = first
    return pieces[::-1]


def _join(pieces: list[_Piece], limit: int, least: int) -> list[_Piece]:
    """Join each piece shorter than `least` with the shorter neighbour of the same parent, where both fit."""
    joined: list[_Piece] = []
    rest = pieces[::-1]
    while rest:
        piece = rest.pop()
        options = []
        if piece.n_tokens < least:
            if rest and (whole := _joined(piece, rest[-1], limit)):
                options.append((rest[-1].n_tokens, rest, whole))
            if joined and (whole := _joined(joined[-1], piece, limit)):
                options.append((joined[-1].n_tokens, joined, whole))
        if options:
            _, neighbours, whole = min(options, key=lambda option: option[0])  # the next one, if they are equal
            neighbours.pop()
            rest.append(whole)
        else:
            joined.append(piece)
    return joined


def _joined(a: _Piece, b: _Piece, limit: int) -> _Piece | None:
    """Return two neighbours as one, if they may be: of one parent, or one the parent's own text and the other below."""
    n_tokens = a.n_tokens + a.n_gap + b.n_tokens
    if n_tokens > limit or not (a.parent == b.parent or a.path == b.parent or a.parent == b.path):
        return None
    shared = tuple(x for x, y in zip(a.path, b.path, strict=False) if x == y)
    parent = a.parent if a.path == b.path else shared
    return _Piece(a.start, b.end, shared, parent, n_tokens, b.n_gap, a.n_blocks + b.n_blocks)


def _names(title: str, headings: list[str]) -> list[str]:
    """Join title and headings, leaving out a first heading that repeats the title."""
    if headings and title:
        first, whole = (" ".join(["", *re.findall(r"\w+", part.casefold()), ""]) for part in (headings[0], title))
        if first in whole or whole in first:
            title = ""
    return [part for part in (title, *headings) if part]
