"""The ledger: every paid question and its reply in one SQLite file, on the disk before anything is built on it.

A row is written before its call leaves (an intent: `status` is null) and completed by the reply, so that what a killed
process left under way can be told from what was never sent. What does not belong here: what to send, and whether it
may be paid (`ask`).
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.records import TeacherCall
from ev_platform.storage import now
from ev_platform.teachers.calls import Call, Reply

VERSION = 2

# `status` null: under way, or left under way by a process that was killed. `batch`: the batch that it went with.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    call_id TEXT PRIMARY KEY, purpose TEXT NOT NULL, teacher TEXT NOT NULL, model TEXT NOT NULL,
    prompt_version TEXT NOT NULL, asked_at TEXT NOT NULL, batch TEXT, status TEXT, detail TEXT,
    text TEXT NOT NULL DEFAULT '',
    n_input_tokens INTEGER NOT NULL DEFAULT 0, n_output_tokens INTEGER NOT NULL DEFAULT 0,
    n_cache_write_tokens INTEGER NOT NULL DEFAULT 0, n_cache_read_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0, n_unsettled INTEGER NOT NULL DEFAULT 0, request_id TEXT, latency_ms REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_by_batch ON calls (batch);
CREATE TABLE IF NOT EXISTS batches (
    batch TEXT PRIMARY KEY, batch_id TEXT, intended_at TEXT NOT NULL, stored_at TEXT
) WITHOUT ROWID;
"""

# Up to version 1 a recording's replies lay under the ids of its provider's own, which could not be asked for any more.
_FROM_1 = """
UPDATE calls SET status = 'failed', detail = 'a recording replied, not the provider' WHERE teacher LIKE 'recorded:%';
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one call; `status` is None while it is under way."""

    call_id: str
    status: str | None
    detail: str | None
    text: str
    cost_usd: float
    batch: str | None


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """A batch that was intended; `batch_id` is None until the provider is known to have made it."""

    batch: str
    batch_id: str | None
    intended_at: datetime
    call_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Settled:
    """A reply as it goes into the ledger: with its final status, and what it cost."""

    call_id: str
    status: str
    detail: str | None
    reply: Reply
    cost_usd: float


def ledger_path(data_root: Path) -> Path:
    """Return where the ledger of a data folder lies."""
    return data_root / "teacher" / "ledger.sqlite"


