"""Where every table, body and weight file lies: immutable Parquet, a pointer, a sidecar record, a DuckDB catalogue.

Layout below the data folder::

    tables/<table>/<task>/<version>.parquet   one materialization, never changed afterwards
    tables/<table>/<task>/<version>.json      its sidecar record
    tables/<table>/<task>/CURRENT             the version that readers see
    blobs/<aa>/<sha256>                       fetched bytes
    artifacts/<kind>/<id>/                    weight directories
    ev.duckdb                                 views over the current Parquet files; rebuildable at any time

Publishing writes beside and renames, so a process killed at any moment leaves the previous version readable. The
catalogue is built in a file of its own and moved into place, so readers never meet a writer's lock.

With `EV_STORE_URL` the data folder is the cache of an object store that other machines write too (`remote`): what is
published or stored here goes up before anybody can read it, and what is read comes down if it is not here yet.

What does not belong here: what the rows mean (`records`) and how they are computed (the stages).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.files import FULL_DISK, write_atomic, write_atomic_at
from ev_platform.identity import fingerprint, frame_fingerprint, git_commit
from ev_platform.records import TABLES, schema_of

if TYPE_CHECKING:
    from ev_platform.remote import Remote

Frames = Mapping[str, pl.DataFrame]
# Words of strangers that nobody has read yet: for the owner's eyes, as the journal that they come from.
_PRIVATE = frozenset({"feedback_candidates"})
_VERSION_STAMP = "%Y%m%dT%H%M%S%f"
# Says of which object store a data folder is the cache.
_CACHE_OF = "CACHE_OF"
_WAITING = "blobs/waiting"
# A body follows its waiting name at once; one that has not after so long belongs to a process that was killed.
_ORPHANED_AFTER_S = 3600


@dataclass(frozen=True, slots=True)
class Record:
    """The sidecar of one materialization.

    Attributes:
        table: Table, which is also the asset's name.
        task: Partition.
        version: Names the files; sorts by time.
        fingerprint: SHA-256 of the rows' stable columns.
        key: SHA-256 of what the rows were computed from (inputs, configuration, code).
        inputs: Fingerprint of each input, by name.
        config: The configuration in force.
        n_rows: Number of rows.
        started_at: ISO 8601, UTC.
        finished_at: ISO 8601, UTC.
        code_version: Hash of the code that computed it.
        host: Machine name.
        git_commit: Commit of the checkout, where there is one.
    """

    table: str
    task: str
    version: str
    fingerprint: str
    key: str
    inputs: dict[str, str]
    config: dict[str, Any]
    n_rows: int
    started_at: str
    finished_at: str
    code_version: str
    host: str
    git_commit: str | None


@dataclass(frozen=True, slots=True)
class Built:
    """What `Store.build` gives back: the current records, and whether anything had to be computed."""

    records: dict[str, Record]
    is_unchanged: bool


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class Store:
    """Reads and publishes tables, bodies and weight directories below one data folder.

    Args:
        root: The data folder.
        url: Object store that it is a cache of; by default that of `EV_STORE_URL`, and where there is none, the data
            folder is all there is.

    Raises:
        UserError: If the folder is the cache of another store, or of none though a store is given.
    """

    def __init__(self, root: Path, url: str | None = None):
        self.root = root.resolve()
        self._remote = _open_remote(self.root, url)

    # ---- tables ----

    def _folder(self, table: str, task: str) -> Path:
        if table not in TABLES:
            raise KeyError(table)
        return self.root / "tables" / table / task

    def current(self, table: str, task: str) -> Record | None:
        """Return the record that readers see now, or None before the first materialization."""
        self._folder(table, task)  # refuses a table that is not declared
        name = f"tables/{table}/{task}/CURRENT"
        version = self.read_pointer(name)
        if version is None:
            return None
        record = self.record(table, task, version.decode().strip())
        if self._remote is not None:
            self._keep(name, version)
        return record

    def record(self, table: str, task: str, version: str) -> Record:
        """Return the record of one version."""
        self._bring_versions([f"tables/{table}/{task}/{version}"])
        return Record(**json.loads((self._folder(table, task) / f"{version}.json").read_text()))

    def history(self, table: str, task: str) -> list[Record]:
        """Return all stored records, oldest first."""
        if self._remote is not None:
            self._bring_versions(self._remote.units(f"tables/{table}/{task}"))
        return [self.record(table, task, file.stem) for file in sorted(self._folder(table, task).glob("*.json"))]

    def read(self, table: str, task: str, version: str | None = None) -> pl.DataFrame:
        """Read one version of a table, by default the current one; the empty frame where there is none yet."""
        if version is None:
            record = self.current(table, task)
            if record is None:
                return pl.DataFrame(schema=schema_of(table))
            version = record.version
        else:
            self._bring_versions([f"tables/{table}/{task}/{version}"])
        frame = pl.read_parquet(self._folder(table, task) / f"{version}.parquet")
        # A version that an older release wrote may lack a column, or have one that is no longer there.
        return frame.select(
            pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in schema_of(table).items()
        )

    def publish(
        self,
        table: str,
        task: str,
        frame: pl.DataFrame,
        *,
        key: str = "",
        inputs: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        code: str = "",
        started_at: datetime | None = None,
    ) -> Record:
        """Store a frame as the new current version of a table.

        Args:
            table: Declared in `records.TABLES`.
            task: Partition.
            frame: Exactly the table's columns.
            key: Hash of what the rows were computed from.
            inputs: Fingerprints of the inputs, by name.
            config: Configuration in force.
            code: `code_version` of what computed it.
            started_at: When the computation began.

        Raises:
            polars.exceptions.SchemaError: If the frame does not have the table's schema.
            UserError: If the disk is full, the object store cannot be written, or another machine has published since
                this one read the table; readers then see what they saw before.
        """
        schema = schema_of(table)
        if frame.schema != schema:
            differing = set(frame.schema.items()) ^ set(schema.items())
            raise pl.exceptions.SchemaError(
                f"{table}: columns differ from its declaration: {sorted(map(str, differing))}"
            )
        print_ = frame_fingerprint(table, frame)
        folder = self._folder(table, task)
        if self._remote is not None:
            self.current(table, task)  # from here on no other machine's version is overwritten unseen
        finished = _after_newest(folder, now())
        record = Record(
            table=table,
            task=task,
            version=f"{finished:{_VERSION_STAMP}}-{print_[:12]}",
            fingerprint=print_,
            key=key,
            inputs=dict(inputs or {}),
            config=dict(config or {}),
            n_rows=frame.height,
            started_at=(started_at or finished).isoformat(),
            finished_at=finished.isoformat(),
            code_version=code,
            host=platform.node(),
            git_commit=git_commit(),
        )
        buffer = io.BytesIO()
        frame.select(pl.lit(task).alias("task"), pl.all()).write_parquet(buffer, compression="zstd")
        with self._room(f"the new version of {table}; the one before stays in force"):
            mode = 0o600 if table in _PRIVATE else 0o644
            write_atomic(folder / f"{record.version}.parquet", buffer.getbuffer(), mode)
            write_atomic(folder / f"{record.version}.json", json.dumps(asdict(record), indent=1).encode())
            self._move_pointer(table, task, record.version)
        with self._room(f"the catalogue; {table} is published, and the next run shows it"):
            self.rebuild_catalogue()
        return record

    def _move_pointer(self, table: str, task: str, version: str) -> None:
        pointer = f"tables/{table}/{task}/CURRENT"
        if self._remote is None:
            write_atomic(self.root / pointer, version.encode())
            self._date_after_catalogue(self.root / pointer)
            return
        from ev_platform.remote import MovedError

        unit = f"tables/{table}/{task}/{version}"
        files = [f"{unit}.parquet", f"{unit}.json"]
        self._remote.push(unit, self.root, files)
        try:
            self.write_pointer(pointer, version.encode())
        except MovedError:
            self._remote.remove(unit)
            for file in reversed(files):
                (self.root / file).unlink()
            raise

    def build(
        self,
        tables: Sequence[str],
        task: str,
        *,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        code: str,
        compute: Callable[[], Frames],
        force: bool = False,
    ) -> Built:
        """Compute tables once: skip where the same inputs, configuration and code already gave the current version.

        Stages are keyed by the fingerprints of what they read, so where new rows equal the stored ones nothing
        downstream is computed again. A forced computation that gives the stored rows stores nothing.

        Args:
            tables: Tables that `compute` returns.
            task: Partition.
            inputs: Fingerprints of what is read, by name.
            config: What else the rows depend on (JSON values).
            code: `code_version` of the modules that compute.
            compute: Returns a frame for each table.
            force: Compute even if nothing changed.
        """
        key = fingerprint([sorted(tables), dict(inputs), dict(config), code])
        stored = {table: self.current(table, task) for table in tables}
        if not force and all(record is not None and record.key == key for record in stored.values()):
            if self._is_catalogue_behind(tables, task):
                self.rebuild_catalogue()
            return Built({t: r for t, r in stored.items() if r is not None}, is_unchanged=True)
        started = now()
        frames = compute()
        records, unchanged = {}, True
        for table in tables:
            old, frame = stored[table], frames[table]
            if old is not None and old.key == key and old.fingerprint == frame_fingerprint(table, frame):
                records[table] = old
                continue
            records[table] = self.publish(
                table, task, frame, key=key, inputs=inputs, config=config, code=code, started_at=started
            )
            unchanged = unchanged and old is not None and old.fingerprint == records[table].fingerprint
        return Built(records, is_unchanged=unchanged)

    # ---- bytes and weight directories ----

    def put_blob(self, data: bytes, *, sync: bool = True) -> tuple[str, str]:
        """Store bytes under their hash; return (sha256, path relative to the data folder).

        Args:
            data: The bytes.
            sync: Whether they must be on the disk, and in the object store, on return; without, call `sync_blobs`
                before a table names them.

        Raises:
            UserError: If the disk is full.
        """
        sha = hashlib.sha256(data).hexdigest()
        folder = f"blobs/{sha[:2]}"
        path = f"{folder}/{sha}"
        try:
            # The size tells a whole file from what a machine that lost its power left of one that was not synced.
            is_stored = os.stat(f"{self.root}/{path}").st_size == len(data)  # noqa: PTH116
        except FileNotFoundError:
            is_stored = False
        if not is_stored:
            try:
                if self._remote is not None:
                    # A second name until it is uploaded, made first, so that a killed process forgets none.
                    write_atomic_at(f"{self.root}/{_WAITING}", sha, data, 0o644, sync=sync)
                write_atomic_at(f"{self.root}/{folder}", sha, data, 0o644, sync=sync)
            except OSError as error:
                self._check_room(error, "a fetched body")
                raise
        if sync and self._remote is not None:
            self._upload_blobs()
        return sha, path

    def sync_blobs(self) -> None:
        """Bring all bytes to the disk that were stored without; 2,000 pages take 0.1 s so, and 4 s one by one."""
        os.sync()
        if self._remote is not None:
            self._upload_blobs()

    @contextlib.contextmanager
    def artifact(self, kind: str, name: Callable[[], str]) -> Iterator[Path]:
        """Yield an empty folder to fill; when the block ends without an error it becomes `artifacts/<kind>/<id>`.

        A complete artifact is never replaced: where one of that id is there already, it stays and the new one goes.

        Args:
            kind: Table that will describe it.
            name: Called at the end of the block for the id, which may depend on what was written.

        Raises:
            UserError: If the disk is full.
        """
        with self._room(f"the files of {kind}"):
            parent = self.root / "artifacts" / kind
            parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=parent, prefix=".tmp-"))
            try:
                yield scratch
                scratch.chmod(0o755)
                target = parent / name()
                if not target.exists():
                    scratch.rename(target)
                if self._remote is not None:
                    unit = f"artifacts/{kind}/{target.name}"
                    files = sorted(str(file.relative_to(self.root)) for file in target.rglob("*") if file.is_file())
                    self._remote.push(unit, self.root, files)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def artifact_path(self, kind: str, artifact_id: str) -> Path:
        """Return where an artifact lies or would lie."""
        return self.root / "artifacts" / kind / artifact_id

    def local(self, path: str) -> Path:
        """Return where a body or an artifact lies, brought from the object store if only that has it.

        Args:
            path: Relative to the data folder, as the tables name it.
        """
        self.bring([path])
        return self.root / path

    def bring(self, paths: Iterable[str]) -> None:
        """Bring bodies and artifacts from the object store that are not here, several at once.

        Args:
            paths: Relative to the data folder; what nobody has is left out.
        """
        if self._remote is None:
            return
        missing = [path for path in dict.fromkeys(paths) if not (self.root / path).exists()]
        if not missing:
            return
        blobs = [path for path in missing if path.startswith("blobs/")]
        with self._scratch() as scratch:
            self._remote.fetch_blobs(blobs, scratch)
            for path in blobs:
                self._place(scratch / path, path)
            for path, files in self._remote.fetch([path for path in missing if path not in blobs], scratch).items():
                if files:
                    self._place(scratch / path, path)

    def holds(self, path: str) -> bool:
        """Return whether a body lies here or in the object store.

        Args:
            path: Relative to the data folder.
        """
        return (self.root / path).exists() or (self._remote is not None and self._remote.has_file(path))

    def rewrite_shared(self, table: str, task: str, version: str, files: Mapping[str, bytes]) -> None:
        """Let the object store hold other files of a version: only a takedown does so, before it writes them here.

        Args:
            table: Table.
            task: Partition.
            version: Which stays its name.
            files: What is new, by suffix; the rest stays as it is here.
        """
        if self._remote is None:
            return
        unit = f"tables/{table}/{task}/{version}"
        with self._scratch() as scratch:
            names = [f"{unit}.parquet", f"{unit}.json"]
            for name in names:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(files.get(Path(name).suffix) or (self.root / name).read_bytes())
            self._remote.replace(unit, scratch, names)

    def drop(self, path: str) -> None:
        """Take an artifact, a body or a version of a table out of the object store, for every machine.

        The copies in data folders are their owners' to delete.

        Args:
            path: Relative to the data folder; of a version without the suffix.
        """
        if self._remote is not None:
            self._remote.remove(path)
            if path.startswith("blobs/"):
                self._remote.remove_files([path])
                (self.root / _WAITING / Path(path).name).unlink(missing_ok=True)  # it is not to go up any more

    # ---- small files that are replaced as a whole ----

    def read_pointer(self, name: str) -> bytes | None:
        """Return what a pointer holds now, for every machine; None where there is none.

        Args:
            name: Path relative to the data folder.
        """
        if self._remote is not None:
            return self._remote.read(name)
        try:
            with open(f"{self.root}/{name}", "rb") as file:  # noqa: PTH123 - read for every table of every asset
                return file.read()
        except FileNotFoundError:
            return None

    def write_pointer(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Replace what a pointer holds.

        Args:
            name: Path relative to the data folder.
            data: What it holds from now on.
            mode: Permissions of the file here.

        Raises:
            UserError: If another machine has replaced it since it was read here; nothing is changed then.
        """
        if self._remote is not None:
            self._remote.write(name, data)
        write_atomic(self.root / name, data, mode)

    # ---- the object store ----

    @property
    def is_shared(self) -> bool:
        """Whether other machines write this store too."""
        return self._remote is not None

    def refresh(self) -> None:
        """Bring every table as it now is, with its history, and let the catalogue show it; nothing without a remote."""
        if self._remote is None:
            return
        self._bring_versions(self._remote.units("tables/"))
        is_new = [self._keep(name, data) for name, data in self._remote.pointers("tables/").items()]
        if any(is_new) or not self.catalogue.exists():
            self.rebuild_catalogue()

    def _bring_versions(self, units: list[str]) -> None:
        if self._remote is None:
            return
        missing = [unit for unit in units if not (self.root / f"{unit}.json").exists()]
        if not missing:
            return
        with self._scratch() as scratch:
            for unit, files in self._remote.fetch(missing, scratch).items():
                for file in files:  # the sidecar last: with it the version counts
                    if unit.split("/")[1] in _PRIVATE:
                        (scratch / file).chmod(0o600)
                    self._place(scratch / file, file)

    def _keep(self, name: str, data: bytes) -> bool:
        """Let the data folder say what a pointer of the object store says; returns whether it said something else."""
        file = self.root / name
        if file.exists() and file.read_bytes() == data:
            return False
        write_atomic(file, data)
        self._date_after_catalogue(file)
        return True

    def _upload_blobs(self) -> None:
        waiting = self.root / _WAITING
        found = [f.name for f in waiting.iterdir() if not f.name.startswith(".tmp")] if waiting.is_dir() else []
        # A full disk, a kill or a takedown leaves names without a body, which no table names.
        bodies = {name: path for name in found if (self.root / (path := f"blobs/{name[:2]}/{name}")).exists()}
        if bodies and self._remote is not None:
            self._remote.upload(self.root, list(bodies.values()))
        for name in found:
            with contextlib.suppress(FileNotFoundError):
                # Another process may be between its two writes: were its name gone, its body would never go up.
                if name in bodies or time.time() - (waiting / name).stat().st_mtime > _ORPHANED_AFTER_S:
                    (waiting / name).unlink()

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        self.root.mkdir(parents=True, exist_ok=True)
        room = self._room("what comes from the object store")
        with room, tempfile.TemporaryDirectory(dir=self.root, prefix=".tmp-remote-") as scratch:
            yield Path(scratch)

    def _place(self, source: Path, path: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)  # noqa: PTH105
        except OSError:
            if not target.is_dir():  # another process was faster with the same artifact
                raise

    @contextlib.contextmanager
    def _room(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # DuckDB and Polars have errors of their own for a full disk
            self._check_room(error, what)
            raise

    def _check_room(self, error: Exception, what: str) -> None:
        if getattr(error, "errno", None) in FULL_DISK or any(os.strerror(code) in str(error) for code in FULL_DISK):
            raise UserError(
                f"The disk of {self.root} is full: there is no room for {what}. Make room and run this again; it "
                "goes on from there."
            ) from error

    # ---- catalogue ----

    @property
    def catalogue(self) -> Path:
        """The DuckDB file that anyone may open read-only at any moment."""
        return self.root / "ev.duckdb"

    def rebuild_catalogue(self) -> Path:
        """Write the catalogue anew: a view per table over its current files, `materializations`, and the SQL models."""
        from ev_platform.lineage.catalogue import build_catalogue

        shown = max((f.stat().st_mtime_ns for f in (self.root / "tables").glob("*/*/CURRENT")), default=0)
        built = build_catalogue(self)
        if built.stat().st_mtime_ns < shown:  # the clock was moved back
            os.utime(built, ns=(shown, shown))
        return built

    def _date_after_catalogue(self, pointer: Path) -> None:
        """Let a pointer be younger than the catalogue that does not show it yet, whatever the clock says."""
        with contextlib.suppress(FileNotFoundError):
            built = self.catalogue.stat().st_mtime_ns
            if pointer.stat().st_mtime_ns <= built:
                os.utime(pointer, ns=(built + 1, built + 1))

    def _is_catalogue_behind(self, tables: Sequence[str], task: str) -> bool:
        # A process killed after it moved a pointer leaves a catalogue that shows the version before.
        moved = max((self._folder(table, task) / "CURRENT").stat().st_mtime_ns for table in tables)
        return not self.catalogue.exists() or self.catalogue.stat().st_mtime_ns < moved

    def current_files(self, table: str) -> list[Path]:
        """Return the current Parquet file of every task, preceded by a zero-row file that fixes the schema."""
        folder = self.root / "tables" / table
        empty = folder / "schema.parquet"
        wanted = _stored_schema(table)
        if not empty.exists() or pl.read_parquet_schema(empty) != wanted:
            with tempfile.TemporaryFile() as buffer:
                pl.DataFrame(schema=wanted).write_parquet(buffer)
                buffer.seek(0)
                write_atomic(empty, buffer.read())
        pointers = sorted(folder.glob("*/CURRENT"))
        return [empty, *(p.parent / f"{p.read_text().strip()}.parquet" for p in pointers)]

    def all_files(self, table: str) -> list[Path]:
        """Return the Parquet files of all published versions, preceded by the zero-row file."""
        folder = self.root / "tables" / table
        # A version counts once its record is written; a lone Parquet file is what a killed process left.
        records = sorted(folder.glob("*/*.json"))
        return [folder / "schema.parquet", *(record.with_suffix(".parquet") for record in records)]


@cache
def _stored_schema(table: str) -> pl.Schema:
    return pl.Schema({"task": pl.String, **schema_of(table)})


def _after_newest(folder: Path, time: datetime) -> datetime:
    """Return a time that sorts after every version of a folder, also where the clock was moved back."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".json")]
    except FileNotFoundError:
        return time
    if not names:
        return time
    newest = datetime.strptime(max(names).partition("-")[0], _VERSION_STAMP).replace(tzinfo=UTC)
    return max(time, newest + timedelta(microseconds=1))


def _open_remote(root: Path, url: str | None) -> Remote | None:
    if url is None:
        from ev_platform.settings import get_settings

        url = get_settings().store_url
    mark = root / _CACHE_OF
    known = mark.read_text() if mark.exists() else None
    if not url:
        if known:
            raise UserError(
                f"{root} is the cache of {known}: set EV_STORE_URL to it, or choose another data folder (EV_DATA_DIR)."
            )
        return None
    from ev_platform.remote import Remote

    remote = Remote(url)
    if known is None and (root / "tables").exists():
        raise UserError(
            f"{root} was filled without EV_STORE_URL, and {remote.url} may hold something else: choose an empty data "
            "folder (EV_DATA_DIR)."
        )
    if known not in (None, remote.url):
        raise UserError(f"{root} is the cache of {known}, not of {remote.url}: choose another data folder.")
    if known is None:
        write_atomic(mark, remote.url.encode())
    return remote
