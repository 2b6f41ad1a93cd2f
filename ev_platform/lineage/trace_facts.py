"""What a traced thing is called and what is told of it: read from the row that the index points to.

What does not belong here: which things are joined (`index`), how far a trace goes (`trace`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

import duckdb
import numpy as np
import polars as pl

from ev_platform.lineage.index import Index, Source, distinct, key_of
from ev_platform.lineage.relations import RELATIONS

MAX_TEXT = 160  # characters of a question, an answer or a passage
Fact = str | int | float | bool


class At(NamedTuple):
    """A node as the index knows it: its kind, its id's 64 bits, and a row that names it."""

    kind: str
    key: int
    piece: int
    row: int


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in a trace.

    Attributes:
        id: As it stands in the tables; see `KINDS` for those that have no column.
        kind: One of `KINDS`.
        label: What a person knows it by: a title, a heading, a question.
        facts: By name; what is not known is left out.
        is_stored: Whether a row still tells of it; what was pruned is known by id only.
    """

    id: str
    kind: str
    label: str = ""
    facts: dict[str, Fact] = field(default_factory=dict)
    is_stored: bool = True


class Kind(NamedTuple):
    """How a kind is told of: one and many of it, the tables that describe it, the column that labels it, its facts."""

    one: str
    many: str
    tables: tuple[str, ...]
    label: str
    facts: tuple[str, ...]


# In the order of the path of the data, which is the order in which they are listed.
KINDS: dict[str, Kind] = {
    "url": Kind(
        "address",
        "addresses",
        ("raw_pages", "raw_pdfs", "raw_texts"),
        "",
        ("licence", "publisher", "status", "drop_reason"),
    ),
    "body": Kind(
        "fetched body",
        "fetched bodies",
        ("raw_pages", "raw_pdfs", "raw_texts"),
        "content_type",
        ("url", "licence", "publisher", "fetched_at", "content_sha256", "n_bytes"),
    ),
    "document": Kind(
        "document",
        "documents",
        ("documents",),
        "title",
        ("url", "licence", "publisher", "language", "n_chars", "fetched_at", "drop_reason", "drop_detail"),
    ),
    "chunk": Kind("passage", "passages", ("chunks",), "heading_path", ("page", "n_tokens")),
    "call": Kind(
        "teacher call",
        "teacher calls",
        ("teacher_calls",),
        "model",
        ("purpose", "teacher", "prompt_version", "status", "cost_usd", "asked_at"),
    ),
    "example": Kind(
        "example",
        "examples",
        ("examples", "qa_candidates", "rejected_examples"),
        "question",
        ("answer", "origin", "split", "row", "teacher", "prompt_version", "cost_usd", "reject_reason"),
    ),
    "row": Kind(
        "dataset row",
        "dataset rows",
        ("training_set", "validation_set", "benchmark"),
        "question",
        ("split", "n_tokens", "n_answer_tokens"),
    ),
    "dataset": Kind(
        "table version", "table versions", ("training_set", "validation_set", "benchmark", "chunks"), "", ()
    ),
    "adapter": Kind("adapter", "adapters", ("adapter",), "base_model", ("recipe", "sha256", "n_bytes")),
    "weights": Kind(
        "weights", "weights", ("serving_model", "base_serving_model"), "base_model", ("path", "sha256", "n_bytes")
    ),
    "model": Kind(
        "model version",
        "model versions",
        ("registered_model",),
        "verdict",
        (
            "registered_at",
            "base_model",
            "recipe_fingerprint",
            "training_set_version",
            "chunks_version",
            "benchmark_fingerprint",
            "weights_sha256",
            "git_commit",
        ),
    ),
    "promotion": Kind(
        "decision",
        "decisions",
        ("promotions",),
        "decision",
        ("champion_before", "champion_after", "decided_by", "decided_at", "reason"),
    ),
    "prediction": Kind(
        "prediction",
        "predictions",
        ("predictions",),
        "question",
        ("system", "model_id", "prediction", "reference", "exact_match", "token_f1"),
    ),
    "request": Kind(
        "request",
        "requests",
        ("requests",),
        "question",
        ("answer", "asked_at", "route", "status", "model_version", "key_id", "is_abstention"),
    ),
    "feedback": Kind(
        "feedback", "feedback", ("feedback",), "rating", ("given_at", "correction", "comment", "question", "key_id")
    ),
}
_COLUMN = {
    "document": "document_id",
    "chunk": "chunk_id",
    "call": "call_id",
    "example": "example_id",
    "adapter": "artifact_id",
    "weights": "artifact_id",
    "model": "model_version",
    "prediction": "prediction_id",
    "request": "request_id",
    "feedback": "feedback_id",
}
# Columns that an id is made of where it is no column itself.
_PARTS = {
    "url": ("url", "final_url"),
    "body": ("url", "content_sha256"),
    "row": ("example_id",),
    "dataset": (),
    "promotion": ("model_version",),
}


def describe(index: Index, found: Iterable[At], *, with_text: bool = False) -> dict[tuple[str, int], Node]:
    """Return what is told of nodes, by kind and key; passages and documents with the beginning of their text if asked.

    Text is most of what a file holds, and takes six times as long to read as all the rest of a passage.
    """
    missing = {(at.kind, at.key): at for at in found}
    homes: list[At] = []
    for kind, described in KINDS.items():
        keys = distinct(np.array([key for k, key in missing if k == kind], np.uint64))
        for table in described.tables:
            here = [At(kind, *located) for located in index.locate(table, kind, keys)]
            homes += here
            keys = np.setdiff1d(keys, np.array([at.key for at in here], np.uint64))
    nodes = dict(_read(index, sorted(homes, key=lambda at: (at.piece, at.kind, at.row)), with_text))
    # What is named but nowhere described: its version was pruned, or its log has expired.
    for name, at in missing.items():
        if name not in nodes:
            nodes[name] = Node(_named(index, at), at.kind, is_stored=False)
    return nodes


def _read(index: Index, homes: list[At], with_text: bool) -> Iterator[tuple[tuple[str, int], Node]]:
    queries, groups = [], []
    for piece, group in groupby(homes, key=lambda at: at.piece):
        source, rows = index.pieces[piece].source, list(group)
        wanted = {
            name
            for kind in {at.kind for at in rows}
            for name in (*_columns(kind), KINDS[kind].label, *_facts(kind, with_text))
        }
        # A version that an older release wrote may lack a column.
        columns = [name for name in pl.read_parquet_schema(source.file) if name in wanted]
        scan = pl.scan_parquet(source.file, hive_partitioning=False, glob=False).select(columns or pl.first())
        numbers = sorted({at.row for at in rows})
        # Rows that lie together are read together.
        runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
        queries.append(pl.concat([scan.slice(run[0][1], len(run)) for run in runs]))
        groups.append((source, rows, {number: n for n, number in enumerate(numbers)}))
    for (source, rows, position), frame in zip(groups, pl.collect_all(queries), strict=True):
        for at in rows:
            yield (at.kind, at.key), _node(index, source, at, frame.row(position[at.row], named=True), with_text)


def _facts(kind: str, with_text: bool) -> tuple[str, ...]:
    return (*KINDS[kind].facts, "text") if with_text else KINDS[kind].facts


def _columns(kind: str) -> tuple[str, ...]:
    return (_COLUMN[kind],) if kind in _COLUMN else _PARTS[kind]


def _node(index: Index, source: Source, at: At, row: dict[str, Any], with_text: bool) -> Node:
    kind = KINDS[at.kind]
    if at.kind == "dataset":
        record = index.store.record(source.table, source.task, source.version)
        facts = {"n_rows": record.n_rows, "version": record.version, "finished_at": record.finished_at[:19] + "+00:00"}
        return Node(source.dataset, at.kind, source.table.replace("_", " "), facts)
    label = row.get(kind.label)
    facts = {name: _fact(row[name]) for name in _facts(at.kind, with_text) if row.get(name) is not None}
    return Node(_id(source, at, row), at.kind, "" if label is None else str(_fact(label)), facts)


def _fact(value: Any) -> Fact:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 2].rstrip() + " …"
    return value


def _id(source: Source, at: At, row: dict[str, Any]) -> str:
    if at.kind in _COLUMN:
        return row[_COLUMN[at.kind]]
    if at.kind == "url":
        return next(row[name] for name in _PARTS["url"] if key_of(row[name]) == at.key)
    if at.kind == "body":
        return f"{row['url']}#sha256={row['content_sha256']}"
    if at.kind == "row":
        return f"{source.dataset}/{row['example_id']}"
    return f"{row['model_version']}#{at.row + 1}"


def _named(index: Index, at: At) -> str:
    """Return the id of what only other rows name, from the one that was met."""
    source = index.pieces[at.piece].source
    with duckdb.connect() as connection:
        for relation in RELATIONS[source.table]:
            if at.kind in (relation.parent, relation.child):
                sql = source.edges_sql(relation, index.store)
                for ends in connection.execute(f"SELECT parent, child FROM ({sql}) WHERE row = ?", [at.row]).fetchall():
                    for name in ends:
                        if name is not None and key_of(name) == at.key:
                            return name
    raise LookupError(f"{source.file}: row {at.row} does not name the {at.kind} it is listed for")
