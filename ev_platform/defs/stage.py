"""What every asset shares: its task, how it is declared, pools and retries, and building through the store.

What does not belong here: what a table shows of itself on its page (`shown`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.shown import describe
from ev_platform.defs.shown import markdown_table as markdown_table
from ev_platform.errors import UserError
from ev_platform.records import TABLES, schema_of
from ev_platform.records.comments import column_texts, row_text
from ev_platform.settings import get_settings
from ev_platform.storage import Frames, Record
from ev_platform.tasks import find_tasks

# Partitioned checks and data versions are marked as preview and beta; a person who runs the graph need not hear it.
for _category in (dg.PreviewWarning, dg.BetaWarning):
    warnings.filterwarnings("ignore", category=_category)

tasks_partitions = dg.StaticPartitionsDefinition(list(find_tasks(get_settings().tasks_root)))

FORCE_TAG = "ev/force"
FLOW_TAG = "prefect/flow_run"
OWNERS = ["team:ml-platform"]
# DuckDB's words for a signal that came while it worked.
QUERY_INTERRUPTED = "Query interrupted"

# Pools; how much of each may run at once stands in `instance.SETTINGS`.
NETWORK, TEACHER, COMPUTE = "network", "teacher", "compute"
POOLS = {
    NETWORK: "Fetches from, or sends to, other machines.",
    TEACHER: "Asks a teacher, which may cost money.",
    COMPUTE: "Trains a model or lets one write: takes every core, or the GPU.",
}


class OutagePolicy(dg.RetryPolicy):
    """Retries what may pass by itself, as Dagster's own policy, but no interrupt: that ends the run."""

    def calculate_delay(self, attempt_num: int) -> float:
        """Return the seconds until the next attempt, or raise the interrupt that there is to be none after."""
        # Dagster would retry a Ctrl-C and a SIGTERM too, and asks for the delay while it handles them.
        error = sys.exception()
        if isinstance(error, KeyboardInterrupt | DagsterExecutionInterruptedError):
            raise error
        return super().calculate_delay(attempt_num)


# After about 10, 20 and 40 seconds: what a client of its own has not overcome by then is an outage.
RETRY = OutagePolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

# What answers are made from. The run is weekly: a day late is worth a warning, a week late a failure.
_SERVED = ("chunks", "chunk_vectors", "serving_model", "abstention_calibration", "registered_model")
_FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=8), fail_window=timedelta(days=15))

_KINDS = {
    "raw_pages": {"http", "parquet"},
    "raw_pdfs": {"pdf", "parquet"},
    "adapter": {"pytorch", "huggingface"},
    "base_model": {"pytorch", "huggingface"},
    "merged_model": {"pytorch", "huggingface"},
    "serving_model": {"pytorch", "huggingface"},
    "base_serving_model": {"pytorch", "huggingface"},
    "published_models": {"http", "huggingface"},
}


_TYPES = {
    "Datetime(time_unit='us', time_zone='UTC')": "Datetime (UTC)",
    "List(Struct({'role': String, 'content': String}))": "List(role, content)",
}


def spec(table: str, description: str, group: str) -> dict[str, Any]:
    """Return the arguments that `@dg.asset` and `dg.AssetSpec` of a table have in common.

    Args:
        table: Its rows and columns are described as their class declares them.
        description: What the table is, in a sentence.
        group: The stage.
    """
    told = column_texts(TABLES[table])
    columns = [
        dg.TableColumn(name, _TYPES.get(str(dtype), str(dtype)), told.get(name))
        for name, dtype in schema_of(table).items()
    ]
    return {
        "description": f"{description}\n\nA row: {row_text(TABLES[table])}",
        "group_name": group,
        "kinds": _KINDS.get(table, {"polars", "parquet"}),
        "owners": OWNERS,
        "metadata": {"dagster/column_schema": dg.TableSchema(columns)},
        "freshness_policy": _FRESHNESS if table in _SERVED else None,
    }


def outs(group: str, descriptions: Mapping[str, str]) -> dict[str, dg.AssetOut]:
    """Return the outputs of a multi-asset, one for each table."""
    return {table: dg.AssetOut(**spec(table, text, group)) for table, text in descriptions.items()}


def final_user_errors(asset: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Let a `UserError` fail an asset at once, where other errors are retried: only a person can put it right."""

    @wraps(asset)
    def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from asset(*args, **kwargs)
        except UserError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    return run


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


def is_forced(context: dg.AssetExecutionContext, store: StoreResource) -> bool:
    """Return whether a run computes also what has not changed; a flow's run does so once, however often it tries."""
    return store.force or (context.run.tags.get(FORCE_TAG) == "true" and not _is_of_this_flow(context))


def _is_of_this_flow(context: dg.AssetExecutionContext) -> bool:
    """Return whether an earlier run of the same flow run, such as one that failed later, has made the assets."""
    if FLOW_TAG not in context.run.tags:
        return False
    same_flow = dg.RunsFilter(tags={FLOW_TAG: context.run.tags[FLOW_TAG]})
    run_ids = {run.run_id for run in context.instance.get_runs(same_flow)}

    def is_made(asset: dg.AssetKey) -> bool:
        made = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[context.partition_key])
        return any(event.run_id in run_ids for event in context.instance.fetch_materializations(made, limit=1).records)

    return all(is_made(asset) for asset in context.selected_asset_keys)


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
        force: Compute even if nothing changed; the run's configuration and its tag `ev/force` can do the same.
    """
    task = context.partition_key
    opened = store.store()
    with _interrupts_of_queries():
        built = opened.build(
            tables,
            task,
            inputs={name: table.fingerprint for name, table in inputs.items()},
            config=config,
            code=code,
            compute=compute,
            force=force or is_forced(context, store),
        )
    context.log.info(f"{', '.join(tables)}: {'nothing changed' if built.is_unchanged else 'computed'}")
    for table in tables:
        record = built.records[table]
        frame = opened.read(table, task, record.version)
        yield dg.Output(
            record,
            output_name=table if len(tables) > 1 else "result",
            metadata={**describe(table, frame), "unchanged": built.is_unchanged},
            data_version=dg.DataVersion(record.fingerprint),
        )


@contextmanager
def _interrupts_of_queries() -> Iterator[None]:
    """Let a signal that came while DuckDB worked interrupt us as any other does.

    DuckDB swallows what the signal's handler raised, and raises an error of its own that looks like any failure.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) == QUERY_INTERRUPTED:
            raise KeyboardInterrupt from error
        raise
