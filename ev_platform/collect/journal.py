"""The journal of a crawl that is under way, so that a crawl killed at any moment goes on where it was.

One JSON line for each address that has been dealt with, written once its body lies in the store. What does not belong
here: the bodies (`storage`), and the crawl, which walks the same way again and takes from here what it has (`crawl`).
"""

from __future__ import annotations

import fcntl
import json
import logging
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from ev_platform.errors import UserError
from ev_platform.records import RawBody
from ev_platform.storage import now

MAX_AGE = timedelta(hours=24)  # pages change: what is older is asked for again
_FIELDS = [field.name for field in fields(RawBody)]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of one address.

    Attributes:
        row: For `raw_pages`.
        robots_header: The answer's `X-Robots-Tag`, which the row does not hold.
    """

    row: RawBody
    robots_header: str | None = None


class Journal:
    """Remembers visits in a file; a context manager that removes the file when its block ends without an error.

    Args:
        file: Where it lies.
        key: Hash of all that the visits depend on; a journal with another key is discarded.

    Raises:
        UserError: If another process has it open.
    """

    def __init__(self, file: Path, key: str):
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError as error:
            self._lock.close()
            raise UserError(f"Another crawl of the task {file.stem} is under way: wait until it has ended.") from error
        self._visits, n_bytes = _read(file, key)
        if n_bytes == 0:
            file.write_text(json.dumps({"key": key, "started_at": now().isoformat()}) + "\n")
        else:
            with file.open("r+b") as stored:
                stored.truncate(n_bytes)  # a torn last line
            _log.info("going on with a crawl that was cut off: %d addresses are done", len(self._visits))
        self._out = file.open("a", encoding="utf-8")

    def get(self, url: str) -> Visit | None:
        """Return what came of an address before the crawl was cut off."""
        return self._visits.get(url)

    def add(self, visit: Visit) -> None:
        """Write a visit down; it survives the process from here on."""
        row = {name: getattr(visit.row, name) for name in _FIELDS}
        self._out.write(json.dumps([row, visit.robots_header], default=datetime.isoformat) + "\n")
        self._out.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._out.close()
        if kind is None:
            self._file.unlink()
        self._lock.close()


def _read(file: Path, key: str) -> tuple[dict[str, Visit], int]:
    """Return the visits of a journal and how many of its bytes are whole lines; nothing and 0 where it is no use."""
    if not file.exists():
        return {}, 0
    visits: dict[str, Visit] = {}
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
                    row, robots_header = content
                    times = {name: datetime.fromisoformat(row[name]) for name in ("fetched_at", "checked_at")}
                    visits[row["url"]] = Visit(RawBody(**row | times), robots_header)
            except (ValueError, TypeError, KeyError):
                break  # what a machine that lost its power left
            n_bytes += len(line)
    return visits, n_bytes
