"""Backups of the data folder, taken while it is in use: plain folders of plain files, with a list of their SHA-256.

A table's files never change; only the pointers that name them do, and each is moved after what it names is there. So
pointers are copied first and files after them: what a copied pointer names had been stored before. A backup is in the
state of a store whose process was killed at that moment, which a next run takes up from.

What does not belong here: databases of other servers (`pg_dump`) and object stores, which keep versions by themselves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import sha256_of
from ev_platform.storage import Store, now

MANIFEST = "MANIFEST.sha256"  # as `sha256sum --check` reads it
_PARTIAL = ".partial-"
# Made anew from the rest, of the running process only, or of a training that goes on from its last step at most.
_LEFT_OUT = ("ev.duckdb", "checkpoints")
_DATABASES = (".db", ".sqlite")
_BESIDE_DATABASES = ("-wal", "-shm", "-journal")
_MOST_WALKS = 5
# Each kind after what names it: aliases, pointers, journals (before they are rolled), sidecars, and all the rest.
_ORDER: tuple[Callable[[Path], bool], ...] = (
    lambda path: path.parts[0] == "registry",
    lambda path: path.name == "CURRENT",
    lambda path: "journal" in path.parts,
    lambda path: path.parts[0] == "tables" and path.suffix == ".json",
    lambda path: True,
)


@dataclass(frozen=True, slots=True)
class Backup:
    """What was stored or brought back.

    Attributes:
        folder: Where it is.
        n_files: How many files it holds.
        n_bytes: How long they are together.
        n_linked: How many of them are those of the backup before, linked.
    """

    folder: Path
    n_files: int
    n_bytes: int
    n_linked: int = 0


def create(data_root: Path, into: Path) -> Backup:
    """Copy a data folder that may be in use into a new folder named by the time.

    Args:
        data_root: Data folder.
        into: Folder of backups; files that the newest of them holds unchanged are linked (hard links), not copied.

    Raises:
        UserError: If there is nothing to back up, `into` lies in it, or files are deleted faster than they are copied.
    """
    data_root, into = data_root.resolve(), into.resolve()
    if not (data_root / "tables").is_dir():
        raise UserError(f"{data_root} is no data folder: set EV_DATA_DIR to the one to back up.")
    if into.is_relative_to(data_root):
        raise UserError(f"{into} lies in the data folder itself: choose a folder on another disk.")
    into.mkdir(parents=True, exist_ok=True)
    before = newest(into)
    known = _read_manifest(before) if before else {}
    target = into / f"{now():%Y%m%dT%H%M%SZ}"
    if target.exists():
        raise UserError(f"{target} is there already: wait a second.")
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=into))
    try:
        sums: dict[str, str] = {}
        n_linked = 0
        for belongs in _ORDER:
            for _ in range(_MOST_WALKS):
                todo = [path for path in _files(data_root) if belongs(path) and str(path) not in sums]
                n_gone = 0
                for path in todo:
                    try:
                        if before is not None and _link(before / path, data_root / path, partial / path):
                            sums[str(path)] = known[str(path)]
                            n_linked += 1
                        else:
                            sums[str(path)] = _copy(data_root / path, partial / path)
                    except FileNotFoundError:
                        n_gone += 1  # rolled into another file, or pruned: what took its place is found by another walk
                if not n_gone:
                    break
            else:
                raise UserError(f"Files of {data_root} are deleted while they are copied: try again later.")
        _check_whole(partial)
        write_atomic(partial / MANIFEST, "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode())
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    n_bytes = sum((target / path).stat().st_size for path in sums)
    return Backup(target, len(sums), n_bytes, n_linked)


def restore(backup: Path, data_root: Path) -> Backup:
    """Bring a backup back into an empty data folder, comparing every file with its SHA-256.

    Args:
        backup: One backup's folder.
        data_root: Where it is to lie; nothing may be there.

    Raises:
        UserError: If it is no whole backup, a file differs from its SHA-256, or there is something at `data_root`.
    """
    sums = _read_manifest(backup)
    if data_root.exists() and any(data_root.iterdir()):
        raise UserError(f"{data_root} is not empty: move it aside first, or set EV_DATA_DIR to another folder.")
    data_root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=data_root.parent))
    n_bytes = 0
    try:
        for path, expected in sums.items():
            if not (backup / path).is_file() or _copy(backup / path, partial / path) != expected:
                raise UserError(f"{backup / path} is not what was stored (its SHA-256 differs): take another backup.")
            n_bytes += (partial / path).stat().st_size
        partial.chmod(0o755)
        if data_root.exists():
            data_root.rmdir()
        partial.rename(data_root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    Store(data_root).rebuild_catalogue()
    return Backup(data_root, len(sums), n_bytes)


def newest(folder: Path) -> Path | None:
    """Return the newest whole backup in a folder of backups."""
    return max((found.parent for found in folder.glob(f"[0-9]*/{MANIFEST}")), default=None)


def _read_manifest(backup: Path) -> dict[str, str]:
    try:
        lines = (backup / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{backup} is no whole backup: it has no {MANIFEST}.") from None
    return {path: sha for sha, _, path in (line.partition("  ") for line in lines)}


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if _is_kept(here / name))
        for name in sorted(names):
            is_lock = name.endswith((".lock", *_BESIDE_DATABASES))
            if not is_lock and _is_kept(here / name) and (root / here / name).is_file():
                yield here / name


def _is_kept(path: Path) -> bool:
    return not path.name.startswith(".tmp-") and str(path) not in _LEFT_OUT


def _link(old: Path, source: Path, target: Path) -> bool:
    """Link a file of the backup before, if it is the same by size and time; return whether it was."""
    if source.suffix in _DATABASES:
        return False  # what was written last may be in the file beside it
    ours = source.stat()
    try:
        theirs = old.stat()
        if (ours.st_size, ours.st_mtime_ns, ours.st_mode) != (theirs.st_size, theirs.st_mtime_ns, theirs.st_mode):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(old)
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> str:
    """Copy a file with its time and permissions; return the SHA-256 of the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in _DATABASES and source.exists():
        # Only SQLite itself copies a database that somebody writes.
        with (
            contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    else:
        shutil.copyfile(source, target)
    shutil.copystat(source, target)
    return sha256_of(target)


def _check_whole(backup: Path) -> None:
    """Raise a `UserError` if a pointer names what is not there, as where it was pruned meanwhile."""
    for pointer in backup.glob("tables/*/*/CURRENT"):
        version = pointer.read_text().strip()
        for suffix in (".json", ".parquet"):
            if not (pointer.parent / f"{version}{suffix}").is_file():
                raise UserError(f"{pointer.parent.name}: {version}{suffix} was deleted while it was copied: try again.")
