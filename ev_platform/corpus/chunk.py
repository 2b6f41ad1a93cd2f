"""Cutting documents into passages along their headings, measured in the student's tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from ev_platform.records import Chunk, to_frame
from ev_platform.storage import short_id
from ev_platform.tasks import CorpusConfig

CountTokens = Callable[[Sequence[str]], list[int]]

_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
# A sentence ends at . ! ? before a blank and a capital, digit or quote; abbreviations of the field do not end one.
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bNo)(?<!\bvs)(?<!\betc)(?<!\bca)[.!?][\"')\]]*\s+(?=[\"'(]?[A-Z0-9])"
)


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    headings: tuple[str, ...]
    n_tokens: int


def chunk_documents(documents: pl.DataFrame, count_tokens: CountTokens, config: CorpusConfig) -> pl.DataFrame:
    """Cut every clean document into chunks.

    A chunk never crosses a heading, except that a section shorter than `chunk_min_tokens` joins its neighbour under the
    same parent; inside a section, paragraphs, list items and table rows are packed whole, and only a paragraph that is
    too long by itself is cut: between sentences, and between words where one sentence is too long. A chunk's text is
    exactly `document.text[start:end]`.

    Args:
        documents: The `clean_documents` table.
        count_tokens: Counts tokens of many texts at once, with the student's tokenizer.
        config: Sizes.

    Returns:
        The `chunks` table, in the order of documents and spans.
    """
    rows: list[Chunk] = []
    for document in documents.iter_rows(named=True):
        text, title = document["text"], document["title"] or ""
        pieces = _pack(text, _units(text, count_tokens, config.chunk_tokens), count_tokens, config)
        for ordinal, piece in enumerate(pieces):
            body = text[piece.start : piece.end]
            offsets = document["page_offsets"]
            rows.append(
                Chunk(
                    chunk_id=short_id("chk", document["document_id"], piece.start, body),
                    document_id=document["document_id"],
                    cluster_id=document["cluster_id"],
                    ordinal=ordinal,
                    start=piece.start,
                    end=piece.end,
                    heading_path=" > ".join(_path(title, piece.headings)),
                    page=bisect_right(offsets, piece.start) if offsets else None,
                    text=body,
                    n_tokens=piece.n_tokens,
                )
            )
    return to_frame("chunks", rows)


def _path(title: str, headings: tuple[str, ...]) -> list[str]:
    """Join title and headings, leaving out a first heading that repeats the title."""
    if headings and title:
        first, whole = (" ".join(["", *re.findall(r"\w+", part.casefold()), ""]) for part in (headings[0], title))
        if first in whole or whole in first:
            title = ""
    return [part for part in (title, *headings) if part]


def _units(text: str, count_tokens: CountTokens, limit: int) -> list[_Piece]:
    """Return the smallest spans that should stay whole, each with the headings above it."""
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    headings: list[tuple[int, str]] = []
    for start, end in _blocks(text):
        match = _HEADING.match(text[start:end])
        if match:
            level = len(match[1])
            headings = [h for h in headings if h[0] < level] + [(level, match[2].replace("*", "").strip())]
        else:
            spans.append((start, end, tuple(h[1] for h in headings)))
    counts = count_tokens([text[s:e] for s, e, _ in spans])
    pieces: list[_Piece] = []
    for (start, end, path), n in zip(spans, counts, strict=True):
        if n <= limit:
            pieces.append(_Piece(start, end, path, n))
            continue
        for s, e in _sentences(text, start, end):
            pieces += _halves(text, s, e, path, count_tokens, limit)
    return pieces


def _blocks(text: str) -> list[tuple[int, int]]:
    """Return spans of headings, table rows, list items and paragraphs, in order, without the blanks between them."""
    spans: list[tuple[int, int]] = []
    at = 0
    is_open = False  # whether the last span is a paragraph or item that the next line continues
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        start, end = at + (len(line) - len(line.lstrip())), at + len(line.rstrip())
        at += len(line)
        if not bare:
            is_open = False
        elif _HEADING.match(bare) or bare.startswith("|"):
            spans.append((start, end))
            is_open = False
        elif is_open and not re.match(r"([-*+]|\d+[.)])\s", bare):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
            is_open = True
    return spans


def _sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut a span between sentences."""
    cuts = [start, *(start + m.end() for m in _SENTENCE_END.finditer(text[start:end])), end]
    return [(a, a + len(text[a:b].rstrip())) for a, b in pairwise(cuts) if text[a:b].strip()]


def _halves(
    text: str, start: int, end: int, path: tuple[str, ...], count_tokens: CountTokens, limit: int
) -> list[_Piece]:
    """Cut a span near its middle, between words where there is a blank, until every part is within the limit."""
    n = count_tokens([text[start:end]])[0]
    if n <= limit or end - start < 2:
        return [_Piece(start, end, path, n)]
    middle = (start + end) // 2
    blanks = [start + m.start() for m in re.finditer(r"(?<=\S)\s+(?=\S)", text[start:end])]
    cut = min(blanks, key=lambda at: abs(at - middle), default=middle)
    after = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    return [
        *_halves(text, start, cut, path, count_tokens, limit),
        *_halves(text, after, end, path, count_tokens, limit),
    ]


def _pack(text: str, units: list[_Piece], count_tokens: CountTokens, config: CorpusConfig) -> list[_Piece]:
    """Join neighbouring units of one section up to the limit, and a short section with the one after it."""
    packed: list[_Piece] = []
    for unit in units:
        last = packed[-1] if packed else None
        if (
            last is not None
            and last.n_tokens + unit.n_tokens <= config.chunk_tokens
            and (
                last.headings == unit.headings
                or (last.n_tokens < config.chunk_min_tokens and last.headings[:-1] == unit.headings[:-1])
            )
        ):
            # The joined span is counted as it stands: it also holds line breaks, and a heading between two sections.
            n = count_tokens([text[last.start : unit.end]])[0]
            if n <= config.chunk_tokens:
                shared = tuple(a for a, b in zip(last.headings, unit.headings, strict=False) if a == b)
                packed[-1] = _Piece(last.start, unit.end, shared, n)
                continue
        packed.append(unit)
    return packed
