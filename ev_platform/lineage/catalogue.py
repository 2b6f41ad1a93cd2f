"""Builds `ev.duckdb`: views over the Parquet files, current and of all versions, the sidecar records, the SQL models.

What was served grows without the graph: its views name folders, which are looked through at each query.

The platform never holds the file open for writing where readers look: it is built beside and moved into place, so
that a plain `duckdb` client can query at any moment (one DuckDB writer locks every other process out).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from ev_platform.errors import UserError
from ev_platform.identity import fingerprint
from ev_platform.lineage.models import load_models
from ev_platform.lineage.schema import HISTORY, RECORD_COLUMNS, built_in, duckdb_type
from ev_platform.records import SERVED, TABLES, schema_of
from ev_platform.serving.segments import SEGMENT, Segments

if TYPE_CHECKING:
    from ev_platform.storage import Store

_COMMENTS = """
    SELECT view_name, coalesce(comment, '') FROM duckdb_views() WHERE database_name = 'built' AND NOT internal"""


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parquet(files: list[Path], options: str = "filename = false") -> str:
    # A data folder below `env=prod` is no partition: without the option DuckDB would add a column `env`.
    names = ", ".join(_quote(str(file)) for file in files)
    return f"read_parquet([{names}], union_by_name = true, hive_partitioning = false, {options})"


def _materializations(tables: Path) -> str:
    if any(tables.glob("*/*/*.json")):
        columns = ", ".join(f"{_quote(name)}: {_quote(kind)}" for name, kind in RECORD_COLUMNS.items())
        return f"FROM read_json({_quote(str(tables / '*' / '*' / '*.json'))}, columns = {{{columns}}})"
    # A view over an empty glob fails, so an empty store gets a view without rows.
    columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in RECORD_COLUMNS.items())
    return f"SELECT {columns} WHERE false"


def _served(segments: Segments) -> str:
    """Return the query on what was served: each segment's rows from that of its files whose name sorts last."""
    segments.ensure()
    schema = schema_of(segments.table)
    columns = ", ".join(f'"{name}"' for name in schema)
    types = ", ".join(f"{_quote(name)}: {_quote(duckdb_type(dtype))}" for name, dtype in schema.items())
    parquet, journals = segments.root / "*" / "*.parquet", segments.root / "journal" / "*.jsonl"
    return f"""
        WITH every AS (
            SELECT {columns}, {SEGMENT}, parse_filename(filename) AS file
            FROM read_parquet(
                {_quote(str(parquet))}, union_by_name = true, hive_partitioning = false, filename = true
            )
            UNION ALL
            SELECT {columns}, parse_filename(filename, true), ''
            FROM read_json(
                {_quote(str(journals))},
                columns = {{{types}}}, format = 'newline_delimited', ignore_errors = true, filename = true
            )
            WHERE "{next(iter(schema))}" IS NOT NULL  -- a line that is being written, or never was to its end
        )
        SELECT {columns} FROM every
        SEMI JOIN (SELECT {SEGMENT}, max(file) AS file FROM every GROUP BY {SEGMENT}) USING ({SEGMENT}, file)"""


def build_catalogue(store: Store) -> Path:
    """Write the catalogue of a store and move it into place.

    Returns:
        Path of the catalogue.
    """
    while True:
        shown = _current(store)
        _write(store, shown)
        # Another process may have published meanwhile, and its newer catalogue may just have been replaced by this one.
        if _current(store) == shown:
            return store.catalogue


def _current(store: Store) -> dict[str, list[Path]]:
    return {table: store.current_files(table) for table in TABLES}


