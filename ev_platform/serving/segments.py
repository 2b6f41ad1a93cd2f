"""The files behind the journal of served requests: where they lie, and how one kind becomes the next.

Layout below `<data>/serving/<table>/`::

    journal/<segment>.jsonl    rows as they came, one JSON object a line, written by one living process
    <day>/<segment>.parquet    the same rows, rolled; immutable
    <day>/day-<n>.parquet      all segments of a day that is over, put together; immutable
    empty/, journal/empty.jsonl    no rows: a view over a glob without files would fail

A segment is named by when it was begun (UTC) and by which process, holds rows of one day only, and stands in the column
`segment` of every Parquet file. That makes each step safe to be killed in: while a segment lies in several files, which
lasts until readers that listed the older file are done with it, readers take its rows from the one whose name sorts
last, where a journal counts as the first of all (`lineage.catalogue` and `journal` do).

A process holds a lock on the journal it writes; a journal that is not locked was left by one that died.

What does not belong here: what is written when, and reading (`journal`).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from ev_platform.files import write_atomic
from ev_platform.records import schema_of
from ev_platform.storage import now

# A query lists files first and reads them later; what it listed stays for so long.
GRACE_S = 300.0
TIME_COLUMN = {"requests": "asked_at", "feedback": "given_at"}
SEGMENT = "segment"
_STAMP = "%Y%m%dT%H%M%S%f"


def stored_schema(table: str) -> pl.Schema:
    """Return the columns of a table's Parquet files."""
    return pl.Schema({**schema_of(table), SEGMENT: pl.String})


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A journal file that this process writes and holds the lock of."""

    path: Path
    handle: int

    @property
    def day(self) -> date:
        """Day that its rows are of, UTC."""
        return day_of(self.path.stem)


def day_of(segment: str) -> date:
    """Return the day of a segment's rows."""
    return datetime.strptime(segment.partition("-")[0], _STAMP).replace(tzinfo=UTC).date()


