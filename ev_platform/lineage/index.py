"""Which row names which: the edges of every version of a table, sorted both ways, so that a trace is binary searches.

Versions are immutable files, so each is read once: `<data>/lineage/trace-<form>/<table>/<task>/<version>.<stamp>.npy`
holds for each relation of the table the pairs (parent, child) sorted by parent and sorted by child, and the number of
the row that says so. Ids stand there as 64 bits of their MD5 (some two of 10 million share them with a chance of one in
370,000), never text. The stamp is size and time of the version's file: a version that was rewritten in its place is
read anew, one that is gone takes its pairs with it. Deleting the folder costs time and nothing else.

What does not belong here: what joins what (`relations`), how far that is followed (`reach`, `trace`), what a row tells
(`trace_facts`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np

from ev_platform.files import write_atomic
from ev_platform.identity import fingerprint
from ev_platform.lineage.relations import FORWARD_ONLY, ONE, RELATIONS, Relation
from ev_platform.records import SERVED
from ev_platform.serving.segments import Segments, parse
from ev_platform.storage import Store

Keys = np.ndarray  # uint64, sorted, without doubles
NOTHING: Keys = np.empty(0, np.uint64)

_FORM = f"trace-{fingerprint([sorted(RELATIONS.items()), sorted(FORWARD_ONLY)])[:8]}"


def key_of(name: str) -> int:
    """Return the 64 bits that an id stands as, which are DuckDB's `md5_number_lower`."""
    return int.from_bytes(hashlib.md5(name.encode(), usedforsecurity=False).digest()[8:], "little")


class Pairs(NamedTuple):
    """Edges as columns of equal length: both ends, and where it is said."""

    near: np.ndarray
    far: np.ndarray
    piece: np.ndarray
    row: np.ndarray


@dataclass(frozen=True, slots=True)
class Source:
    """One file of rows: a version of a table, or of what was served.

    Attributes:
        table: Its table.
        task: Partition; of served rows, those that count.
        version: Name of the version; of served rows, of the file.
        file: Parquet.
        empty: File of the same table without rows, for columns that an older release did not write.
        at: Where its edges are stored; None for rows that are still being written.
    """

    table: str
    task: str
    version: str
    file: Path
    empty: Path
    at: Path | None

    @property
    def dataset(self) -> str:
        """Name of what a version of a table holds: the same rows, the same name."""
        return f"{self.table}@{self.version[-12:]}"

    def edges_sql(self, relation: Relation, store: Store) -> str:
        """Return the query on the edges that the rows say: parent, child, and the number of the row."""
        names = {"dataset": self.dataset, "inputs": f"{_inputs_of(store, self) or '[NULL]'}::VARCHAR[]"}
        for table in relation.reads:
            names[table] = _read_sql(_versions(store, table, self.task), "filename")
        where = f"WHERE coalesce(task, '') = '{self.task}'" if self.table in SERVED else ""
        return (
            f"SELECT {relation.parent_sql.format(**names)} AS parent, {relation.child_sql.format(**names)} AS child, "
            f"file_row_number AS row FROM {_read_sql([self.file, self.empty], 'file_row_number')} AS own "
            f"{relation.join_sql.format(**names)} {where}"
        )


@dataclass(slots=True)
class Piece:
    """The edges of one file: for each relation six columns, three sorted by parent and three sorted by child."""

    source: Source
    edges: list[np.ndarray]


