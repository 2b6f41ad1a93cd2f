"""Which rows a model is trained on: the current ones, or those of the model at hand where hardly any changed.

What does not belong here: training (`train`), and what changed rows are (`dataset`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from ev_platform.records import stable_columns
from ev_platform.storage import Record, Store

_ROWS = ("training_set", "validation_set")


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


def _n_different(store: Store, one: Record, other: Record) -> int:
    old, new = (Counter(_lines(store.read(it.table, it.task, it.version))) for it in (one, other))
    # A row that became another is one change, not a row gone and a row come.
    return max((new - old).total(), (old - new).total())


def _lines(frame: pl.DataFrame) -> list[str]:
    return frame.select(stable_columns("training_set")).write_ndjson().splitlines()