def _views(store: Store, current: dict[str, list[Path]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the query of every view, each after what it reads."""
    for table in TABLES:
        yield table, f"FROM {_parquet(current[table])}"
        yield (
            table + HISTORY,
            "SELECT * EXCLUDE (filename), parse_filename(filename, true) AS version "
            f"FROM {_parquet(store.all_files(table), 'filename = true')}",
        )
    yield "materializations", _materializations(store.root / "tables")
    for table in SERVED:
        yield table, _served(Segments(store.root, table))
    for model in load_models():
        yield model.name, model.sql


def _write(store: Store, current: dict[str, list[Path]]) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    target = store.catalogue
    # A published version changes two views of more than a hundred: the others are taken over. Each view's comment says
    # of which query it was made; where columns or models have changed, all are made anew.
    form = fingerprint([built_in(), [model.sql for model in load_models()]])
    views = {name: (sql, fingerprint([form, sql])) for name, sql in _views(store, current)}
    with tempfile.TemporaryDirectory(dir=store.root, prefix=".tmp-catalogue-") as scratch:
        file = Path(scratch) / "ev.duckdb"
        with duckdb.connect(":memory:") as connection:
            known = _attach_copy(connection, target, file)
            connection.execute("USE built")
            for name in known.keys() - views.keys():
                connection.execute(f'DROP VIEW "{name}"')
            for name, (sql, digest) in views.items():
                if known.get(name) != digest:
                    connection.execute(f"CREATE OR REPLACE VIEW {name} AS {sql}")
                    connection.execute(f"COMMENT ON VIEW {name} IS {_quote(digest)}")
            connection.execute("USE memory")
            connection.execute("DETACH built")
        file.chmod(0o444)
        target.with_name(target.name + ".wal").unlink(missing_ok=True)
        os.replace(file, target)  # noqa: PTH105 - the tests' fault injector watches this very call


def _attach_copy(connection: duckdb.DuckDBPyConnection, target: Path, file: Path) -> dict[str, str]:
    """Attach a copy of the catalogue, and return what its views were made of; an empty one where it cannot be read."""
    # A file in the older storage format is readable by DuckDB 1.4 clients as well as by 2.x.
    attach = f"ATTACH {_quote(str(file))} AS built (STORAGE_VERSION 'v1.4.0')"
    try:
        shutil.copyfile(target, file)
        connection.execute(attach)
        return dict(connection.execute(_COMMENTS).fetchall())
    except (FileNotFoundError, duckdb.Error):
        connection.execute("DETACH DATABASE IF EXISTS built")
        file.unlink(missing_ok=True)
        connection.execute(attach)
        return {}


@contextmanager
def open_catalogue(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the catalogue read-only; one that is missing, or that an older version of the platform built, is rebuilt."""
    store.refresh()
    with _opened(store) as connection:
        yield connection


@contextmanager
def _opened(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    if not store.catalogue.exists():
        build_catalogue(store)
    connection = duckdb.connect(str(store.catalogue), read_only=True)
    try:
        if _lacks_views(connection):
            connection.close()
            build_catalogue(store)
            connection = duckdb.connect(str(store.catalogue), read_only=True)
        yield connection
    finally:
        connection.close()


def show_query(store: Store, sql: str, *, max_rows: int, max_width: int) -> None:
    """Print a person's query on the catalogue as DuckDB's own client would, read-only.

    Raises:
        UserError: If there is no catalogue yet, or DuckDB refuses the query.
    """
    store.refresh()
    if not store.catalogue.exists():
        raise UserError(f"There is no catalogue in {store.root}: run `ev-platform run` first.")
    with _opened(store) as connection:
        try:
            relation = connection.sql(sql)
            if relation is None:
                raise UserError("That statement returns no rows: the catalogue is for reading, use a SELECT.")
            relation.show(max_rows=max_rows, max_width=max_width)
        except duckdb.Error as error:
            raise UserError(f"DuckDB: {' '.join(str(error).split())}") from error


def _lacks_views(connection: duckdb.DuckDBPyConnection) -> bool:
    wanted = {*TABLES, *(f"{table}{HISTORY}" for table in TABLES), *SERVED, *(model.name for model in load_models())}
    found = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    return not wanted <= {name for (name,) in found}


def rows_of(store: Store, sql: str, parameters: list[object]) -> list[tuple]:
    """Query the catalogue, read-only, with bound parameters."""
    store.refresh()
    with duckdb.connect(str(store.catalogue), read_only=True) as connection:
        return connection.execute(sql, parameters).fetchall()