class Segments:
    """The files of one table.

    Args:
        data_root: Data folder.
        table: `requests` or `feedback`.
    """

    def __init__(self, data_root: Path, table: str):
        self.table = table
        self.root = data_root / "serving" / table

    def ensure(self) -> None:
        """Make the folders and the files without rows."""
        none = self.root / "journal" / "empty.jsonl"
        none.parent.mkdir(parents=True, exist_ok=True)
        none.touch()
        empty = self.root / "empty" / "empty.parquet"
        wanted = stored_schema(self.table)
        if not empty.exists() or pl.read_parquet_schema(empty) != wanted:
            write_atomic(empty, _parquet(pl.DataFrame(schema=wanted)))

    def journals(self) -> list[Path]:
        """Return the journal files, oldest first, those too that are rolled already."""
        return sorted(file for file in (self.root / "journal").glob("*.jsonl") if file.stem != "empty")

    def unrolled(self) -> list[Path]:
        """Return the journal files, oldest first, whose rows no Parquet file has yet."""
        return [journal for journal in self.journals() if not self._rolled(journal.stem).exists()]

    def days(self) -> list[date]:
        """Return the days that have Parquet files, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(date.fromisoformat(f.name) for f in self.root.iterdir() if f.name[:1].isdigit())

    def parquet(self, day: date) -> list[Path]:
        """Return the Parquet files of a day."""
        return sorted((self.root / day.isoformat()).glob("*.parquet"))

    # ---- a segment's life ----

    def begin(self) -> OpenSegment:
        """Make a journal file for this process.

        Raises:
            OSError: If there is no room, or no right, to make one.
        """
        folder = self.root / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / f"{now():{_STAMP}}-{os.getpid()}.jsonl"
            # Locked before others can find it, so that nobody takes it for one that a dead process left.
            hidden = path.with_name(f".tmp-{path.stem}")  # with no suffix that a reader looks for
            handle = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                os.link(hidden, path)
                return OpenSegment(path, handle)
            except FileExistsError:
                os.close(handle)
            except BaseException:
                os.close(handle)
                raise
            finally:
                hidden.unlink()

    def roll(self, journal: Path) -> None:
        """Write a journal's rows as Parquet, if that has not been done; only who holds its lock may."""
        target = self._rolled(journal.stem)
        if target.exists():
            return
        rows = parse(self.table, journal.read_bytes())
        if rows.is_empty():
            journal.unlink()
        else:
            write_atomic(target, _parquet(rows.with_columns(pl.lit(journal.stem).alias(SEGMENT))), 0o600)

    def recover(self) -> None:
        """Roll what dead processes left, and remove journals that were rolled long enough ago."""
        for journal in self.journals():
            with _locked(journal) as is_mine:
                if is_mine:
                    self.roll(journal)
                    rolled = self._rolled(journal.stem)
                    if rolled.exists() and _age(rolled) > GRACE_S:
                        journal.unlink()
        for left in self.root.glob("*/.tmp-*"):
            if _age(left) > 3600:  # nothing takes an hour to be written
                left.unlink(missing_ok=True)

    def compact(self) -> None:
        """Put the files of each day that is over into one."""
        for day in self.days():
            if day < now().date():
                self._compact(day)

    def prune(self, retention_days: int) -> list[date]:
        """Delete the days that are older than so many days.

        Returns:
            The days that were deleted.
        """
        oldest = now().date() - timedelta(days=retention_days)
        for journal in self.journals():
            if day_of(journal.stem) < oldest:
                with _locked(journal) as is_mine:
                    if is_mine:
                        journal.unlink()
        gone = [day for day in self.days() if day < oldest]
        for day in gone:
            folder = self.root / day.isoformat()
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        return gone

    @contextlib.contextmanager
    def upkeep(self) -> Iterator[bool]:
        """Yield whether this process may compact and delete: one at a time does, another need not wait."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = self.root / "upkeep.lock"
        lock.touch()
        with _locked(lock) as is_mine:
            yield is_mine

    def _rolled(self, segment: str) -> Path:
        return self.root / day_of(segment).isoformat() / f"{segment}.parquet"

    def _compact(self, day: date) -> None:
        files = self.parquet(day)
        whole = [file for file in files if file.stem.startswith("day-")]
        newest = whole[-1] if whole else None
        covered = set(pl.read_parquet(newest, columns=[SEGMENT])[SEGMENT]) if newest else set()
        waiting = {journal.stem for journal in self.journals()}
        loose = [file for file in files if file not in whole and file.stem not in covered | waiting]
        if loose and len(loose) + len(whole) > 1:
            number = int(newest.stem.partition("-")[2]) + 1 if newest else 1
            target = self.root / day.isoformat() / f"day-{number:06}.parquet"
            hidden = target.with_name(f".tmp-{target.stem}")
            sources = [newest, *loose] if newest else loose
            # Streams: a day may be larger than the memory that serving leaves.
            scan(self.table, sources).sink_parquet(hidden, compression="zstd")
            with hidden.open("r+b") as written:
                os.fsync(written.fileno())
            hidden.chmod(0o600)
            hidden.replace(target)
        elif newest and _age(newest) > GRACE_S:
            for file in files:
                if file != newest and (file in whole or file.stem in covered):
                    file.unlink()


def scan(table: str, files: list[Path], file_column: str | None = None) -> pl.LazyFrame:
    """Scan Parquet files that may have been written under other declarations of the table."""
    return pl.scan_parquet(
        files,
        schema=stored_schema(table),
        glob=False,
        missing_columns="insert",
        extra_columns="ignore",
        include_file_paths=file_column,
        hive_partitioning=False,
    )


def parse(table: str, lines: bytes) -> pl.DataFrame:
    """Return the rows of a journal; a line that is not whole is what its process was writing when it died."""
    schema = schema_of(table)
    whole = lines[: lines.rfind(b"\n") + 1]
    if not whole:
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_ndjson(io.BytesIO(whole), schema=schema)
    except pl.exceptions.ComputeError:
        # A machine that lost its power may leave anything in the middle.
        kept = b"".join(line + b"\n" for line in whole.split(b"\n") if _is_object(line))
        return pl.read_ndjson(io.BytesIO(kept), schema=schema) if kept else pl.DataFrame(schema=schema)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Yield whether the file is there and its lock could be had, which a living owner keeps."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        # Another process may have been here first, and removed it.
        yield file.exists()
    finally:
        os.close(handle)
