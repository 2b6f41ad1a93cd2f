"""The SQL of `dbt_like_sql`: models and assertions, plain files of one SELECT each, read and checked before a run.

A model's name is its file's name, which is also its view and its asset. Dependencies come from parsing the SQL, so
nobody writes them down twice. Names and types are checked by DuckDB itself, on tables without rows, so what loads
also runs in a plain client.

What does not belong here: running them (`lineage.catalogue`, `lineage.assertions`), following columns
(`lineage.columns`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import duckdb

from ev_platform.errors import UserError
from ev_platform.lineage.schema import HISTORY, built_in
from ev_platform.records import TABLES

SQL_ROOT = Path(__file__).resolve().parents[2] / "dbt_like_sql"
Severity = Literal["error", "warn"]
_BY_HAND = {"reviews", "takedowns"}  # written by commands, made by no asset


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a model: its name, DuckDB's name of its type, and what it means where that is not obvious."""

    name: str
    type: str
    description: str | None


@dataclass(frozen=True, slots=True)
class SqlModel:
    """One `.sql` file: its view's name, layer (folder), text, what it reads (by place), description and columns."""

    name: str
    layer: str
    sql: str
    reads: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Assertion:
    """One file that selects failing rows, each with its task.

    Attributes:
        name: File name, which is also the check's name.
        sql: The SELECT.
        reads: Tables and models, by place in the text.
        description: The first comment.
        severity: What a failing row means for whoever reads the page.
        asset: Whose check it is.
    """

    name: str
    sql: str
    reads: tuple[str, ...]
    description: str
    severity: Severity
    asset: str


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    sql: str
    reads: Mapping[str, int]  # line of the first mention


@cache
def load_models(root: Path = SQL_ROOT) -> tuple[SqlModel, ...]:
    """Parse and check every model below `root/models`, in an order in which each comes after what it reads.

    Raises:
        UserError: With the file and line, if one does not parse, reads an unknown table or column, if two models read
            each other, or if `models.yml` describes what does not exist.
    """
    files = {path.stem: _parse(path) for path in sorted((root / "models").glob("*/*.sql"))}
    order = _order(root, files)
    with _checker(built_in(), files.values()) as connection:
        columns = {name: _columns(connection, files[name], name) for name in order}
    described = _descriptions(root / "models.yml", columns)
    return tuple(
        SqlModel(
            name,
            files[name].path.parent.name,
            files[name].sql,
            tuple(files[name].reads),
            described.get(name, {}).get("description", ""),
            tuple(
                Column(column, kind, described.get(name, {}).get("columns", {}).get(column))
                for column, kind in columns[name].items()
            ),
        )
        for name in order
    )


@cache
def load_assertions(root: Path = SQL_ROOT) -> tuple[Assertion, ...]:
    """Parse and check every `root/tests/assert_*.sql`.

    Raises:
        UserError: As `load_models`, or if there is no column `task`, or no asset to be a check of.
    """
    files = [_parse(path) for path in sorted((root / "tests").glob("assert_*.sql"))]
    models = {model.name: {c.name: c.type for c in model.columns} for model in load_models(root)}
    with _checker({**built_in(), **models}, files) as connection:
        for file in files:
            _known(file, [*built_in(), *models])
            if "task" not in _columns(connection, file, "failing"):
                raise UserError(f"{file.path}: select the column `task` too, so that each task has rows of its own.")
            connection.execute("DROP VIEW failing")
    return tuple(_assertion(file, models) for file in files)


def asset_of(table: str, models: Mapping[str, Any]) -> str | None:
    """Return the asset that makes what a model reads under this name, None where no asset does."""
    name = table.removesuffix(HISTORY)
    return name if name in models or (name in TABLES and name not in _BY_HAND) else None


