"""From any id back to its sources, and forward to all that depends on it.

A trace counts all that it reaches, and lists the first of each: counts are exact, lists are capped and say by how much.

What does not belong here: how edges are stored (`index`), what is told of a thing (`trace_facts`), how a trace is shown
(`trace_show`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import duckdb
import numpy as np

from ev_platform.errors import UserError
from ev_platform.lineage.index import (
    Index,
    Keys,
    Pairs,
    Source,
    distinct,
    key_of,
    tasks_of,
)
from ev_platform.lineage.reach import MAX_DEPTH, count, steps
from ev_platform.lineage.relations import RELATIONS
from ev_platform.lineage.trace_facts import KINDS, At, Node, describe
from ev_platform.storage import Store

Direction = Literal["back", "forward", "both"]
SCHEMA = 1  # of the JSON
MAX_NODES = 400  # listed in one direction, however many there are
MAX_ID = 2_000  # characters
_SUGGESTIONS = 8
_FORMS = {"doc": "document", "chk": "chunk", "exm": "example", "prd": "prediction", "call": "call", "fdb": "feedback"}


@dataclass(frozen=True, slots=True)
class Edge:
    """That a child was made from, trained on, or says something of a parent; ids."""

    parent: str
    child: str


@dataclass(frozen=True, slots=True)
class Unlisted:
    """How many things of a kind a listed one leads to, beside those that are listed with it."""

    id: str
    kind: str
    n: int


@dataclass(frozen=True, slots=True)
class Side:
    """One direction of a trace.

    Attributes:
        counts: Things reached, by kind, without the root; exact to the given depth.
        nodes: Those that are listed, nearest first.
        edges: Between listed ones and the root.
        unlisted: What the lists leave out.
    """

    counts: dict[str, int]
    nodes: list[Node]
    edges: list[Edge]
    unlisted: list[Unlisted]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one id of one task came from, and what came of it."""

    task: str
    root: Node
    back: Side | None
    forward: Side | None

    def as_dict(self) -> dict[str, Any]:
        """Return the documented JSON form: nodes, edges, and for each direction the counts and what is not listed."""
        sides = [(name, side) for name in ("back", "forward") if (side := getattr(self, name)) is not None]
        nodes = {self.root.id: self.root} | {node.id: node for _, side in sides for node in side.nodes}
        edges = dict.fromkeys(edge for _, side in sides for edge in side.edges)
        return {
            "schema": SCHEMA,
            "task": self.task,
            "id": self.root.id,
            "kind": self.root.kind,
            "nodes": [asdict(node) for node in nodes.values()],
            "edges": [asdict(edge) for edge in edges],
            **{name: {"counts": s.counts, "unlisted": [asdict(u) for u in s.unlisted]} for name, s in sides},
        }


def trace(
    store: Store,
    name: str,
    *,
    task: str | None = None,
    direction: Direction = "both",
    depth: int = MAX_DEPTH,
    limit: int = 10,
    progress: Callable[[list[Source]], Iterator[Source]] = iter,
) -> list[Trace]:
    """Trace an id, an address, a model version, or the beginning of one that nothing else begins with.

    Args:
        store: Data folder.
        name: What to trace.
        task: Only in this task; the same address may be a source of several.
        direction: To the sources, to what depends on it, or both.
        depth: Steps from it at most; as many as `MAX_DEPTH` limit what is listed only.
        limit: Things of one kind that are listed with one thing at most.
        progress: See `Index`.

    Returns:
        One trace for each task that has it, in the order of their names.

    Raises:
        UserError: If nothing has the id, or several things begin so.
    """
    if not name.strip() or len(name) > MAX_ID:
        raise UserError(f"An id or an address to trace has 1 to {MAX_ID} characters, and this one {len(name)}.")
    store.refresh()
    tasks = tasks_of(store)
    if task is not None and task not in tasks:
        raise UserError(f"There is no task {task} in {store.root}; there are: {', '.join(tasks) or 'none yet'}.")
    indexes = [Index(store, one, progress) for one in ([task] if task else tasks)]
    found = _find(indexes, name)
    if not found and task is None:
        found = _find([Index(store, "", progress)], name)  # requests that named no task
    if not found:
        begun = sorted({full for index in indexes for full in _begun(index, name)})
        if len(begun) > 1:
            more = ", and more" if len(begun) > _SUGGESTIONS else ""
            raise UserError(f"Several ids begin with {name}: {', '.join(begun[:_SUGGESTIONS])}{more}; give more of it.")
        if not begun:
            raise UserError(_not_found(store, name))
        found = _find(indexes, begun[0])
    return [_trace(index, root, direction, depth, limit) for index, root in found]


def _trace(index: Index, root: At, direction: Direction, depth: int, limit: int) -> Trace:
    back = _follow(index, root, depth, limit, down=False) if direction != "forward" else None
    forward = _follow(index, root, depth, limit, down=True) if direction != "back" else None
    listed = [at for side in (back, forward) if side for at in side.found.values()]
    nodes = describe(index, listed) | describe(index, [root], with_text=True)
    return Trace(
        index.task,
        nodes[root.kind, root.key],
        None if back is None else back.side(nodes, down=False),
        None if forward is None else forward.side(nodes, down=True),
    )


# ---- what an id names ----


def _find(indexes: list[Index], name: str) -> list[tuple[Index, At]]:
    key = np.array([key_of(name)], np.uint64)
    found = []
    for index in indexes:
        for number, piece in enumerate(index.pieces):
            at = next(iter(_named_by(piece.source, piece.edges, number, key)), None)
            if at is not None:
                found.append((index, at))
                break
    return found


