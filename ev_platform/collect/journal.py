"""The journal of a crawl that is under way, so that a crawl killed at any moment goes on where it was.

One JSON line for each address that has been dealt with, written once its body lies in the store. What does not belong
here: the bodies (`storage`), and the crawl, which walks the same way again and takes from here what it has (`crawl`).
"""

from __future__ import annotations

import fcntl
import json
import logging
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.records import RawBody
from ev_platform.storage import now

MAX_AGE = timedelta(hours=24)  # pages change: what is older is asked for again
_FIELDS = [field.name for field in fields(RawBody)]
_log = logging.getLogger(__name__)


class Journal:
    """Remembers rows in a file; a context manager that removes the file when its block ends without an error.

    Args:
        file: Where it lies.
        key: Hash of all that the rows depend on; a journal with another key is discarded.

    Raises:
        UserError: If another process has it open.
    """

    def __init__(self, file: Path, key: str):
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(file)
        self._rows, n_bytes = _read(file, key)
        if n_bytes == 0:
            file.write_text(json.dumps({"key": key, "started_at": now().isoformat()}) + "\n")
        else:
            with file.open("r+b") as stored:
                stored.truncate(n_bytes)  # a torn last line
            _log.info("going on with a crawl that was cut off: %d addresses are done", len(self._rows))
        self._out = file.open("a", encoding="utf-8")

    def get(self, url: str) -> RawBody | None:
        """Return what came of an address before the crawl was cut off."""
        return self._rows.get(url)

    def add(self, row: RawBody) -> None:
        """Write a row down; it survives the process from here on."""
        content = {name: getattr(row, name) for name in _FIELDS}
        self._out.write(json.dumps(content, default=datetime.isoformat) + "\n")
        self._out.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._out.close()
        if kind is None:
            self._file.unlink()
        self._lock.close()


def journal_path(root: Path, task: str) -> Path:
    """Return where the journal of a task lies below a data folder."""
    return root / "journal" / f"{task}.jsonl"


def fetched_so_far(file: Path) -> list[dict[str, Any]]:
    """Return the rows of the journal of a crawl that was cut off, whatever its key; none where there is no journal."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [row for line in lines if (row := _row_of(line))]


def forget(file: Path, urls: set[str]) -> None:
    """Take addresses out of the journal of a crawl that was cut off.

    Raises:
        UserError: If a crawl has it open.
    """
    with _locked(file):
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        write_atomic(file, b"".join(line for line in lines if _row_of(line).get("url") not in urls))


def _row_of(line: bytes) -> dict[str, Any]:
    """Return the row that a line holds; nothing of the first line, or of one that was cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and "url" in row else {}


def _locked(file: Path) -> TextIO:
    """Return an open file that holds the lock of a journal until it is closed."""
    lock = file.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except OSError as error:
        lock.close()
        raise UserError(f"Another crawl of the task {file.stem} is under way: wait until it has ended.") from error
    return lock


def _read(file: Path, key: str) -> tuple[dict[str, RawBody], int]:
    """Return the rows of a journal and how many of its bytes are whole lines; nothing and 0 where it is no use."""
    if not file.exists():
        return {}, 0
    rows: dict[str, RawBody] = {}
    n_bytes = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                content: Any = json.loads(line)
                if n_bytes == 0:
                    if content["key"] != key or now() - datetime.fromisoformat(content["started_at"]) > MAX_AGE:
                        return {}, 0
                else:
                    times = {name: datetime.fromisoformat(content[name]) for name in ("fetched_at", "checked_at")}
                    rows[content["url"]] = RawBody(**content | times)
            except (ValueError, TypeError, KeyError):
                break  # what a machine that lost its power left
            n_bytes += len(line)
    return rows, n_bytes
