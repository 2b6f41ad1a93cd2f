"""Column lineage of the SQL models: which columns of what they read each of their columns comes from.

What belongs here: following columns through one model's text by sqlglot. What does not: the models themselves
(`lineage.models`) and showing it (`defs.lineage`, `lineage.openlineage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ev_platform.errors import UserError
from ev_platform.lineage.models import Column, SqlModel, load_models
from ev_platform.lineage.schema import HISTORY, built_in
from ev_platform.records import SERVED, TABLES
from ev_platform.records.comments import column_texts

if TYPE_CHECKING:
    from sqlglot.schema import MappingSchema

Origins = Mapping[str, tuple[tuple[str, str], ...]]  # column -> (table, column) pairs, sorted


@cache
def column_lineage(models: tuple[SqlModel, ...] | None = None) -> dict[str, Origins]:
    """Return, for each model, where its columns come from: directly, in what the model itself reads.

    A column that counts rows, or is a constant, comes from no column. It takes 0.2 s in all, so it is for a run and not
    for loading the graph.

    Args:
        models: In an order in which each comes after what it reads; the shipped ones by default.

    Raises:
        UserError: If sqlglot cannot follow a column.
    """
    from sqlglot.schema import MappingSchema

    models = models or load_models()
    read = {table for model in models for table in model.reads}
    schema = MappingSchema({name: c for name, c in built_in().items() if name in read}, dialect="duckdb")
    found = {}
    for model in models:
        found[model.name] = _origins(model, schema)
        schema.add_table(model.name, {column.name: column.type for column in model.columns}, dialect="duckdb")
    return found


def _origins(model: SqlModel, schema: MappingSchema) -> Origins:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    file = f"dbt_like_sql/models/{model.layer}/{model.name}.sql"
    tree = sqlglot.parse_one(model.sql, read="duckdb")
    try:
        qualified = qualify(tree, schema=schema, dialect="duckdb", identify=False)
        nodes = lineage(None, qualified, schema, scope=build_scope(qualified), dialect="duckdb", trim_selects=False)
    except SqlglotError as error:
        raise UserError(f"{file}: its columns cannot be followed: {error}") from error
    if missing := {column.name for column in model.columns} - nodes.keys():
        raise UserError(f"{file}: sqlglot does not see the columns {sorted(missing)}.")
    return {
        column.name: tuple(
            sorted(
                {
                    (node.source.name, node.name.rpartition(".")[2].strip('"'))
                    for node in nodes[column.name].walk()
                    if isinstance(node.source, exp.Table)
                }
            )
        )
        for column in model.columns
    }


def described_columns(model: SqlModel) -> tuple[Column, ...]:
    """Return the shipped model's columns, each described as in `models.yml`, else as what it is a plain copy of."""
    return tuple(replace(column, description=_description(model, column)) for column in model.columns)


def _description(model: SqlModel, column: Column) -> str | None:
    # Of several versions the last one is shown: the version tells which, not what.
    origins = [o for o in column_lineage()[model.name][column.name] if o[1] != "version"]
    if column.description or len(origins) != 1 or origins[0][1] != column.name:
        return column.description
    ((table, name),) = origins
    models = {other.name: other for other in load_models()}
    if table in models:
        return _description(models[table], next(c for c in models[table].columns if c.name == name))
    rows = {**TABLES, **SERVED}.get(table.removesuffix(HISTORY))
    return column_texts(rows).get(name) if rows else None
