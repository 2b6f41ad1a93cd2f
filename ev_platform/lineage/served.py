"""The log of requests and feedback without the words of what was taken down, while servers go on writing it.

A journal is changed in its place, line by line and byte for byte as long: the process that appends to it, and the one
that rolls it, notice nothing. What does not belong here: which words are meant (`takedown`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.lineage.dependants import MASK
from ev_platform.lineage.quotes import Quotes
from ev_platform.records import SERVED
from ev_platform.serving.segments import Segments

_WORDS_SERVED = ("question", "answer", "correction", "comment")
_HASHES_SERVED = ("question_hash", "answer_hash")


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Return a frame as a Parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def mask_served(root: Path, chunks: set[str], quotes: Quotes, count: Callable[..., None], *, apply: bool) -> None:
    """Mask the requests that cite or quote what is taken down, and what was said of their answers.

    Args:
        root: Data folder.
        chunks: Whose citation counts.
        quotes: Words of what is taken down.
        count: Called with task, table and `n_masked`.
        apply: Whether it is done; else it is only counted.

    Raises:
        UserError: If a server is compacting the log just now.
    """
    asked: set[tuple[str, str]] = set()  # what was said of a masked request is masked as well
    for table in SERVED:
        segments = Segments(root, table)
        with segments.upkeep() as is_mine:
            if not is_mine and apply:
                raise UserError(
                    "A server is putting the log of requests in order just now: run the same command again in a minute."
                )
            # Journals first: one that is rolled meanwhile is rolled without the words.
            for journal in segments.journals():
                replace_lines(
                    journal, lambda line, t=table: _masked_line(line, t, chunks, asked, quotes, count), apply=apply
                )
            for day in segments.days():
                for file in segments.parquet(day):
                    frame = pl.read_parquet(file, hive_partitioning=False)
                    meant = pl.Series(
                        [_is_meant(row, chunks, asked, quotes) for row in frame.iter_rows(named=True)], dtype=pl.Boolean
                    )
                    if meant.any():
                        for (task,), rows in frame.filter(meant).group_by("task"):
                            count(str(task), table, n_masked=rows.height)
                        if apply:
                            write_atomic(file, parquet_bytes(_masked(frame, meant)), file.stat().st_mode & 0o777)


def _is_meant(row: dict, chunks: set[str], asked: set[tuple[str, str]], quotes: Quotes) -> bool:
    """Return whether a row of what was served cites or quotes what is taken down, and still has words."""
    words = [row[name] for name in _WORDS_SERVED if row.get(name)]
    cites = not chunks.isdisjoint(row["chunk_ids"] or []) or (row["request_id"], row["key_id"]) in asked
    if not (cites or any(quotes.are_in(text) for text in words)):
        return False
    asked.add((row["request_id"], row["key_id"]))
    return any(text != MASK for text in words)


def _masked(frame: pl.DataFrame, meant: pl.Series) -> pl.DataFrame:
    words = [name for name in _WORDS_SERVED if name in frame.columns]
    hashes = [name for name in _HASHES_SERVED if name in frame.columns]
    return frame.with_columns(
        *(pl.when(meant & frame[n].is_not_null()).then(pl.lit(MASK)).otherwise(pl.col(n)).alias(n) for n in words),
        *(pl.when(meant).then(None).otherwise(pl.col(n)).alias(n) for n in hashes),
    )


def _masked_line(
    line: bytes, table: str, chunks: set[str], asked: set[tuple[str, str]], quotes: Quotes, count: Callable[..., None]
) -> bytes | None:
    try:
        row = json.loads(line)
        if not _is_meant(row, chunks, asked, quotes):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # half a line, that its process is writing or never finished
    count(str(row["task"]), table, n_masked=1)
    changed = {name: MASK for name in _WORDS_SERVED if row.get(name)} | dict.fromkeys(set(_HASHES_SERVED) & set(row))
    text = json.dumps(row | changed, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def replace_lines(file: Path, change: Callable[[bytes], bytes | None], *, apply: bool) -> None:
    """Replace lines of a file by no longer ones, filled up with blanks: whoever appends to it goes on doing so."""
    offset = 0
    with file.open("r+b" if apply else "rb") as opened:
        for line in opened.read().splitlines(keepends=True):
            bare = line.rstrip(b"\r\n")
            new = change(bare)
            if new is not None and apply:
                fitting = new if len(new) <= len(bare) else MASK.encode()[: len(bare)]
                os.pwrite(opened.fileno(), fitting.ljust(len(bare)), offset)
            offset += len(line)
        if apply:
            os.fsync(opened.fileno())
