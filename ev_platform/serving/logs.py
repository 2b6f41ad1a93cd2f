"""What the server says of itself: JSON objects, one a line, in `<data>/serving/server.log`.

Every process of a server writes there, since what Ray collects of their output is deleted with the server; one of them
moves the file aside when it is full. A process that does not `keep` its lines says them on standard error.

A line names a request, a key by its id, a route, a version and figures. It never holds a question, an answer, a key or
the words of an error, which may quote any of them: of a fault it says what kind it was and where it arose.

What does not belong here: the request log in Parquet (`journal`), metrics (`metrics`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

# Read by the processes of a cluster's proxies, which are made by Serve and so given nothing.
DATA_VARIABLE = "EV_SERVING_DATA"
_MOST_BYTES = 10_000_000
_N_ASIDE = 5  # server.log.1 is the newest of them

_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper("iso", utc=True),
    structlog.processors.JSONRenderer(),
]
_PACKAGES = Path(__file__).resolve().parents[2]
_MOST_FRAMES = 12
_line_maker = structlog.wrap_logger(structlog.ReturnLogger(), processors=_PROCESSORS)
_own = logging.getLogger(__name__)  # its messages are whole lines


class _Private(logging.FileHandler):
    """A file that only its owner reads, and that costs nobody an answer where the disk does not take it."""

    def _open(self) -> TextIO:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return cast("TextIO", open(self.baseFilename, self.mode, encoding=self.encoding, opener=opener))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class _Rotated(_Private, RotatingFileHandler):
    """Moves the file aside when it is full."""


class _Followed(_Private, WatchedFileHandler):
    """Finds the new file where another process has moved the old one aside."""


class _Lines(logging.Formatter):
    """Makes a line of what the modules tell Python's own `logging`."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == __name__:
            return record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        return _line(record.levelname.lower(), record.getMessage(), logger=record.name, **_where(error))


def keep(data_root: Path, *, rotates: bool = False) -> logging.Handler:
    """Write what this process says of itself to `<data>/serving/server.log` from now on.

    Args:
        data_root: Data folder.
        rotates: Whether it moves the file aside when it is full; one process of a server does.

    Returns:
        What writes it.
    """
    file = data_root / "serving" / "server.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    if rotates:
        handler = _Rotated(file, maxBytes=_MOST_BYTES, backupCount=_N_ASIDE, encoding="utf-8", delay=True)
    else:
        handler = _Followed(file, encoding="utf-8", delay=True)
    handler.setFormatter(_Lines())
    package = logging.getLogger("ev_platform")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    return handler


def _line(level: str, event: str, **fields: Any) -> str:
    return getattr(_line_maker, level)(event, **fields)


def _say(level: str, event: str, **fields: Any) -> None:
    line = _line(level, event, **fields)
    if logging.getLogger("ev_platform").handlers:
        _own.log(logging.getLevelNamesMapping()[level.upper()], line)
        return
    with contextlib.suppress(OSError, ValueError):  # a closed pipe must not cost anybody an answer
        # Standard error as it is now: Ray and tests put another in its place.
        sys.stderr.write(line + "\n")


def request(**fields: Any) -> None:
    """Say that a request is over.

    Args:
        fields: Ids, names and figures; None is left out.
    """
    _say("info", "request", **{name: value for name, value in fields.items() if value is not None})


def fault(event: str, error: BaseException, **fields: Any) -> None:
    """Say that something failed: what kind of error, and where it arose, innermost call last.

    Args:
        event: What failed, in a few fixed words.
        error: Its message is not told.
        fields: Ids and names.
    """
    _say("error", event, **_where(error), **fields)


def failure(log: logging.Logger, what: str, error: BaseException) -> None:
    """Say by a module's logger that something failed, where and with what kind of error, not in the error's words.

    Args:
        log: Of the module that says it.
        what: What failed.
        error: Its message may quote a question, and is not told.
    """
    log.error("%s failed with %s:\n%s", what, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))


def _where(error: BaseException | None) -> dict[str, Any]:
    """Return what is told of an error; nothing where there is none."""
    if error is None:
        return {}
    kinds, cause = [], error
    while cause is not None and len(kinds) < 4:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    where = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": " from ".join(kinds), "where": where}


def _short(file: str) -> str:
    """Name a file from its package on: where the packages lie is the machine's business."""
    if "site-packages/" in file:
        return file.rpartition("site-packages/")[2]
    path = Path(file)
    return str(path.relative_to(_PACKAGES)) if path.is_relative_to(_PACKAGES) else path.name
