"""When a model and its registered version are kept: where hardly any rows or passages changed.

What does not belong here: training (`train`), and registering (`registry`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ev_platform.storage import Record, Store

_ROWS = ("training_set", "validation_set")
# What a model is shown. Ids of a document are others as soon as a word of it is, though a row says what it said.
_SHOWN = ("question", "answer", "answers", "answer_start", "is_answerable", "context", "messages")
_PASSAGE = ("heading_path", "text")
_ASKED = ("question", "answers", "is_answerable", "context")
_SAME = ("serving_model_id", "adapter_id", "template_fingerprint", "code")
# Chosen anew from the passages of the day.
_MEASURED = ("min_score", "has_retrieval")


class Change(NamedTuple):
    """How far the rows of today are from those that a model was trained on.

    Attributes:
        n_changed: Rows that are new, gone or different.
        n_rows: Rows that it was trained on.
        before: Their versions, training set first.
    """

    n_changed: int
    n_rows: int
    before: tuple[Record, Record]


def rows_behind(store: Store, task: str, table: str, fingerprint: str) -> Record | None:
    """Return the newest version of a table with a fingerprint; None where it is no longer stored."""
    return next((it for it in reversed(store.history(table, task)) if it.fingerprint == fingerprint), None)


def change_since(store: Store, made: Record, now: Mapping[str, Record]) -> Change | None:
    """Compare the current training and validation rows with those behind a version of `adapter` or `sweep_trials`.

    Args:
        store: Where the rows lie.
        made: The version.
        now: The current versions of `training_set` and `validation_set`, by table.

    Returns:
        None where it was not trained, or its rows are no longer stored.
    """
    before = [rows_behind(store, made.task, table, made.inputs.get(table, "")) for table in _ROWS]
    if before[0] is None or before[1] is None:
        return None
    n_changed = sum(
        _n_different(store, old, now[old.table])
        for old in before
        if old and old.fingerprint != now[old.table].fingerprint
    )
    return Change(n_changed, before[0].n_rows + before[1].n_rows, (before[0], before[1]))


def version_kept(
    store: Store,
    newest: Mapping[str, Any],
    made_of: Mapping[str, Any],
    now: Mapping[str, Record],
    least: float,
) -> str:
    """Return why the newest version is kept though passages changed; empty where another one is to be registered.

    It is where it has the weights, template, code and settings of today, was asked the same questions, and hardly any
    passage is another. It goes on answering from its own.

    Args:
        store: Where the tables lie.
        newest: Row of `registered_model`.
        made_of: The row that would be registered now.
        now: The current versions of `chunks`, `benchmark` and `abstention_calibration`, by table.
        least: See `TrainingConfig.min_changed_share`.
    """
    task, chunks = now["chunks"].task, now["chunks"]
    settings = [
        {name: value for name, value in json.loads(serving).items() if name not in _MEASURED}
        for serving in (newest["serving"], made_of["serving"])
    ]
    alike = all(newest[name] == made_of[name] for name in _SAME)
    if not alike or settings[0] != settings[1] or newest["chunks_fingerprint"] == chunks.fingerprint:
        return ""
    asked = rows_behind(store, task, "benchmark", newest["benchmark_fingerprint"])
    registered = newest["registered_at"].isoformat()
    chosen = [it for it in store.history("abstention_calibration", task) if it.started_at <= registered]
    answered = rows_behind(store, task, "chunks", newest["chunks_fingerprint"])
    if asked is None or answered is None or not chosen or chosen[-1].config != now["abstention_calibration"].config:
        return ""
    if _n_different(store, asked, now["benchmark"], _ASKED):
        return ""
    n_changed = _n_different(store, answered, chunks, _PASSAGE)
    if n_changed >= least * answered.n_rows:
        return ""
    return (
        f"{newest['model_version']} is kept: {n_changed} of the {answered.n_rows} passages that it answers from "
        f"changed, less than training.min_changed_share ({least:g})"
    )


def _n_different(store: Store, one: Record, other: Record, columns: tuple[str, ...] = _SHOWN) -> int:
    old, new = (
        Counter(store.read(it.table, it.task, it.version).select(columns).write_ndjson().splitlines())
        for it in (one, other)
    )
    # A row that became another is one change, not a row gone and a row come.
    return max((new - old).total(), (old - new).total())