def _parse(path: Path) -> _File:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    sql = path.read_text(encoding="utf-8")
    try:
        kinds = [statement.type for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        raise _refused(path, sql, error) from error
    if kinds != [duckdb.StatementType.SELECT]:
        raise UserError(f"{path}: it has to hold one SELECT, and nothing else.")
    try:
        tree = sqlglot.parse_one(sql, read="duckdb")
    except SqlglotError as error:
        details = (getattr(error, "errors", None) or [{}])[0]
        raise UserError(
            f"{path}, line {details.get('line', 1)}: DuckDB takes it, but sqlglot, which finds the lineage, does not: "
            f"{details.get('description') or ' '.join(str(error).split())}."
        ) from error
    local = {cte.alias for cte in tree.find_all(exp.CTE)}
    tables = [t for t in tree.find_all(exp.Table) if t.name and t.name not in local]
    reads: dict[str, int] = {}
    for table in sorted(tables, key=lambda t: t.this.meta["start"]):
        reads.setdefault(table.name, table.this.meta["line"])
    return _File(path, sql, reads)


def _refused(path: Path, sql: str, error: duckdb.Error) -> UserError:
    said, _, where = str(error).partition("\nLINE ")
    line = int(where.split(":")[0]) if where else 1
    name = re.search(r'"(\w+)"', said)
    if not where and name and (found := re.search(rf"\b{name[1]}\b", sql)):
        line = sql.count("\n", 0, found.start()) + 1  # of a bad USING DuckDB tells the name alone
    return UserError(f"{path}, line {line}: {' '.join(said.split())}")


def _known(file: _File, tables: list[str]) -> None:
    for table, line in file.reads.items():
        if table not in tables:
            near = get_close_matches(table, tables, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UserError(f"{file.path}, line {line}: it reads the table {table!r}, which does not exist{hint}")


def _order(root: Path, files: Mapping[str, _File]) -> list[str]:
    for name, file in files.items():
        if name in built_in():
            raise UserError(f"{file.path}: there is a table {name!r} already; give the file another name.")
        _known(file, [*built_in(), *files])
    try:
        return list(TopologicalSorter({n: [r for r in f.reads if r in files] for n, f in files.items()}).static_order())
    except CycleError as error:
        circle = " reads ".join(reversed(error.args[1]))
        raise UserError(f"{root / 'models'}: the SQL models read each other in a circle: {circle}.") from error


def _checker(tables: Mapping[str, Mapping[str, str]], files: Iterable[_File]) -> duckdb.DuckDBPyConnection:
    """Return a database with those of the tables that the files read, without rows."""
    connection = duckdb.connect(":memory:")
    read = {name for file in files for name in file.reads if name in tables}
    for name in sorted(read):
        columns = ", ".join(f'"{column}" {kind}' for column, kind in tables[name].items())
        connection.execute(f"CREATE TABLE {name} ({columns})")
    return connection


def _columns(connection: duckdb.DuckDBPyConnection, file: _File, view: str) -> dict[str, str]:
    try:
        connection.execute(f"CREATE VIEW {view} AS {file.sql}")  # on one line: DuckDB counts from here
    except duckdb.Error as error:
        raise _refused(file.path, file.sql, error) from error
    return {name: str(kind) for name, kind, *_ in connection.execute(f"DESCRIBE {view}").fetchall()}


def _descriptions(path: Path, columns: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    import yaml

    described = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, entry in described.items():
        if name not in columns:
            raise UserError(f"{path}: it describes {name!r}, but there is no such SQL model.")
        for column in entry.get("columns", {}):
            if column not in columns[name]:
                raise UserError(f"{path}: it describes the column {column!r}, which the model {name!r} does not have.")
    return described


def _assertion(file: _File, models: Mapping[str, Any]) -> Assertion:
    said, settings = [], {"severity": "error", "asset": ""}
    for line in file.sql.splitlines():
        if not line.startswith("--"):
            break
        name, _, value = line.removeprefix("--").strip().partition(": ")
        if name in settings:
            settings[name] = value.strip()
        else:
            said.append(line.removeprefix("--").strip())
    if settings["severity"] not in ("error", "warn"):
        raise UserError(f"{file.path}: the severity is {settings['severity']!r}; it can be error or warn.")
    candidates = [settings["asset"]] if settings["asset"] else list(file.reads)
    assets = [asset for table in candidates if (asset := asset_of(table, models))]
    if not assets:
        raise UserError(f"{file.path}: of {', '.join(candidates)} none is an asset: name one, as `-- asset: chunks`.")
    severity: Severity = "warn" if settings["severity"] == "warn" else "error"
    return Assertion(file.path.stem, file.sql, tuple(file.reads), " ".join(said), severity, assets[0])
