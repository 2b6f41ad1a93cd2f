"""The columns of the tables that SQL may read, by DuckDB's types: what `lineage.catalogue` makes views of.

What belongs here: names and types of the built-in tables. What does not: their meaning (`records`) and the SQL models
over them (`lineage.models`).
"""

from __future__ import annotations

from functools import cache

import polars as pl

from ev_platform.records import SERVED, TABLES, schema_of

HISTORY = "_history"  # suffix of the view over all versions of a table
RECORD_COLUMNS = {
    "table": "VARCHAR",
    "task": "VARCHAR",
    "version": "VARCHAR",
    "fingerprint": "VARCHAR",
    "key": "VARCHAR",
    "inputs": "MAP(VARCHAR, VARCHAR)",
    "config": "JSON",
    "n_rows": "BIGINT",
    "started_at": "TIMESTAMPTZ",
    "finished_at": "TIMESTAMPTZ",
    "code_version": "VARCHAR",
    "host": "VARCHAR",
    "git_commit": "VARCHAR",
}
_TYPES = {
    pl.String: "VARCHAR",
    pl.Int64: "BIGINT",
    pl.Float64: "DOUBLE",
    pl.Float32: "FLOAT",
    pl.Boolean: "BOOLEAN",
    pl.Datetime: "TIMESTAMPTZ",
}


def duckdb_type(dtype: pl.DataType) -> str:
    """Return DuckDB's name of a column's type."""
    if isinstance(dtype, pl.List):
        return f"{duckdb_type(pl.Series(dtype=dtype.inner).dtype)}[]"
    if isinstance(dtype, pl.Struct):
        fields = (f"{field.name} {duckdb_type(pl.Series(dtype=field.dtype).dtype)}" for field in dtype.fields)
        return f"STRUCT({', '.join(fields)})"
    return _TYPES[type(dtype)]


@cache
def built_in() -> dict[str, dict[str, str]]:
    """Return the columns of every table that is there without a SQL model: table, its history, what was served."""
    found = {"materializations": RECORD_COLUMNS}
    for table in TABLES:
        columns = {"task": "VARCHAR", **{name: duckdb_type(kind) for name, kind in schema_of(table).items()}}
        found[table] = columns
        found[table + HISTORY] = {**columns, "version": "VARCHAR"}
    for table in SERVED:
        found[table] = {name: duckdb_type(kind) for name, kind in schema_of(table).items()}
    return found
