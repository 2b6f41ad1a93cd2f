"""The SQL models of `dbt_like_sql` as assets: views of the catalogue, rebuilt together."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import duckdb

from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import OWNERS, markdown_table
from ev_platform.lineage.models import load_models
from ev_platform.records import TABLES
from ev_platform.storage import fingerprint

_MODELS = load_models()
# Reviews come through the command line: no asset makes them.
_KNOWN = {*TABLES, *(model.name for model in _MODELS)} - {"reviews"}


@dg.multi_asset(
    name="catalogue",
    specs=[
        dg.AssetSpec(
            model.name,
            deps=[name for name in model.reads if name in _KNOWN],
            description=model.description,
            group_name="lineage",
            kinds={"duckdb", "sql"},
            owners=OWNERS,
            code_version=fingerprint(model.sql)[:16],
            metadata={"layer": model.layer, "sql": dg.MetadataValue.md(f"```sql\n{model.sql}\n```")},
        )
        for model in _MODELS
    ],
)
def catalogue(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.MaterializeResult]:
    """Rebuild the catalogue and show each view."""
    import polars as pl

    file = store.store().rebuild_catalogue()
    with duckdb.connect(str(file), read_only=True) as connection:
        for model in _MODELS:
            (count,) = connection.execute(f"SELECT count(*) FROM {model.name}").fetchall()[0]
            cursor = connection.execute(f"SELECT * FROM {model.name} LIMIT 5")
            names = [column[0] for column in cursor.description or []]
            rows = pl.DataFrame(
                [[None if cell is None else str(cell) for cell in row] for row in cursor.fetchall()],
                schema=dict.fromkeys(names, pl.String),
                orient="row",
            )
            yield dg.MaterializeResult(
                asset_key=model.name,
                metadata={
                    "dagster/row_count": count,
                    "preview": dg.MetadataValue.md(markdown_table(rows)),
                    "query": f"duckdb -readonly {file} 'FROM {model.name}'",
                },
            )


assets: list[Any] = [catalogue]