def distinct(keys: np.ndarray) -> Keys:
    """Return keys sorted, each once; `numpy.unique` hashes, which takes thirty times as long for half a million."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if keys.size else keys


def _homes(table: str) -> set[Relation]:
    """Return the relations that say which things a table has, also of rows where one end is missing."""
    kinds = {kind for relation in RELATIONS[table] for kind in (relation.parent, relation.child)}
    return {next(r for r in RELATIONS[table] if kind in (r.parent, r.child)) for kind in kinds}


def tasks_of(store: Store) -> list[str]:
    """Return the tasks that have tables, in the order of their names."""
    return sorted({folder.name for folder in (store.root / "tables").glob("*/*") if folder.is_dir()})


@dataclass(slots=True)
class Index:
    """The edges of one task, newest file first.

    Args:
        store: Data folder.
        task: Partition; an empty string for served requests that named no task.
        progress: Given the files whose edges are not stored yet; what it yields is read.
    """

    store: Store
    task: str
    progress: Callable[[list[Source]], Iterator[Source]] = iter
    pieces: list[Piece] = field(init=False)
    _scratch: tempfile.TemporaryDirectory = field(init=False)
    _by_relation: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = field(init=False)

    def __post_init__(self) -> None:
        # Rows that are still being written, as Parquet; the folder goes with this object.
        self._scratch = tempfile.TemporaryDirectory(prefix="ev-trace-")
        sources = [s for table in RELATIONS for s in self._sources(table, Path(self._scratch.name))]
        new = [source for source in sources if source.at is None or not source.at.exists()]
        built = {source: self._build(source) for source in self.progress(new)}
        self.pieces = [Piece(s, built[s] if s in built else _load(s)) for s in sources]
        self._drop({source.at for source in sources})
        self._by_relation = {}
        for number, piece in enumerate(self.pieces):
            for relation, edges in zip(RELATIONS[piece.source.table], piece.edges, strict=True):
                self._by_relation.setdefault((relation.parent, relation.child), []).append((number, edges))

    def locate(self, table: str, kind: str, keys: Keys) -> Iterator[tuple[int, int, int]]:
        """Yield (key, piece, row) of nodes in the newest version of a table that has them."""
        relation = next(n for n, r in enumerate(RELATIONS[table]) if kind in (r.parent, r.child))
        is_parent = RELATIONS[table][relation].parent == kind
        for number, piece in enumerate(self.pieces):
            if piece.source.table != table or not keys.size:
                continue
            near, _, rows = piece.edges[relation][:3] if is_parent else piece.edges[relation][3:]
            if near.size:
                at = np.minimum(np.searchsorted(near, keys), near.size - 1)
                is_here = near[at] == keys
                yield from (
                    (int(key), number, int(row)) for key, row in zip(keys[is_here], rows[at[is_here]], strict=True)
                )
                keys = keys[~is_here]

    def relations(self) -> list[tuple[str, str]]:
        """Return the kinds, parent and child, that rows of this store join."""
        return list(self._by_relation)

    def follow(self, parent: str, child: str, keys: Keys, *, down: bool) -> Pairs:
        """Return the edges at some nodes.

        Args:
            parent: Kind.
            child: Kind.
            keys: Nodes: of the parent's kind if `down`, else of the child's.
            down: Direction.
        """
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        left = keys
        for number, edges in self._by_relation.get((parent, child), []):
            near, far, rows = edges[:3] if down else edges[3:]
            low = np.searchsorted(near, left)
            is_here = near[np.minimum(low, near.size - 1)] == left if near.size else np.zeros(left.size, bool)
            low = low[is_here]
            counts = np.searchsorted(near, left[is_here], side="right") - low
            at = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            at = at[far[at] != 0]
            if not at.size:
                continue
            found.append((near[at], far[at], np.full(at.size, number, np.int32), rows[at]))
            if (parent, child, down) in ONE:
                left = left[~is_here]
                if not left.size:
                    break
        if not found:
            return Pairs(NOTHING, NOTHING, np.empty(0, np.int32), NOTHING)
        return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def folder(self, of: str) -> Path:
        """Return the folder of what is stored of the edges of a table, or of other things of this task."""
        return self.store.root / "lineage" / _FORM / of / (self.task or "-")

    # ---- files ----

    def _sources(self, table: str, scratch: Path) -> list[Source]:
        folder = self.folder(table)
        if table in SERVED:
            return self._served(table, folder, scratch)
        if not self.task:
            return []
        *files, empty = _versions(self.store, table, self.task)
        return [self._source(table, file, empty, folder) for file in files]

    def _served(self, table: str, folder: Path, scratch: Path) -> list[Source]:
        segments = Segments(self.store.root, table)
        segments.ensure()
        empty = segments.root / "empty" / "empty.parquet"
        # Journals first, since they may be rolled meanwhile: a row met twice is the same edge.
        open_ = [
            (scratch / f"{table}-{journal.stem}.parquet", parse(table, journal.read_bytes()))
            for journal in segments.unrolled()
        ]
        for file, rows in open_:
            rows.write_parquet(file)
        live = [Source(table, self.task, file.stem, file, empty, None) for file, _ in open_]
        days = [file for day in reversed(segments.days()) for file in segments.parquet(day)]
        return live + [self._source(table, file, empty, folder) for file in days]

    def _source(self, table: str, file: Path, empty: Path, folder: Path) -> Source:
        seen = file.stat()
        at = folder / f"{file.stem}.{seen.st_size}-{seen.st_mtime_ns}.npy"
        return Source(table, self.task, file.stem, file, empty, at)

    def _build(self, source: Source) -> list[np.ndarray]:
        edges = []
        with duckdb.connect() as connection:
            for relation in RELATIONS[source.table]:
                rows = connection.execute(
                    "SELECT coalesce(md5_number_lower(parent), 0) AS parent, coalesce(md5_number_lower(child), 0) AS "
                    f"child, row::UBIGINT AS row FROM ({source.edges_sql(relation, self.store)})"
                ).fetchnumpy()
                columns = [np.ma.getdata(rows[name]).astype(np.uint64) for name in ("parent", "child", "row")]
                if relation not in _homes(source.table):
                    has_both = (columns[0] != 0) & (columns[1] != 0)
                    columns = [column[has_both] for column in columns]
                parent, child, row = columns
                down, up = np.lexsort((row, parent)), np.lexsort((row, child))
                edges.append(np.stack([parent[down], child[down], row[down], child[up], parent[up], row[up]]))
        if source.at is not None:
            header = np.array([e.shape[1] for e in edges], np.uint64)
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate([header, *(e.ravel() for e in edges)]))
            write_atomic(source.at, buffer.getvalue(), 0o600, sync=False)
        return edges

    def _drop(self, wanted: set[Path | None]) -> None:
        """Remove what no version is left of."""
        root = self.store.root / "lineage"
        for folder in root.glob("trace-*"):
            if folder.name != _FORM:
                shutil.rmtree(folder, ignore_errors=True)
        for file in (root / _FORM).glob(f"*/{self.task or '-'}/*.npy"):
            if file not in wanted:
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()


def _versions(store: Store, table: str, task: str) -> list[Path]:
    """Return the files of a task's versions of a table, newest first, and last one of that table without rows."""
    versions = sorted((store.root / "tables" / table / task).glob("*.json"), reverse=True)
    files = [file for version in versions if (file := version.with_suffix(".parquet")).exists()]
    empty = store.root / "tables" / table / "schema.parquet"
    if not empty.exists():
        store.current_files(table)
    return [*files, empty]


def _read_sql(files: list[Path], with_: str) -> str:
    """Return what DuckDB reads files by, with a column beside theirs: `filename` or `file_row_number`."""
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{names}], union_by_name = true, hive_partitioning = false, {with_} = true)"


def _inputs_of(store: Store, source: Source) -> list[str]:
    """Return the names of the datasets that an adapter was trained on, which its record tells; of others, none."""
    if source.table != "adapter":
        return []
    inputs = store.record(source.table, source.task, source.version).inputs
    return [f"{name}@{inputs[name][:12]}" for name in ("training_set", "validation_set") if name in inputs]


def _load(source: Source) -> list[np.ndarray]:
    assert source.at is not None  # noqa: S101 - rows that are still being written are built each time
    stored = np.load(source.at, mmap_mode="r").view(np.ndarray)  # slices of a memmap cost ten times as much
    relations = RELATIONS[source.table]
    sizes = [int(n) for n in stored[: len(relations)]]
    edges, start = [], len(relations)
    for n in sizes:
        edges.append(stored[start : start + 6 * n].reshape(6, n))
        start += 6 * n
    return edges
