"""What every asset shares: its task, building through the store, and metadata that a person can read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from ev_platform.defs.resources import StoreResource, Table
from ev_platform.pages import markdown_image
from ev_platform.records import schema_of
from ev_platform.settings import get_settings
from ev_platform.storage import Frames, Record
from ev_platform.tasks import find_tasks

# Partitioned checks and data versions are marked as preview and beta; a person who runs the graph need not hear it.
for _category in (dg.PreviewWarning, dg.BetaWarning):
    warnings.filterwarnings("ignore", category=_category)

tasks_partitions = dg.StaticPartitionsDefinition(list(find_tasks(get_settings().tasks_root)))

FORCE_TAG = "ev/force"
OWNERS = ["team:ml-platform"]

_KINDS = {
    "raw_pages": {"http", "parquet"},
    "raw_pdfs": {"pdf", "parquet"},
    "adapter": {"pytorch", "huggingface"},
    "base_model": {"pytorch", "huggingface"},
    "merged_model": {"pytorch", "huggingface"},
}


def spec(table: str, description: str, group: str) -> dict[str, Any]:
    """Return the arguments that `@dg.asset` and `dg.AssetSpec` of a table have in common."""
    schema = dg.TableSchema([dg.TableColumn(name, str(dtype)) for name, dtype in schema_of(table).items()])
    return {
        "description": description,
        "group_name": group,
        "kinds": _KINDS.get(table, {"polars", "parquet"}),
        "owners": OWNERS,
        "metadata": {"dagster/column_schema": schema},
    }


def outs(group: str, descriptions: Mapping[str, str]) -> dict[str, dg.AssetOut]:
    """Return the outputs of a multi-asset, one for each table."""
    return {table: dg.AssetOut(**spec(table, text, group)) for table, text in descriptions.items()}


def table_check(table: str, *others: str, is_blocking: bool = False) -> Callable[..., dg.AssetChecksDefinition]:
    """Return the decorator of an asset check on one table.

    Args:
        table: The checked asset; the function takes it under its name.
        others: Further tables that the function takes.
        is_blocking: Whether a failure stops what comes after.
    """
    return dg.asset_check(
        asset=dg.AssetKey(table),
        additional_ins={name: dg.AssetIn(name) for name in others},
        blocking=is_blocking,
        partitions_def=tasks_partitions,
    )


def build(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    tables: Sequence[str],
    *,
    inputs: Mapping[str, Table],
    config: Mapping[str, Any],
    code: str,
    compute: Callable[[], Frames],
    force: bool = False,
) -> Iterator[dg.Output[Record]]:
    """Build tables through the store and yield one output each, with metadata.

    Args:
        context: Of the running asset.
        store: Where tables live.
        tables: What `compute` returns.
        inputs: Upstream tables, by name.
        config: What else the rows depend on.
        code: Hash of the computing code.
        compute: Returns a frame for each table.
        force: Compute even if nothing changed; the run tag `ev/force` does the same.
    """
    task = context.partition_key
    opened = store.store()
    built = opened.build(
        tables,
        task,
        inputs={name: table.fingerprint for name, table in inputs.items()},
        config=config,
        code=code,
        compute=compute,
        force=force or context.run.tags.get(FORCE_TAG) == "true",
    )
    context.log.info(f"{', '.join(tables)}: {'nothing changed' if built.is_unchanged else 'computed'}")
    for table in tables:
        record = built.records[table]
        frame = opened.read(table, task, record.version)
        yield dg.Output(
            record,
            output_name=table if len(tables) > 1 else "result",
            metadata={"unchanged": built.is_unchanged, **describe(table, frame)},
            data_version=dg.DataVersion(record.fingerprint),
        )


def describe(table: str, frame: pl.DataFrame) -> dict[str, Any]:
    """Return the metadata that shows a table to a person: counts by reason, a preview, a plot or a table of scores."""
    metadata: dict[str, Any] = {}
    for column in ("drop_reason", "reject_reason", "origin", "kind", "language"):
        if column in frame.columns and frame[column].drop_nulls().len():
            counts = (
                frame.drop_nulls(column).group_by(column).len("rows").sort("rows", column, descending=[True, False])
            )
            metadata[f"by_{column}"] = dg.MetadataValue.md(markdown_table(counts))
    if table == "training_log":
        metadata["curves"] = dg.MetadataValue.md(training_plot(frame))
    elif table == "eval_report":
        scores = frame.filter(pl.col("compared_to").is_null())
        metadata["systems"] = dg.MetadataValue.md(
            markdown_table(
                scores.pivot("metric", index="system", values="value").with_columns(pl.col(pl.Float64).round(3))
            )
        )
        for system, metric, value in scores.select("system", "metric", "value").iter_rows():
            if metric in ("token_f1", "rouge_l", "accuracy", "macro_f1"):
                metadata[f"{system}/{metric}"] = value
    elif "n_tokens" in frame.columns and frame["n_tokens"].count():  # texts to label have none
        metadata["n_tokens_mean"] = float(frame["n_tokens"].mean())  # type: ignore[arg-type]
    metadata["preview"] = dg.MetadataValue.md(markdown_table(frame.head(5)))
    return metadata


def markdown_table(frame: pl.DataFrame, width: int = 60) -> str:
    """Return a frame as a Markdown table, long cells cut."""

    def cell(value: Any) -> str:
        text = " ".join(str(value).split()).replace("|", "\\|")
        return text if len(text) <= width else text[: width - 1] + "…"

    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + " --- |" * len(frame.columns)
    return "\n".join([head, rule, *("| " + " | ".join(map(cell, row)) + " |" for row in frame.iter_rows())])


def training_plot(log: pl.DataFrame) -> str:
    """Return a Markdown image of a run: losses, learning rate, gradient norm and speed over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = (
        ("loss per answer token", {"loss": "-", "validation_loss": "o--"}),
        ("learning rate", {"learning_rate": "-"}),
        ("gradient norm", {"grad_norm": "-"}),
        ("tokens per second", {"tokens_per_second": "-"}),
    )
    for axes, (name, columns) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for column, style in columns.items():
            points = log.drop_nulls(column)
            axes.plot(points["step"].to_list(), points[column].to_list(), style, label=column.replace("_", " "))
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend()
    return markdown_image(figure, "training")
