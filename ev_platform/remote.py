"""The object store that several machines share; each one's data folder is a cache of it (`EV_STORE_URL`).

Layout below the address::

    tables/…, artifacts/…, blobs/…   the files of the data folder under the same names, never changed once complete
    complete/<unit>                  size and SHA-256 of each file of a table's version or of an artifact; written last
    current/<pointer>                the small files that move: `tables/…/CURRENT` and the registry's aliases

A unit is there once its object below `complete/` is, so what a killed upload leaves is never seen. A pointer is written
on the condition that it still is what this process read (If-Match, If-None-Match on S3): of two machines that decide
from the same state one wins, and the other is told. Any address of fsspec works; where the store has no such condition
(others than S3), a pointer is compared and then written, which leaves some milliseconds for both to win.

What does not belong here: what the files mean, and when they go up or come down (`storage`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError
from ev_platform.identity import sha256_of

_COMPLETE, _CURRENT = "complete", "current"
# Content of a pointer and what stands for this state of it; both None where there is none.
_Seen = tuple[bytes | None, str | None]
_view: ContextVar[dict[tuple[str, str], _Seen] | None] = ContextVar("view", default=None)


@contextlib.contextmanager
def one_view() -> Iterator[None]:
    """Read every pointer once within the block, so that what is decided in it is decided from one state.

    A pointer that another machine moves meanwhile then refuses to be written. Of nested blocks the outer one counts.
    """
    if _view.get() is not None:
        yield
        return
    token = _view.set({})
    try:
        yield
    finally:
        _view.reset(token)


class MovedError(UserError):
    """Another machine has moved a pointer since it was read."""


class Remote:
    """Files, units and pointers below one address.

    Args:
        url: Such as `s3://bucket/prefix`; how it is reached stands in the variables of its own library
            (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …) or of fsspec (`FSSPEC_S3_…`).

    Raises:
        UserError: If nothing is installed that speaks to such an address.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            # Other machines write too: a listing that is kept would be of an hour ago.
            self._fs, self._base = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"EV_STORE_URL is {self.url}, and nothing is installed that reads such an address ({error}); for s3:// "
                "install the extra: `pip install 'ev-platform[s3]'`."
            ) from error
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self._has_conditions = "s3" in protocols
        self._seen: dict[tuple[str, str], _Seen] = {}

    # ---- pointers ----

    def read(self, name: str) -> bytes | None:
        """Return what a pointer holds; None where there is none."""
        seen, key = self._states(), (self.url, name)
        if _view.get() is None or key not in seen:
            seen[key] = self._state(name)
        return seen[key][0]

    def write(self, name: str, data: bytes) -> None:
        """Move a pointer that still is what was read last, or where nothing was read, what it is now.

        Raises:
            MovedError: If another machine has moved it since.
        """
        seen, key = self._states(), (self.url, name)
        if key not in seen:
            seen[key] = self._state(name)
        expected = seen.pop(key)
        try:
            seen[key] = data, self._put_if(name, data, expected)
        except UserError:
            # A connection may break after the store has taken the bytes: what it holds now decides.
            now = self._state(name)
            if now[0] != data:
                if now == expected:
                    raise
                raise MovedError(
                    f"Another machine has changed {name} in {self.url} meanwhile, so nothing was changed here: look at "
                    "what it did, and run this again if it is still wanted."
                ) from None
            seen[key] = now

    def pointers(self, prefix: str) -> dict[str, bytes]:
        """Return every pointer whose name begins so, with what it holds."""
        with self._told(f"read {_CURRENT}/{prefix}"):
            found = self._fs.find(self._at(_CURRENT, prefix))
            got = self._fs.cat(found) if found else {}
        start = len(self._at(_CURRENT)) + 1
        return {path[start:]: data for path, data in sorted(_as_dict(got, found).items())}

    def _states(self) -> dict[tuple[str, str], _Seen]:
        view = _view.get()
        return self._seen if view is None else view

    def _state(self, name: str) -> _Seen:
        path = self._at(_CURRENT, name)
        with self._told(f"read {name}"):
            try:
                # The stamp first: were it newer than the bytes, a decision made from old bytes could be written.
                stamp = self._fs.info(path)["ETag"] if self._has_conditions else None
                data = self._fs.cat_file(path)
            except FileNotFoundError:
                return None, None
        return data, stamp or hashlib.sha256(data).hexdigest()

    def _put_if(self, name: str, data: bytes, expected: _Seen) -> str:
        path = self._at(_CURRENT, name)
        if not self._has_conditions and self._state(name) != expected:
            raise UserError(f"{name} has moved.")
        condition = {"IfMatch": expected[1]} if expected[1] else {"IfNoneMatch": "*"}
        with self._told(f"write {name}"):
            self._make_parent(path)
            answer = self._fs.pipe_file(path, data, **(condition if self._has_conditions else {}))
        return answer["ETag"] if self._has_conditions else hashlib.sha256(data).hexdigest()

    # ---- units ----

    def push(self, unit: str, root: Path, files: Iterable[str]) -> None:
        """Upload the files of a unit, and at last what says that it is complete; nothing where it is already.

        Args:
            unit: Such as `artifacts/adapter/adapter_1f`.
            root: Data folder.
            files: Relative to it.
        """
        if not self.has(unit):
            self.replace(unit, root, files)

    def replace(self, unit: str, root: Path, files: Iterable[str]) -> None:
        """Upload the files of a unit, whether or not it is there; whoever reads it meanwhile is told that it differs.

        Args:
            unit: As in `push`.
            root: Folder of the files.
            files: Relative to it; they go where the unit's files lie.
        """
        names = list(files)
        sums = {name: [(root / name).stat().st_size, sha256_of(root / name)] for name in names}
        self.upload(root, names)
        with self._told(f"write {unit}"):
            mark = self._at(_COMPLETE, unit)
            self._make_parent(mark)
            self._fs.pipe_file(mark, json.dumps(sums, indent=1).encode())

    def has(self, unit: str) -> bool:
        """Return whether a unit is there, complete."""
        with self._told(f"look for {unit}"):
            return self._is_there(self._at(_COMPLETE, unit))

    def units(self, prefix: str) -> list[str]:
        """Return the complete units whose name begins with a folder, in order."""
        start = len(self._at(_COMPLETE)) + 1
        with self._told(f"list {prefix}"):
            return sorted(path[start:] for path in self._fs.find(self._at(_COMPLETE, prefix)))

    def fetch(self, units: Iterable[str], folder: Path) -> dict[str, list[str]]:
        """Download units into an empty folder and compare every byte with what was uploaded.

        Returns:
            The files of each unit that is there, relative to the folder, in the order in which they were uploaded.

        Raises:
            UserError: If a file is not what was uploaded.
        """
        wanted = {self._at(_COMPLETE, unit): unit for unit in units}
        with self._told("read what is complete"):
            # Not "omit", which takes a store that is out of order for one that has lost the unit.
            got = _as_dict(self._fs.cat(list(wanted), on_error="return") if wanted else {}, list(wanted))
            for problem in got.values():
                if isinstance(problem, BaseException) and not isinstance(problem, FileNotFoundError):
                    raise problem
        sums = {wanted[path]: json.loads(data) for path, data in got.items() if not isinstance(data, Exception)}
        self._download(folder, {name: sha for of_unit in sums.values() for name, (_, sha) in of_unit.items()})
        return {unit: list(of_unit) for unit, of_unit in sums.items()}

    def remove(self, unit: str) -> None:
        """Take a unit away: first what says that it is complete, so that nobody meets half of it."""
        mark = self._at(_COMPLETE, unit)
        with self._told(f"remove {unit}"):
            try:
                files = json.loads(self._fs.cat_file(mark))
            except FileNotFoundError:
                return
            self._fs.rm_file(mark)
            self.remove_files(files)

    # ---- single files, named by their bytes ----

    def has_file(self, name: str) -> bool:
        """Return whether a file is there."""
        with self._told(f"look for {name}"):
            return self._is_there(self._at(name))

    def upload(self, root: Path, names: list[str]) -> None:
        """Upload files of the data folder, several at once."""
        if not names:
            return
        with self._told("upload"):
            paths = [self._at(name) for name in names]
            for path in () if self._has_conditions else paths:
                self._make_parent(path)
            self._fs.put([str(root / name) for name in names], paths)

    def fetch_blobs(self, names: Iterable[str], folder: Path) -> None:
        """Download files whose last part of the name is their SHA-256.

        Raises:
            UserError: If one is not there or not what its name says.
        """
        self._download(folder, {name: name.rpartition("/")[2] for name in names})

    def remove_files(self, names: Iterable[str]) -> None:
        """Take files away; those that are not there stay so."""
        for name in names:
            with self._told(f"remove {name}"), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

    def _download(self, folder: Path, sums: Mapping[str, str]) -> None:
        for name in sums:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with self._told("download"):
            if sums:
                self._fs.get([self._at(name) for name in sums], [str(folder / name) for name in sums])
        for name, sha in sums.items():
            if sha256_of(folder / name) != sha:
                raise UserError(
                    f"{name} in {self.url} is not what was uploaded (its SHA-256 differs): bring it back from a backup "
                    "of the store."
                )

    # ---- addresses ----

    def _at(self, *parts: str) -> str:
        return "/".join([self._base, *(part.rstrip("/") for part in parts)])

    def _is_there(self, path: str) -> bool:
        try:
            self._fs.info(path)  # not `exists`, which for some stores says no to any error
        except FileNotFoundError:
            return False
        return True

    def _make_parent(self, path: str) -> None:
        if not self._has_conditions:  # S3 has no folders, and asking for one would cost a request
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{self.url} lacks what it should hold ({what}): {error}.") from error
        except Exception as error:  # each store's library has errors of its own
            raise UserError(
                f"The object store {self.url} did not {what} ({type(error).__name__}: {' '.join(str(error).split())}): "
                "nothing was changed; see that it can be reached and written, then run this again."
            ) from error


def _as_dict(got: Any, paths: list[str]) -> dict[str, bytes]:
    """Return what `cat` gave for a list of paths: for a single one it may be the bytes themselves."""
    return got if isinstance(got, dict) else dict(zip(paths, [got], strict=False))
