"""The log of what was asked and what was said of the answers: appended while serving, read at any moment.

A row is one line in a journal file of this process when `Journal.add` returns: it survives the process's death, not a
power cut, since nothing waits for the disk. A thread rolls journals into Parquet (`segments`, which also says how the
files lie), so that readers, here and in DuckDB, see each row once, and see it at once.

What does not belong here: what a row says (`records.serving`, `observe`), HTTP, metrics.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl

from ev_platform.records import Feedback, ServedRequest, schema_of
from ev_platform.serving.segments import SEGMENT, TIME_COLUMN, OpenSegment, Segments, day_of, parse, scan
from ev_platform.storage import now

Table = Literal["requests", "feedback"]
MAX_ROWS = 5_000  # of one segment
MAX_BYTES = 8 * 2**20  # of one segment: rolling it takes about ten times that in memory, for a moment
ROLL_AFTER_S = 300.0
UPKEEP_EVERY_S = 3600.0
_FILE = "file"
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Journal:
    """Appends rows of one table; of any threads.

    Args:
        data_root: Data folder.
        table: `requests` or `feedback`.
        retention_days: Age in days at which rows are deleted, whole days at a time; None keeps them.
        max_rows: Rows after which a segment is rolled.
        roll_after_s: Age at which a segment is rolled; since it is looked at as often, rows wait for twice that at
            most.
        on_fault: Called by the thread with what stopped it from rolling or deleting, as a full disk does; the rows stay
            in their journal, readable, and it is tried again.
    """

    def __init__(
        self,
        data_root: Path,
        table: Table,
        *,
        retention_days: int | None = None,
        max_rows: int = MAX_ROWS,
        roll_after_s: float = ROLL_AFTER_S,
        on_fault: Callable[[Exception], None] | None = None,
    ):
        self._segments = Segments(data_root, table)
        self._retention_days, self._max_rows, self._roll_after_s = retention_days, max_rows, roll_after_s
        self._on_fault = on_fault
        self._lock = threading.Lock()
        self._open: OpenSegment | None = None
        self._n_rows = self._n_bytes = 0
        self._begun_at = 0.0
        self._full: list[OpenSegment] = []
        self._is_closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"journal-{table}", daemon=True)
        self._thread.start()

    def add(self, row: ServedRequest | Feedback) -> None:
        """Write a row down; it survives this process from here on.

        Raises:
            OSError: If it cannot be written, as on a full disk; nothing of it is then.
            ValueError: If the journal is closed.
        """
        line = _encode(row)
        with self._lock:
            if self._is_closed:
                raise ValueError("The journal is closed.")
            segment = self._open
            if segment is None or segment.day != now().date() or self._is_full():
                segment = self._rotate()
            _append(segment.handle, line, self._n_bytes)
            self._n_rows += 1
            self._n_bytes += len(line)
            is_full = self._is_full()
        if is_full:
            self._wake.set()

    def close(self) -> None:
        """Roll what is open and end the thread; a second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._wake.set()
        self._thread.join()
        for segment in self._full:  # what could not be rolled: the next start may
            os.close(segment.handle)
        self._full.clear()

    def _is_full(self) -> bool:
        return self._n_rows >= self._max_rows or self._n_bytes >= MAX_BYTES

    def _rotate(self) -> OpenSegment:
        begun = self._segments.begin()  # first: where that fails, the old one stays in use
        if self._open is not None:
            self._full.append(self._open)
        self._open, self._n_rows, self._n_bytes, self._begun_at = begun, 0, 0, time.monotonic()
        return begun

    def _run(self) -> None:
        next_upkeep = 0.0
        while True:
            is_last = self._is_closed
            self._guarded(self._roll)
            self._guarded(self._segments.recover)
            if time.monotonic() >= next_upkeep:
                next_upkeep = time.monotonic() + UPKEEP_EVERY_S
                self._guarded(self._keep_up)
            if is_last:
                break
            self._wake.wait(self._roll_after_s)
            self._wake.clear()

    def _roll(self) -> None:
        with self._lock:
            is_due = self._is_closed or self._is_full() or time.monotonic() - self._begun_at >= self._roll_after_s
            if self._open is not None and is_due:
                self._full.append(self._open)
                self._open, self._n_rows, self._n_bytes = None, 0, 0
        while self._full:
            segment = self._full[0]
            self._segments.roll(segment.path)
            with self._lock:
                self._full.remove(segment)
            os.close(segment.handle)

    def _keep_up(self) -> None:
        with self._segments.upkeep() as is_mine:
            if is_mine:
                keep_up(self._segments, self._retention_days)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the thread must outlive whatever the disk does
            _log.warning("The journal of %s: %s, tried again later", self._segments.table, type(error).__name__)
            if self._on_fault is not None:
                self._on_fault(error)


def keep_up(segments: Segments, retention_days: int | None) -> list[date]:
    """Recover, compact and delete; who calls it holds `Segments.upkeep`.

    Returns:
        The days that were deleted.
    """
    segments.ensure()
    segments.recover()
    gone = segments.prune(retention_days) if retention_days is not None else []
    segments.compact()
    return gone


# ---- reading ----


def read_journal(
    data_root: Path,
    table: Table,
    since: datetime | None = None,
    query: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda rows: rows,
) -> pl.DataFrame:
    """Return the rows of a table, oldest first, what was added a moment ago included.

    Args:
        data_root: Data folder.
        table: `requests` or `feedback`.
        since: Only rows of that time or later; with a time zone.
        query: Says which rows and columns are needed, the time of a row among them: others take no memory.
    """
    return _retried(lambda: _rows(Segments(data_root, table), table, since, query))


