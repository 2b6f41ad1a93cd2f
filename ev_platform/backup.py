"""Backups of the data folder, taken while it is in use: plain folders of plain files, with a list of their SHA-256.

A table's files never change; only the pointers that name them do, and each is moved after what it names is there. So
pointers are copied first and files after them: what a copied pointer names had been stored before. A backup is in the
state of a store whose process was killed at that moment, which a next run takes up from.

What does not belong here: databases of other servers (`pg_dump`) and object stores, which keep versions by themselves.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import sha256_of
from ev_platform.storage import Store, now

MANIFEST = "MANIFEST.sha256"  # as `sha256sum --check` reads it
_PARTIAL = ".partial-"
_RESTORING = ".restoring-"  # a name of its own: a backup removes what killed backups left beside it
# Made anew from the rest, of the running process only, or of a training that goes on from its last step at most.
_LEFT_OUT = ("ev.duckdb", "checkpoints")
_DATABASE = b"SQLite format 3\0"  # how each begins, whatever its name; Windows' Thumbs.db is none
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
        UserError: If there is nothing to back up, `into` lies in it, another backup into it is going on, a folder or
            database cannot be read or is a link to nowhere, or files are deleted faster than they are copied.
    """
    data_root, into = data_root.resolve(), into.resolve()
    if not (data_root / "tables").is_dir():
        raise UserError(f"{data_root} is no data folder: set EV_DATA_DIR to the one to back up.")
    if into.is_relative_to(data_root):
        raise UserError(f"{into} lies in the data folder itself: choose a folder on another disk.")
    into.mkdir(parents=True, exist_ok=True)
    with _turn(into):
        for left in into.glob(_PARTIAL + 8 * "?"):  # by a backup that was killed
            shutil.rmtree(left, ignore_errors=True)
        target = into / f"{now():%Y%m%dT%H%M%SZ}"
        if target.exists():
            raise UserError(f"{target} is there already: wait a second.")
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=into))
        try:
            sums, n_linked = _copy_all(data_root, partial, newest(into))
            _check_whole(partial)
            write_atomic(partial / MANIFEST, b"".join(_line(path, sums[path]) for path in sorted(sums)))
            partial.rename(target)
        except PermissionError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{error.filename} cannot be read or written ({error.strerror}): take the backup as the owner of both "
                "folders."
            ) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    n_bytes = sum((target / path).stat().st_size for path in sums)
    return Backup(target, len(sums), n_bytes, n_linked)


@contextlib.contextmanager
def _turn(into: Path) -> Iterator[None]:
    lock = FileLock(into / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another backup into {into} is going on: wait until it has ended.") from None
    try:
        yield
    finally:
        lock.release()


def _copy_all(data_root: Path, partial: Path, before: Path | None) -> tuple[dict[str, str], int]:
    """Copy or link every file; return the SHA-256 of each, and how many are linked."""
    known = _read_manifest(before) if before else {}
    sums: dict[str, str] = {}
    n_linked = 0
    for belongs in _ORDER:
        for _ in range(_MOST_WALKS):
            todo = [path for path in _files(data_root, partial) if belongs(path) and str(path) not in sums]
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
    return sums, n_linked


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
    partial = Path(tempfile.mkdtemp(prefix=_RESTORING, dir=data_root.parent))
    n_bytes = 0
    try:
        for path, expected in sums.items():
            if not (backup / path).is_file() or _copy(backup / path, partial / path, by=shutil.copyfile) != expected:
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


# As `sha256sum` writes them: a line with a name that would break it begins with a backslash.
_ESCAPED = {b"\\": rb"\\", b"\n": rb"\n", b"\r": rb"\r"}
_MEANT = {escaped: byte for byte, escaped in _ESCAPED.items()}


def _line(path: str, sha: str) -> bytes:
    name = os.fsencode(path)
    if b"\n" not in name and b"\r" not in name:
        return sha.encode() + b"  " + name + b"\n"
    return b"\\" + sha.encode() + b"  " + re.sub(rb"[\\\n\r]", lambda found: _ESCAPED[found[0]], name) + b"\n"


def _read_manifest(backup: Path) -> dict[str, str]:
    try:
        lines = (backup / MANIFEST).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"{backup} is no whole backup: it has no {MANIFEST}.") from None
    sums = {}
    for line in filter(None, lines):
        sha, _, name = line.removeprefix(b"\\").partition(b"  ")
        if line.startswith(b"\\"):
            name = re.sub(rb"\\[\\nr]", lambda found: _MEANT[found[0]], name)
        sums[os.fsdecode(name)] = sha.decode()
    return sums


def _files(root: Path, into: Path, here: Path = Path(), above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield what belongs into a backup; links are followed, since a big folder may lie on a disk of its own."""
    real = (root / here).resolve()
    if real in above:
        return  # a link to a folder that it lies in
    if into.is_relative_to(real):
        raise UserError(f"{root / here} leads to {real}, where the backups are: choose a folder elsewhere for them.")
    above = (*above, real)
    try:
        names = sorted(entry.name for entry in os.scandir(root / here))
    except FileNotFoundError:
        return  # pruned meanwhile
    for name in names:
        path, file = here / name, root / here / name
        if not _is_kept(path):
            continue
        if file.is_dir():
            yield from _files(root, into, path, above)
        elif file.is_file():
            if not name.endswith((".lock", *_BESIDE_DATABASES)):
                yield path
        elif file.is_symlink():
            meant = Path(os.path.realpath(file))
            # What a program left behind within its own folder is no loss; a disk that is not mounted would be.
            if not any(meant.is_relative_to(folder) for folder in above):
                raise UserError(f"{file} leads to {meant}, which is not there: mount that disk, or remove the link.")


def _is_kept(path: Path) -> bool:
    return not path.name.startswith(".tmp-") and str(path) not in _LEFT_OUT


def _link(old: Path, source: Path, target: Path) -> bool:
    """Link a file of the backup before, if it is the same by size and time; return whether it was."""
    if _is_database(source):
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


def _is_database(file: Path) -> bool:
    with file.open("rb") as data:
        return data.read(len(_DATABASE)) == _DATABASE


def _copy(source: Path, target: Path, *, by: Callable[[Path, Path], Any] | None = None) -> str:
    """Copy a file with its time and permissions; return the SHA-256 of the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only SQLite itself copies a database that somebody writes.
    (by or (_copy_database if _is_database(source) else shutil.copyfile))(source, target)
    shutil.copystat(source, target)
    return sha256_of(target)


def _copy_database(source: Path, target: Path) -> None:
    address = f"file:{quote(os.fsencode(source))}?mode=ro"
    try:
        with (
            contextlib.closing(sqlite3.connect(address, uri=True, timeout=60)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        if not source.exists():
            raise FileNotFoundError(source) from error
        raise UserError(
            f"SQLite cannot copy {source} ({error}): try again if it is in use; move it away if it is damaged."
        ) from error


def _check_whole(backup: Path) -> None:
    """Raise a `UserError` if a pointer names what is not there, as where it was pruned meanwhile."""
    for pointer in backup.glob("tables/*/*/CURRENT"):
        version = pointer.read_text().strip()
        for suffix in (".json", ".parquet"):
            if not (pointer.parent / f"{version}{suffix}").is_file():
                raise UserError(f"{pointer.parent.name}: {version}{suffix} was deleted while it was copied: try again.")
