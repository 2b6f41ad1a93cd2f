"""Assets and checks of the stage `evaluation`: answers of every system, and what they say."""

import sys
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import encoder, engine, evaluation, pooling, prompting, retrieval
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, spec, table_check, tasks_partitions
from ev_platform.evaluation.pages import write_report
from ev_platform.evaluation.summary import deciding_metric, summarise
from ev_platform.storage import Record, code_version
from ev_platform.tasks.types import TASK_TYPES, get_task_type

GROUP = "evaluation"
TYPES = [sys.modules[type(task_type).__module__] for task_type in TASK_TYPES.values()]
CODE = code_version(evaluation, encoder, engine, pooling, prompting, retrieval, *TYPES)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("predictions", "Answers of base and tuned model, with and without passages, to the benchmark.", GROUP),
)
def predictions(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    benchmark: Table,
    chunks: Table,
    chunk_vectors: Table,
    base_serving_model: Table,
    serving_model: Table,
) -> Iterator[dg.Output[Record]]:
    """Ask every system every question."""
    task = store.task(context.partition_key)
    task_type = get_task_type(task.config.type)
    instructions = task.instructions
    yield from build(
        context,
        store,
        ["predictions"],
        inputs={
            "benchmark": benchmark,
            "chunks": chunks,
            "chunk_vectors": chunk_vectors,
            "base_serving_model": base_serving_model,
            "serving_model": serving_model,
        },
        config={
            "instructions": instructions,
            "type": task.config.type,
            "retrieval": task.config.retrieval.model_dump(mode="json"),
            "evaluation": task.config.evaluation.model_dump(mode="json"),
        },
        code=CODE,
        compute=lambda: {
            "predictions": evaluation.predict(
                benchmark.frame,
                chunks.frame,
                {
                    name: (table.frame.item(0, "artifact_id"), engine.load_engine(table.artifact))
                    for name, table in (("base", base_serving_model), ("tuned", serving_model))
                },
                task_type,
                instructions,
                task.config,
                chunk_vectors.frame,
            )
        },
    )


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("eval_report", "Scores with 95 % intervals, paired differences, the verdict, and a page to read.", GROUP),
)
def eval_report(
    context: dg.AssetExecutionContext, store: StoreResource, predictions: Table, adapter: Table, chunks: Table
) -> Iterator[dg.Output[Record]]:
    """Summarise the predictions and write the report."""
    task, opened = store.task(context.partition_key), store.store()
    config, task_type = task.config.evaluation, get_task_type(task.config.type)
    for output in build(
        context,
        store,
        ["eval_report"],
        inputs={"predictions": predictions},
        config={"bootstrap": config.bootstrap, "seed": task.config.dataset.seed, "type": task_type.name},
        code=CODE,
        compute=lambda: {
            "eval_report": summarise(
                predictions.frame,
                resamples=config.bootstrap,
                seed=task.config.dataset.seed,
                is_labels=not task_type.has_corpus,
            )
        },
    ):
        page, verdict = write_report(
            opened, task, opened.read("eval_report", task.name), predictions.frame, adapter.frame
        )
        yield output.with_metadata(
            {
                **output.metadata,
                "verdict": verdict.verdict,
                "reason": verdict.reason,
                "report": dg.MetadataValue.path(str(page)),
            }
        )


@table_check("eval_report")
def tuned_beats_base(eval_report: Table) -> dg.AssetCheckResult:
    """Tuned is better than base on equal terms, by the task type's metric: the 95 % interval lies above zero."""
    task_type = get_task_type(eval_report.record.config["type"])
    metric = deciding_metric(task_type)
    # On equal terms: both with passages where the type's last tuned system has them.
    took_part = set(eval_report.frame["system"])
    tuned, _, has_passages = [s for s in task_type.systems() if s[1] == "tuned" and s[0] in took_part][-1]
    (base,) = (name for name, model, passages in task_type.systems() if (model, passages) == ("base", has_passages))
    row = eval_report.frame.filter(
        (pl.col("system") == tuned) & (pl.col("compared_to") == base) & (pl.col("metric") == metric)
    ).to_dicts()[0]
    return dg.AssetCheckResult(
        passed=row["low"] is not None and row["low"] > 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "compared": f"{metric} of {tuned} with {base}",
            **{key: row[key] for key in ("value", "low", "high", "n_rows") if row[key] is not None},
        },
    )


@table_check("predictions", "benchmark", is_blocking=True)
def every_system_answered(predictions: Table, benchmark: Table) -> dg.AssetCheckResult:
    """Every system answered the same benchmark rows once."""
    counts = predictions.frame.group_by("system").agg(pl.len().alias("n"), pl.col("example_id").n_unique().alias("ids"))
    sizes = {value for row in counts.select("n", "ids").rows() for value in row}
    return dg.AssetCheckResult(
        passed=len(sizes) == 1 and max(sizes) <= benchmark.record.n_rows,
        metadata=dict(counts.select("system", "n").sort("system").rows()),
    )


assets: list[Any] = [predictions, eval_report]
checks = [tuned_beats_base, every_system_answered]