class Ledger:
    """The ledger in one file. Several threads may use it, and several processes may open the same file.

    Args:
        path: The file; made where there is none.

    Raises:
        UserError: If the file is no ledger, or one of a newer release.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise UserError(f"{path} was written by a newer release: use that release, or another data folder.")
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a committed intent or reply is on the disk, also after a power cut.
            self._db.execute("PRAGMA synchronous=FULL")
            upgrade = _FROM_1 if version < VERSION else ""
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {upgrade} PRAGMA user_version={VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise UserError(
                f"{path} cannot be read as a ledger ({error}): restore it, or move it away and pay again for its calls."
            ) from error
        except UserError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # ---- calls ----

    def get(self, call_id: str) -> Entry | None:
        """Return what is known of a call."""
        rows = self._rows("SELECT call_id, status, detail, text, cost_usd, batch FROM calls WHERE call_id = ?", call_id)
        return Entry(*rows[0]) if rows else None

    def claim(
        self, calls: Sequence[Call], teacher: str, *, batch: str | None = None, resend: bool = False
    ) -> list[Call]:
        """Record that calls are about to leave, in one transaction.

        Args:
            calls: To be sent.
            teacher: Who is asked.
            batch: Our own name of the batch that they will make.
            resend: Whether calls that are under way already may be sent again.

        Returns:
            Those that may be sent: never asked, or failed before. The others were answered or are under way.
        """
        claimed, at = [], now().isoformat()
        with self._writing() as db:
            for call in calls:
                row = db.execute("SELECT status FROM calls WHERE call_id = ?", (call.call_id,)).fetchone()
                if row is not None and not (row[0] == "failed" or (row[0] is None and resend)):
                    continue
                # What earlier attempts cost stays with the call.
                db.execute(
                    "INSERT INTO calls (call_id, purpose, teacher, model, prompt_version, asked_at, batch) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (call_id) DO UPDATE SET teacher = excluded.teacher, "
                    "asked_at = excluded.asked_at, batch = excluded.batch, status = NULL, detail = NULL",
                    (call.call_id, call.purpose, teacher, call.model, call.prompt_version, at, batch),
                )
                claimed.append(call)
            if batch is not None and claimed:
                db.execute("INSERT INTO batches VALUES (?, NULL, ?, NULL)", (batch, at))
        return claimed

    def store(self, settled: Sequence[Settled], *, batch: str | None = None) -> None:
        """Store replies in one transaction, and with a batch that all of it is answered.

        What is stored already stays: two processes may have waited for the same batch.
        """
        with self._writing() as db:
            db.executemany(
                "UPDATE calls SET status = ?, detail = ?, text = ?, model = coalesce(nullif(?, ''), model), "
                "n_input_tokens = n_input_tokens + ?, n_output_tokens = n_output_tokens + ?, "
                "n_cache_write_tokens = n_cache_write_tokens + ?, n_cache_read_tokens = n_cache_read_tokens + ?, "
                "cost_usd = cost_usd + ?, n_unsettled = n_unsettled + ?, request_id = ?, latency_ms = ? "
                "WHERE call_id = ? AND status IS NULL",
                [
                    (
                        s.status,
                        s.detail,
                        s.reply.text,
                        s.reply.model,
                        s.reply.usage.n_input_tokens,
                        s.reply.usage.n_output_tokens,
                        s.reply.usage.n_cache_write_tokens,
                        s.reply.usage.n_cache_read_tokens,
                        s.cost_usd,
                        s.reply.n_unsettled,
                        s.reply.request_id,
                        s.reply.latency_ms,
                        s.call_id,
                    )
                    for s in settled
                ],
            )
            if batch is not None:
                db.execute("UPDATE batches SET stored_at = ? WHERE batch = ?", (now().isoformat(), batch))

    def restate(self, call_id: str, status: str, detail: str | None) -> None:
        """Correct the status of a stored reply: its schema's validators have changed since."""
        with self._writing() as db:
            db.execute("UPDATE calls SET status = ?, detail = ? WHERE call_id = ?", (status, detail, call_id))

    def calls(self, call_ids: Collection[str]) -> list[TeacherCall]:
        """Return rows for the table `teacher_calls`, in the order of the ids; calls that never left have none."""
        rows = self._rows(
            "SELECT call_id, purpose, teacher, model, prompt_version, coalesce(status, 'interrupted'), detail, "
            "n_input_tokens, n_output_tokens, n_cache_write_tokens, n_cache_read_tokens, batch IS NOT NULL, cost_usd, "
            "request_id, asked_at, latency_ms, n_unsettled FROM calls "
            "WHERE call_id IN (SELECT value FROM json_each(?))",
            json.dumps(list(call_ids)),
        )
        found = {}
        for *values, asked_at, latency_ms, n_unsettled in rows:
            row = [*values[:11], bool(values[11]), *values[12:]]
            if n_unsettled:
                row[6] = "; ".join(filter(None, [row[6], f"{n_unsettled} attempts broke off and may be charged too"]))
            found[row[0]] = TeacherCall(*row, asked_at=datetime.fromisoformat(asked_at), latency_ms=latency_ms)
        return [found[call_id] for call_id in dict.fromkeys(call_ids) if call_id in found]

    def mean_output_tokens(self, purpose: str, model: str) -> tuple[float, int]:
        """Return how long stored replies are on average, and how many there are."""
        rows = self._rows(
            "SELECT coalesce(avg(n_output_tokens), 0), count(*) FROM calls "
            "WHERE purpose = ? AND model LIKE ? || '%' AND status NOT IN ('failed') AND n_output_tokens > 0",
            purpose,
            model,
        )
        return rows[0]

    # ---- what was taken down ----

    def replies(self) -> Iterator[tuple[str, str]]:
        """Yield the id of each call with all words that are kept of its reply."""
        yield from self._rows("SELECT call_id, text || ' ' || coalesce(detail, '') FROM calls WHERE text <> ''")

    def forget_reply(self, call_id: str, detail: str) -> None:
        """Remove the words of a reply: the call has failed from then on, what it cost stays."""
        with self._writing() as db:
            db.execute("UPDATE calls SET text = '', status = 'failed', detail = ? WHERE call_id = ?", (detail, call_id))

    def compact(self) -> None:
        """Write the file anew, so that nothing that was removed stays on its free pages."""
        with self._lock:
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # ---- batches ----

    @contextmanager
    def making(self, batch: str) -> Iterator[None]:
        """Show other processes that a batch is being made, for as long as this one lives."""
        path = self._mark_of(batch)
        with path.open("w") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)  # ends with the process, however that ends
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def is_being_made(self, batch: str) -> bool:
        """Return whether a process that lives is making a batch."""
        path = self._mark_of(batch)
        try:
            with path.open("r+") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)  # what a killed process left
        return False

    def _mark_of(self, batch: str) -> Path:
        return self.path.with_name(f"{self.path.name}.making-{batch}")

    def batch(self, batch: str) -> BatchEntry | None:
        """Return a batch whose results are not stored yet."""
        rows = self._rows("SELECT batch_id, intended_at FROM batches WHERE batch = ? AND stored_at IS NULL", batch)
        if not rows:
            return None
        ids = self._rows("SELECT call_id FROM calls WHERE batch = ? AND status IS NULL", batch)
        intended_at = datetime.fromisoformat(rows[0][1]).astimezone(UTC)
        return BatchEntry(batch, rows[0][0], intended_at, frozenset(call_id for (call_id,) in ids))

    def batch_ids(self) -> set[str]:
        """Return the provider's names of all batches that are known."""
        return {batch_id for (batch_id,) in self._rows("SELECT batch_id FROM batches WHERE batch_id IS NOT NULL")}

    def set_batch_id(self, batch: str, batch_id: str) -> None:
        """Record what the provider calls a batch."""
        with self._writing() as db:
            db.execute("UPDATE batches SET batch_id = ? WHERE batch = ?", (batch_id, batch))

    def forget_batch(self, batch: str, detail: str) -> None:
        """Record that a batch was never made: its calls failed, and may be asked again."""
        with self._writing() as db:
            db.execute(
                "UPDATE calls SET status = 'failed', detail = ? WHERE batch = ? AND status IS NULL", (detail, batch)
            )
            db.execute("DELETE FROM batches WHERE batch = ?", (batch,))
