"""Running the assertions of `dbt_like_sql/tests`: how many rows fail, and the first of them.

What belongs here: reading the catalogue for one assertion. What does not: the files (`lineage.models`), the checks that
a person sees in the UI (`defs.lineage`).
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import polars as pl

from ev_platform.lineage.catalogue import open_catalogue
from ev_platform.lineage.models import Assertion
from ev_platform.storage import Store

MAX_ROWS = 10  # shown; all are counted


@dataclass(frozen=True, slots=True)
class Failing:
    """What an assertion found: the number of failing rows, and the first `MAX_ROWS` of them as text."""

    n_rows: int
    first: pl.DataFrame


def failing_rows(store: Store, assertion: Assertion, task: str | None = None) -> Failing:
    """Query the catalogue for the rows that an assertion says should not be there.

    Args:
        store: Its catalogue is brought up to date where an older version of the platform built it.
        assertion: What to ask.
        task: Only the rows of this one; of all tasks without.
    """
    with open_catalogue(store) as connection:
        rows = connection.sql(assertion.sql)
        if task is not None:
            rows = rows.filter(duckdb.ColumnExpression("task") == duckdb.ConstantExpression(task))
        (count,) = rows.count("*").fetchall()[0]
        return Failing(count, text_frame(rows.limit(MAX_ROWS)) if count else pl.DataFrame())


def text_frame(rows: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    """Return a relation's rows as text, which every type of DuckDB has."""
    return pl.DataFrame(
        [[None if cell is None else str(cell) for cell in row] for row in rows.fetchall()],
        schema=dict.fromkeys(rows.columns, pl.String),
        orient="row",
    )