def _named_by(source: Source, edges: list[np.ndarray], number: int, key: Keys) -> Iterator[At]:
    for relation, columns in zip(RELATIONS[source.table], edges, strict=True):
        for kind, (near, _, rows) in ((relation.parent, columns[:3]), (relation.child, columns[3:])):
            at = int(np.searchsorted(near, key)[0])
            if at < near.size and near[at] == key[0]:
                yield At(kind, int(key[0]), number, int(rows[at]))


def _begun(index: Index, name: str) -> list[str]:
    """Return ids that begin so, one more than are suggested at most; of bodies, the hash may begin so."""
    own = _FORMS.get(name.partition("_")[0])
    queries = []
    for piece in index.pieces:
        done = set()
        for relation in RELATIONS[piece.source.table]:
            for kind, end in ((relation.parent, "parent"), (relation.child, "child")):
                is_described = piece.source.table in KINDS[kind].tables and kind not in done
                if is_described and (kind == own if own else kind not in _FORMS.values()):
                    done.add(kind)
                    sql = piece.source.edges_sql(relation, index.store)
                    hash_ = f" OR contains({end}, '#sha256=' || $1)" if kind == "body" and len(name) >= 6 else ""
                    queries.append(f"SELECT {end} AS name FROM ({sql}) WHERE starts_with({end}, $1){hash_}")
    if not queries:
        return []
    with duckdb.connect() as connection:
        union = " UNION ALL ".join(queries)
        rows = connection.execute(f"SELECT DISTINCT name FROM ({union}) ORDER BY 1 LIMIT {_SUGGESTIONS + 1}", [name])
        return [full for (full,) in rows.fetchall()]


def _not_found(store: Store, name: str) -> str:
    kind = _FORMS.get(name.partition("_")[0])
    if kind:
        what = f"No {KINDS[kind].one}"
    elif re.match(r"https?://", name):
        what = "No address that was fetched or linked"
    elif re.fullmatch(r".+@\d+", name):
        what = "No model version"
    else:
        what = "Nothing"
    return (
        f"{what} in {store.root} is, or begins with, {name}: copy an id from `ev-platform query`, or a whole address."
    )


# ---- how far it goes ----


Name = tuple[str, int]  # kind and key


@dataclass(slots=True)
class _Followed:
    counts: dict[str, int]
    found: dict[Name, At]
    edges: list[tuple[Name, Name]]  # near and far
    unlisted: Counter[tuple[Name, str]]

    def side(self, nodes: dict[Name, Node], *, down: bool) -> Side:
        pairs = [(near, far) if down else (far, near) for near, far in self.edges]
        return Side(
            {kind: self.counts[kind] for kind in KINDS if self.counts.get(kind)},
            [nodes[name] for name in self.found],
            [Edge(nodes[parent].id, nodes[child].id) for parent, child in pairs],
            [Unlisted(nodes[near].id, kind, n) for (near, kind), n in self.unlisted.items()],
        )


def _follow(index: Index, root: At, depth: int, limit: int, *, down: bool) -> _Followed:
    """List the first of what is reached, step by step."""
    start = (root.kind, root.key)
    followed = _Followed(count(index, root.kind, root.key, depth, down=down), {}, [], Counter())
    frontier = [start]
    for _ in range(depth):
        met: list[tuple[Name, At]] = []
        for parent, child, near, far in steps(index, root.kind, {kind for kind, _ in frontier}, down=down):
            keys = distinct(np.array([key for kind, key in frontier if kind == near], np.uint64))
            pairs = index.follow(parent, child, keys, down=down)
            firsts, counts = _firsts(pairs, limit)
            for key, end, piece, row in zip(*firsts, strict=True):
                met.append(((near, int(key)), At(far, int(end), int(piece), int(row))))
            followed.unlisted += {((near, key), far): n - limit for key, n in counts.items() if n > limit}
        # As the path of the data goes, whatever relation is asked first.
        place, kinds = {name: n for n, name in enumerate(frontier)}, list(KINDS)
        frontier = []
        for near, at in sorted(met, key=lambda pair: (place[pair[0]], kinds.index(pair[1].kind))):
            name = (at.kind, at.key)
            if name not in followed.found and name != start:
                if len(followed.found) >= MAX_NODES:
                    followed.unlisted[near, at.kind] += 1
                    continue
                followed.found[name] = at
                frontier.append(name)
            followed.edges.append((near, name))
        if not frontier:
            break
    return followed


def _firsts(pairs: Pairs, limit: int) -> tuple[Pairs, dict[int, int]]:
    """Return the first far ends of each near one, each once, and how many there are.

    They come newest file first, and as their rows stand in it.
    """
    order = np.argsort(pairs.near, kind="stable")
    near = pairs.near[order]
    starts = np.flatnonzero(near[1:] != near[:-1]) + 1
    kept: list[int] = []
    counts: dict[int, int] = {}
    for group in np.split(order, starts) if order.size else []:
        counts[int(pairs.near[group[0]])] = distinct(pairs.far[group]).size
        firsts: dict[int, int] = {}
        for at in group:
            firsts.setdefault(int(pairs.far[at]), int(at))
            if len(firsts) == limit:
                break
        kept += firsts.values()
    return Pairs(*(column[kept] for column in pairs)), counts