def tokens_today(data_root: Path) -> dict[str, int]:
    """Return the tokens, of prompts and answers, that each key has used since midnight UTC, by key id."""
    midnight = now().replace(hour=0, minute=0, second=0, microsecond=0)
    used = read_journal(
        data_root,
        "requests",
        midnight,
        lambda rows: rows.select(
            "key_id",
            "asked_at",
            (pl.col("n_prompt_tokens").fill_null(0) + pl.col("n_completion_tokens").fill_null(0)).alias("n_tokens"),
        ),
    )
    return dict(used.group_by("key_id").agg(pl.col("n_tokens").sum()).rows())


def find_request(
    data_root: Path,
    request_id: str,
    key_id: str | None = None,
    question_hash: str | None = None,
    *,
    is_answered: bool = False,
) -> dict[str, Any] | None:
    """Return the newest request of that id, as a row of `requests`; None where there is none, or it was deleted.

    Args:
        data_root: Data folder.
        request_id: As it was answered; clients may use their own, and twice.
        key_id: Only a request of that key.
        question_hash: Only a request with that question.
        is_answered: Only a request that a model answered, in whole or in part.
    """
    wanted = pl.col("request_id") == request_id
    if key_id is not None:
        wanted &= pl.col("key_id") == key_id
    if question_hash is not None:
        wanted &= pl.col("question_hash") == question_hash
    if is_answered:
        # Not `answer`, which a log of hashes lacks.
        wanted &= pl.all_horizontal(pl.col("task", "model_version", "answer_hash").is_not_null())
    return _retried(lambda: _newest(Segments(data_root, "requests"), request_id, wanted))


def _newest(segments: Segments, request_id: str, wanted: pl.Expr) -> dict[str, Any] | None:
    quoted = json.dumps(request_id, ensure_ascii=False).encode("utf-8", "replace")
    hits = [pl.DataFrame(schema=schema_of("requests"))]
    for journal in segments.unrolled():
        # Most lines are of other requests: parsing only those that name it is a hundred times faster.
        lines = b"".join(line for line in _bytes_of(journal).splitlines(keepends=True) if quoted in line)
        hits.append(parse("requests", lines).filter(wanted))
    found = pl.concat(hits).sort("asked_at")
    for day in reversed(segments.days()):
        if found.height and day < found["asked_at"][-1].date():
            break
        if files := segments.parquet(day):
            found = pl.concat([found, scan("requests", files).drop(SEGMENT).filter(wanted).collect()]).sort("asked_at")
    return found.row(-1, named=True) if found.height else None


def _bytes_of(journal: Path) -> bytes:
    try:
        return journal.read_bytes()
    except FileNotFoundError:  # rolled long ago and removed just now: its Parquet file has the rows
        return b""


def _retried(read: Callable[[], T]) -> T:
    for _ in range(3):
        try:
            return read()
        except FileNotFoundError:  # a day was deleted while it was read
            continue
    return read()


def _rows(
    segments: Segments, table: Table, since: datetime | None, query: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> pl.DataFrame:
    # A row is written after its time, so that no day before holds it.
    first = since.astimezone(UTC).date() if since else date.min
    # Journals first: one that is rolled in between is then seen as both, and taken once.
    frames = [
        parse(table, _bytes_of(journal)).with_columns(
            pl.lit(journal.stem).alias(SEGMENT), pl.lit("", pl.String).alias(_FILE)
        )
        for journal in segments.unrolled()
        if day_of(journal.stem) >= first
    ]
    rows = [frame.lazy() for frame in frames]
    files = [file for day in segments.days() if day >= first for file in segments.parquet(day)]
    if files:
        # Within a segment the folder is the same, so that paths sort as names do.
        rows.append(scan(table, files, _FILE))
    if not rows:
        return query(pl.LazyFrame(schema=schema_of(table))).collect()
    time_column = TIME_COLUMN[table]
    seen = pl.concat(rows).filter(pl.col(_FILE) == pl.col(_FILE).max().over(SEGMENT)).drop(SEGMENT, _FILE)
    if since:
        seen = seen.filter(pl.col(time_column) >= since)
    return query(seen).sort(time_column, maintain_order=True).collect()


# ---- writing ----


def _encode(row: ServedRequest | Feedback) -> bytes:
    content = {field.name: getattr(row, field.name) for field in fields(row)}
    try:
        text = _json(content)
    except ValueError:  # JSON has no word for what is not a number
        text = _json({name: _finite(value) for name, value in content.items()})
    # A lone surrogate, which JSON can carry and UTF-8 cannot, becomes a question mark.
    return text.encode("utf-8", "replace") + b"\n"


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, default=datetime.isoformat, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _append(handle: int, line: bytes, size: int) -> None:
    """Append a line to a file of so many bytes, or nothing."""
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        os.ftruncate(handle, size)  # half a line would spoil the next one too
        raise


# ---- hashes ----


def text_hash(data_root: Path, text: str) -> str:
    """Return a keyed hash of a text: equal texts can be counted, and guesses not be checked without the key.

    The key is made at the first call, in `<data>/serving/hash.key`; where it is lost, hashes from then on differ from
    those before.
    """
    content = text.encode("utf-8", "replace")
    return hashlib.blake2b(content, digest_size=16, key=_hash_key(data_root.resolve()), person=b"ev-text").hexdigest()


@lru_cache(maxsize=8)
def _hash_key(data_root: Path) -> bytes:
    file = data_root / "serving" / "hash.key"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        own = file.with_name(f".tmp-{secrets.token_hex(8)}")
        own.touch(mode=0o600)
        try:
            own.write_bytes(secrets.token_bytes(32))
            os.link(own, file)  # of several processes that make one at once, the first one's stays
        except FileExistsError:
            pass
        finally:
            own.unlink()
    return file.read_bytes()
