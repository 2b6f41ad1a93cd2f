"""How much is reached from a thing, and exactly.

Nearly all that lies behind a model is what lies behind its training rows, which no longer changes: it is followed once,
and stands as sorted keys beside the index until a version that it was read from is new, rewritten or gone.

What does not belong here: which of it is listed (`trace`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np

from ev_platform.files import write_atomic
from ev_platform.identity import fingerprint
from ev_platform.lineage.index import NOTHING, Index, Keys, distinct
from ev_platform.lineage.relations import ANSWERS, FORWARD_ONLY, RELATIONS
from ev_platform.records import SERVED

MAX_DEPTH = 32  # of what is listed; as a depth to count to, it stands for no limit
_MODELS = {"adapter", "weights", "model"}


def steps(index: Index, root: str, kinds: Iterable[str], *, down: bool) -> Iterator[tuple[str, str, str, str]]:
    """Yield the relations to follow from some kinds: parent, child, and which of them is near and which far."""
    for parent, child in index.relations():
        near, far = (parent, child) if down else (child, parent)
        is_measured = not down and (parent, child) in FORWARD_ONLY
        is_answer = down and (parent, child) in ANSWERS and root not in _MODELS
        if near in kinds and not is_measured and not is_answer:
            yield parent, child, near, far


def count(index: Index, root: str, key: int, depth: int, *, down: bool) -> dict[str, int]:
    """Count what is reached from a thing of a kind, by kind, without itself.

    Args:
        index: Edges.
        root: Kind.
        key: Id, as the index knows it.
        depth: Steps at most; `MAX_DEPTH` for all of them.
        down: Direction.
    """
    start = np.array([key], np.uint64)
    frontier, seen = {root: start}, {root: [start]}  # by kind, in pieces without a key in common
    is_all, step = depth >= MAX_DEPTH, 0
    while frontier and (is_all or step < depth):
        step += 1
        if is_all and not down and "dataset" in frontier:
            for kind, keys in _behind(index, frontier.pop("dataset")).items():
                if kind == "request" and (new := _without(keys, seen.get(kind, []))).size:
                    frontier[kind] = distinct(np.concatenate([new, frontier.get(kind, NOTHING)]))
                seen[kind] = [keys, *(_without(known, [keys]) for known in seen.get(kind, []))]
        frontier = _next(index, root, frontier, seen, down=down)
    return {kind: sum(keys.size for keys in pieces) - (kind == root) for kind, pieces in seen.items()}


def _next(
    index: Index, root: str, frontier: dict[str, Keys], seen: dict[str, list[Keys]], *, down: bool
) -> dict[str, Keys]:
    """Return what is one step further and was not seen before, by kind."""
    reached: dict[str, list[Keys]] = {}
    for parent, child, near, far in steps(index, root, frontier, down=down):
        reached.setdefault(far, []).append(index.follow(parent, child, frontier[near], down=down).far)
    new = {kind: _without(distinct(np.concatenate(keys)), seen.get(kind, [])) for kind, keys in reached.items()}
    for kind, keys in new.items():
        seen.setdefault(kind, []).append(keys)
    return {kind: keys for kind, keys in new.items() if keys.size}


def _without(keys: Keys, known: list[Keys]) -> Keys:
    for piece in known:
        if piece.size and keys.size:
            keys = keys[piece[np.minimum(np.searchsorted(piece, keys), piece.size - 1)] != keys]
    return keys


def _behind(index: Index, datasets: Keys) -> dict[str, Keys]:
    """Return all that some table versions came from, by kind; requests among it, but not what was behind those."""
    tables = _tables_behind()
    read = [(piece.source.table, piece.source.at) for piece in index.pieces if piece.source.table in tables]
    of = fingerprint([(table, at.name) for table, at in read if at is not None])[:16]
    file = index.folder("behind") / f"{of}-{fingerprint(datasets.tolist())[:16]}.keys"
    kinds = sorted({relation.parent for relations in RELATIONS.values() for relation in relations})
    try:
        stored = np.load(file, mmap_mode="r").view(np.ndarray)
    except FileNotFoundError:
        found = _follow_behind(index, datasets)
        sizes = np.array([found.get(kind, NOTHING).size for kind in kinds], np.uint64)
        stored = np.concatenate([sizes, *(found.get(kind, NOTHING) for kind in kinds)])
        buffer = io.BytesIO()
        np.save(buffer, stored)
        write_atomic(file, buffer.getvalue(), 0o600, sync=False)
        for other in file.parent.iterdir():
            if other.suffix == file.suffix and not other.name.startswith(of):
                other.unlink(missing_ok=True)
    ends = len(kinds) + np.cumsum(stored[: len(kinds)].astype(np.int64))
    parts = np.split(stored[: ends[-1]], [len(kinds), *ends[:-1]])[1:]
    return {kind: keys for kind, keys in zip(kinds, parts, strict=True) if keys.size}


def _follow_behind(index: Index, datasets: Keys) -> dict[str, Keys]:
    frontier, seen = {"dataset": datasets}, {"dataset": [datasets]}
    while frontier:
        frontier = _next(index, "dataset", frontier, seen, down=False)
        frontier.pop("request", None)
    return {kind: np.sort(np.concatenate(pieces)) for kind, pieces in seen.items() if kind != "dataset"}


def _tables_behind() -> set[str]:
    """Return the tables whose rows `_follow_behind` may read."""
    kinds, before = {"dataset"}, set()
    tables: set[str] = set()
    while kinds != before:
        before = set(kinds)
        for table, relations in RELATIONS.items():
            for parent, child, *_ in relations:
                if child in kinds - {"request"} and (parent, child) not in FORWARD_ONLY:
                    kinds.add(parent)
                    tables.add(table)
    return tables - set(SERVED)
