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
from ev_platform.serving.segments import Segments

_WORDS_SERVED = ("question", "answer", "correction", "comment")
_HASHES_SERVED = ("question_hash", "answer_hash")


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Return a frame as a Parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def mask_served(
    root: Path, chunks_in: Callable[[str], set[str]], quotes: Quotes, count: Callable[..., None], *, apply: bool
) -> None:
    """Mask the requests that cite or quote what is taken down, and what was said of their answers.

    Args:
        root: Data folder.
        chunks_in: Returns for a task the passages whose citation counts.
        quotes: Words of what is taken down.
        count: Called with task, table and `n_masked`.
        apply: Whether it is done; else it is only counted.

    Raises:
        UserError: If a server is compacting the log just now.
    """
    asked: set[tuple[str, str, str | None]] = set()

    def is_meant(row: dict) -> bool:
        cites = not chunks_in(row["task"]).isdisjoint(row["chunk_ids"] or [])
        return cites or any(quotes.are_in(row.get(name)) for name in _WORDS_SERVED)

    def note(row: dict) -> bool:
        if is_meant(row):
            # Clients choose ids, and may use one twice: only with the question it names a request. A log that keeps no
            # text has none.
            asked.add((row["request_id"], row["key_id"], row["question"]))
        return False

    def is_said_of_it(row: dict) -> bool:
        ids = (row["request_id"], row["key_id"])
        return is_meant(row) or not asked.isdisjoint({(*ids, row["question"]), (*ids, None)})

    # What was said goes first: of a process that is killed in between, the requests still tell what was said of them.
    _mask_table(root, "requests", note, count, apply=False)
    _mask_table(root, "feedback", is_said_of_it, count, apply=apply)
    _mask_table(root, "requests", is_meant, count, apply=apply)


def _mask_table(
    root: Path, table: str, is_meant: Callable[[dict], bool], count: Callable[..., None], *, apply: bool
) -> None:
    segments = Segments(root, table)
    with segments.upkeep() as is_mine:
        if not is_mine and apply:
            raise UserError(
                "A server is putting the log of requests in order just now: run the same command again in a minute."
            )
        # Journals first: one that is rolled meanwhile is rolled without the words.
        for journal in segments.journals():
            replace_lines(journal, lambda line: _masked_line(line, table, is_meant, count), apply=apply)
        for day in segments.days():
            for file in segments.parquet(day):
                frame = pl.read_parquet(file, hive_partitioning=False)
                meant = pl.Series(
                    [is_meant(row) and _has_words(row) for row in frame.iter_rows(named=True)], dtype=pl.Boolean
                )
                if meant.any():
                    for (task,), rows in frame.filter(meant).group_by("task"):
                        count(str(task), table, n_masked=rows.height)
                    if apply:
                        write_atomic(file, parquet_bytes(_masked(frame, meant)), file.stat().st_mode & 0o777)


def _has_words(row: dict) -> bool:
    return any(row.get(name) not in (None, "", MASK) for name in _WORDS_SERVED)


def _masked(frame: pl.DataFrame, meant: pl.Series) -> pl.DataFrame:
    words = [name for name in _WORDS_SERVED if name in frame.columns]
    hashes = [name for name in _HASHES_SERVED if name in frame.columns]
    return frame.with_columns(
        *(pl.when(meant & frame[n].is_not_null()).then(pl.lit(MASK)).otherwise(pl.col(n)).alias(n) for n in words),
        *(pl.when(meant).then(None).otherwise(pl.col(n)).alias(n) for n in hashes),
    )


def _masked_line(line: bytes, table: str, is_meant: Callable[[dict], bool], count: Callable[..., None]) -> bytes | None:
    try:
        row = json.loads(line)
        if not is_meant(row) or not _has_words(row):
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
