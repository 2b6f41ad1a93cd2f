"""The SQL of `dbt_like_sql`: models as assets, which are views of the catalogue, and assertions as their checks."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import OWNERS, markdown_table, tasks_partitions
from ev_platform.identity import fingerprint
from ev_platform.lineage.assertions import failing_rows, text_frame
from ev_platform.lineage.catalogue import open_catalogue
from ev_platform.lineage.models import Assertion, Column, SqlModel, asset_of, load_assertions, load_models

_MODELS = {model.name: model for model in load_models()}


def _assets(reads: tuple[str, ...]) -> list[str]:
    return sorted({asset for table in reads if (asset := asset_of(table, _MODELS))})


def _schema(columns: tuple[Column, ...]) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(c.name, c.type, c.description) for c in columns])


def _column_lineage(model: SqlModel) -> dg.TableColumnLineage:
    from ev_platform.lineage.columns import column_lineage

    return dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(dg.AssetKey(asset), origin)
                for asset, origin in sorted({(asset_of(table, _MODELS) or "", origin) for table, origin in origins})
                if asset
            ]
            for column, origins in column_lineage()[model.name].items()
        }
    )


@dg.multi_asset(
    name="catalogue",
    specs=[
        dg.AssetSpec(
            model.name,
            deps=_assets(model.reads),
            description=model.description,
            group_name="lineage",
            kinds={"duckdb", "sql"},
            owners=OWNERS,
            code_version=fingerprint(model.sql)[:16],
            metadata={
                "layer": model.layer,
                "sql": dg.MetadataValue.md(f"```sql\n{model.sql}\n```"),
                "dagster/column_schema": _schema(model.columns),
            },
        )
        for model in _MODELS.values()
    ],
)
def catalogue(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.MaterializeResult]:
    """Rebuild the catalogue and show each view."""
    from ev_platform.lineage.columns import described_columns

    file = store.store().rebuild_catalogue()
    with open_catalogue(store.store()) as connection:
        for model in _MODELS.values():
            rows = connection.view(model.name)
            (count,) = rows.count("*").fetchall()[0]
            yield dg.MaterializeResult(
                asset_key=model.name,
                metadata={
                    "dagster/row_count": count,
                    "dagster/column_schema": _schema(described_columns(model)),
                    "dagster/column_lineage": _column_lineage(model),
                    "preview": dg.MetadataValue.md(markdown_table(text_frame(rows.limit(5)))),
                    "query": f"duckdb -readonly {file} 'FROM {model.name}'",
                },
            )


def _check(assertion: Assertion) -> dg.AssetChecksDefinition:
    is_partitioned = assertion.asset not in _MODELS
    severity = dg.AssetCheckSeverity.WARN if assertion.severity == "warn" else dg.AssetCheckSeverity.ERROR

    @dg.asset_check(
        asset=dg.AssetKey(assertion.asset),
        name=assertion.name,
        description=f"{assertion.description}\n\n```sql\n{assertion.sql}\n```",
        # After everything that it reads, where a run makes that too.
        additional_deps=[name for name in _assets(assertion.reads) if name != assertion.asset],
        partitions_def=tasks_partitions if is_partitioned else None,
    )
    def check(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        task = context.op_execution_context.partition_key if is_partitioned else None
        failing = failing_rows(store.store(), assertion, task)
        shown = {"first_rows": dg.MetadataValue.md(markdown_table(failing.first))} if failing.n_rows else {}
        return dg.AssetCheckResult(
            passed=failing.n_rows == 0, severity=severity, metadata={"failing_rows": failing.n_rows, **shown}
        )

    return check


assets: list[Any] = [catalogue]
checks = [_check(assertion) for assertion in load_assertions()]
