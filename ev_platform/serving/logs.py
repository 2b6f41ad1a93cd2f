"""What the server says of itself: JSON objects, one a line, on standard error.

A line names a request, a key by its id, a route, a version and figures. It never holds a question, an answer, a key or
the words of an error, which may quote any of them: of a fault it says what kind it was and where it arose.

What does not belong here: the request log in Parquet (`journal`), metrics (`metrics`).
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from typing import Any

import structlog

_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper("iso", utc=True),
    structlog.processors.JSONRenderer(),
]
_PACKAGES = Path(__file__).resolve().parents[2]
_MOST_FRAMES = 12


def _say(level: str, event: str, **fields: Any) -> None:
    # Standard error as it is now: Ray and tests put another in its place.
    logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=_PROCESSORS)
    with contextlib.suppress(OSError, ValueError):  # a closed pipe must not cost anybody an answer
        getattr(logger, level)(event, **fields)


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
    kinds, cause = [], error
    while cause is not None and len(kinds) < 4:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    where = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    _say("error", event, error=" from ".join(kinds), where=where, **fields)


def _short(file: str) -> str:
    """Name a file from its package on: where the packages lie is the machine's business."""
    if "site-packages/" in file:
        return file.rpartition("site-packages/")[2]
    path = Path(file)
    return str(path.relative_to(_PACKAGES)) if path.is_relative_to(_PACKAGES) else path.name
