"""The SQL models of `dbt_like_sql`: plain files, one SELECT each, ordered by what they read.

A model's name is its file's name, which is also its view and its asset. Dependencies come from parsing the SQL, so
nobody writes them down twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.records import SERVED, TABLES

SQL_ROOT = Path(__file__).resolve().parents[2] / "dbt_like_sql"
HISTORY = "_history"  # suffix of the view over all versions of a table
BUILT_IN = {*TABLES, *(table + HISTORY for table in TABLES), *SERVED, "materializations"}


@dataclass(frozen=True, slots=True)
class SqlModel:
    """One `.sql` file: its view's name, layer (folder), text, the tables it reads, and its description."""

    name: str
    layer: str
    sql: str
    reads: tuple[str, ...]
    description: str


@cache
def load_models(root: Path = SQL_ROOT) -> tuple[SqlModel, ...]:
    """Parse every model below `root/models`, in an order in which each comes after what it reads.

    Raises:
        UserError: If a file does not parse, reads an unknown table, or two models read each other.
    """
    import sqlglot
    import yaml
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    described = root / "models.yml"
    descriptions = yaml.safe_load(described.read_text(encoding="utf-8")) if described.exists() else {}
    models: dict[str, SqlModel] = {}
    for file in sorted((root / "models").glob("*/*.sql")):
        sql = file.read_text(encoding="utf-8")
        try:
            tree = sqlglot.parse_one(sql, read="duckdb")
        except SqlglotError as error:
            # ParseError keeps its own sentence in a list, apart from the text with terminal colours.
            details = getattr(error, "errors", None) or [{"description": " ".join(str(error).split())}]
            raise UserError(f"{file}: not valid SQL: {details[0]['description']}.") from error
        local = {cte.alias for cte in tree.find_all(exp.CTE)}
        reads = sorted({t.name for t in tree.find_all(exp.Table) if t.name and t.name not in local})
        models[file.stem] = SqlModel(file.stem, file.parent.name, sql, tuple(reads), descriptions.get(file.stem, ""))
    for model in models.values():
        for table in model.reads:
            if table not in models and table not in BUILT_IN:
                raise UserError(
                    f"dbt_like_sql/models/{model.layer}/{model.name}.sql reads the table {table!r}, which does not "
                    f"exist; the tables are {', '.join(sorted(BUILT_IN | set(models)))}."
                )
    graph = {m.name: [r for r in m.reads if r in models] for m in models.values()}
    try:
        return tuple(models[name] for name in TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " reads ".join(reversed(error.args[1]))
        raise UserError(f"{root / 'models'}: the SQL models read each other in a circle: {circle}.") from error
