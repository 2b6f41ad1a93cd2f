"""What makes two things the same: hashes of values, rows, files and code that are equal on every machine."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from ev_platform.records import stable_columns
from ev_platform.syntax import parse


def fingerprint(value: Any) -> str:
    """Hash a JSON value the same way on every machine.

    Raises:
        TypeError: If the value holds something JSON cannot hold, since it could not be hashed stably.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short_id(prefix: str, *parts: Any) -> str:
    """Return a content id such as `chk_1f6c...`: a prefix and 80 bits of SHA-256 over the parts.

    80 bits keep the chance of one collision among a billion rows below one in a million (n²/2^81).
    """
    return f"{prefix}_{fingerprint(list(parts))[:20]}"


def frame_fingerprint(table: str, frame: pl.DataFrame) -> str:
    """Hash the stable columns of a frame, rows in order."""
    return hashlib.sha256(frame.select(stable_columns(table)).write_ndjson().encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def code_version(*modules: ModuleType) -> str:
    """Hash what modules do: their syntax trees, so that comments and docstrings do not count."""
    digest = hashlib.sha256()
    for module in modules:
        path = Path(module.__file__ or "")
        files = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
        for file in files:
            digest.update(_syntax(file).encode())
    return digest.hexdigest()[:16]


@cache
def _syntax(file: Path) -> str:
    tree = parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body[0].value.value = ""
    return ast.dump(tree)


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout that this package is run from, where there is one."""
    git = shutil.which("git")
    if git is None:
        return None
    # The checkout of this package, not whatever folder the user happens to stand in.
    answer = subprocess.run(  # noqa: S603
        [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None
