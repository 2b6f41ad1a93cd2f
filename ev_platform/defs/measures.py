"""Assets and checks of the stage `evaluation` that measure around the benchmark: retrieval, general ability, speed."""

import sys
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import decoding, encoder, engine, engine_base, pages, pooling, prompting, retrieval
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import COMPUTE, build, markdown_table, spec, table_check, tasks_partitions
from ev_platform.evaluation import retention, retrieval_report, speed, statistics
from ev_platform.identity import code_version, fingerprint
from ev_platform.storage import Record
from ev_platform.tasks.types import TASK_TYPES, get_task_type

GROUP = "evaluation"
TYPES = [sys.modules[type(task_type).__module__] for task_type in TASK_TYPES.values()]
ENGINES = (decoding, encoder, engine, engine_base, pooling, prompting)
CODE_RETRIEVAL = code_version(retrieval_report, prompting, retrieval, statistics)
CODE_GENERAL = code_version(retention, *ENGINES)
CODE_SPEED = code_version(speed, *ENGINES, *TYPES)
MIN_RECALL = 0.8


def _engines(base: Table, tuned: Table) -> dict[str, tuple[str, engine.Engine]]:
    return {
        name: (table.frame.item(0, "artifact_id"), engine.load_engine(table.artifact))
        for name, table in (("base", base), ("tuned", tuned))
    }


@dg.asset(
    name="retrieval_report",
    partitions_def=tasks_partitions,
    code_version=CODE_RETRIEVAL,
    **spec("retrieval_report", "How often search finds what the test rows rest on, by words, meaning and both.", GROUP),
)
def retrieval_scores(
    context: dg.AssetExecutionContext, store: StoreResource, benchmark: Table, chunks: Table, chunk_vectors: Table
) -> Iterator[dg.Output[Record]]:
    """Search for every test question and compare the hybrid with each of its two searches alone."""
    config = store.task(context.partition_key).config
    for output in build(
        context,
        store,
        ["retrieval_report"],
        inputs={"benchmark": benchmark, "chunks": chunks, "chunk_vectors": chunk_vectors},
        config={
            **config.retrieval.model_dump(mode="json", include={"top_k", "candidates"}),
            "resamples": config.evaluation.bootstrap,
            "seed": config.dataset.seed,
        },
        code=CODE_RETRIEVAL,
        compute=lambda: {
            "retrieval_report": retrieval_report.score_retrieval(
                benchmark.frame,
                chunks.frame,
                config.retrieval,
                chunk_vectors.frame,
                resamples=config.evaluation.bootstrap,
                seed=config.dataset.seed,
            )
        },
    ):
        scores = store.store().read("retrieval_report", context.partition_key, output.value.version)
        shown = {}
        if scores.height:
            shown["recall"] = dg.MetadataValue.md(
                pages.markdown_image(retrieval_report.recall_plot(scores), "recall by method")
            )
            shown["methods"] = dg.MetadataValue.md(markdown_table(retrieval_report.as_table(scores)))
        yield output.with_metadata({**output.metadata, **shown})


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_GENERAL,
    **spec("general_answers", "What base and tuned model make of questions and texts outside the task.", GROUP),
)
def general_answers(
    context: dg.AssetExecutionContext, store: StoreResource, base_serving_model: Table, serving_model: Table
) -> Iterator[dg.Output[Record]]:
    """Ask both models general questions and score neutral texts; nothing for encoders, which write no text."""
    for output in build(
        context,
        store,
        ["general_answers"],
        inputs={"base_serving_model": base_serving_model, "serving_model": serving_model},
        config={"items": fingerprint(retention.ITEMS.read_text(encoding="utf-8"))},
        code=CODE_GENERAL,
        compute=lambda: {"general_answers": retention.ask_general(_engines(base_serving_model, serving_model))},
    ):
        answers = store.store().read("general_answers", context.partition_key, output.value.version)
        figures = retention.summary(answers)
        shown = {f"{model}/{name}": value for model, own in figures.items() for name, value in own.items()}
        yield output.with_metadata({**output.metadata, **shown})


@dg.asset(
    partitions_def=tasks_partitions,
    pool=COMPUTE,
    code_version=CODE_SPEED,
    **spec(
        "inference_benchmark", "Latency, first token, tokens per second, memory and cost, base beside tuned.", GROUP
    ),
)
def inference_benchmark(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    predictions: Table,
    benchmark: Table,
    chunks: Table,
    base_serving_model: Table,
    serving_model: Table,
) -> Iterator[dg.Output[Record]]:
    """Let both models answer benchmark questions in turn, at every concurrency."""
    task = store.task(context.partition_key)
    task_type, config, instructions = get_task_type(task.config.type), task.config.evaluation, task.instructions

    def compute() -> dict[str, pl.DataFrame]:
        chats = speed.chats_of(
            predictions.frame, benchmark.frame, chunks.frame, task_type, instructions, config.speed_requests
        )
        engines = _engines(base_serving_model, serving_model)
        return {"inference_benchmark": speed.measure_inference(engines, chats, config)}

    for output in build(
        context,
        store,
        ["inference_benchmark"],
        inputs={
            "predictions": predictions,
            "benchmark": benchmark,
            "chunks": chunks,
            "base_serving_model": base_serving_model,
            "serving_model": serving_model,
        },
        config={
            "instructions": instructions,
            "type": task.config.type,
            **config.model_dump(
                mode="json", include={"max_new_tokens", "speed_requests", "concurrencies", "machine_usd_per_hour"}
            ),
        },
        code=CODE_SPEED,
        compute=compute,
    ):
        figures = store.store().read("inference_benchmark", context.partition_key, output.value.version)
        table = markdown_table(figures.drop("model_id"))
        yield output.with_metadata({**output.metadata, "figures": dg.MetadataValue.md(table)})


@table_check("retrieval_report")
def retrieval_finds_gold(retrieval_report: Table) -> dg.AssetCheckResult:
    """The passages that the model gets to read hold the one the answer rests on, for four of five test questions."""
    top_k = retrieval_report.record.config["top_k"]
    row = recall_read(retrieval_report.frame, top_k)
    if row is None:
        return dg.AssetCheckResult(passed=True, description="No test row has to be answered from the corpus.")
    return dg.AssetCheckResult(
        passed=row["value"] >= MIN_RECALL,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"The first {top_k} passages hold the right {row['level']} of {row['value']:.0%} of {row['n_rows']} test "
            f"questions; {MIN_RECALL:.0%} are wanted."
        ),
        metadata={key: row[key] for key in ("value", "low", "high", "n_rows") if row[key] is not None},
    )


def recall_read(scores: pl.DataFrame, top_k: int) -> dict[str, Any] | None:
    """Return the row of the hybrid's recall at top_k: of chunks, or of documents where no chunk is known."""
    rows = scores.filter((pl.col("method") == "hybrid") & (pl.col("metric") == f"recall@{top_k}")).to_dicts()
    return rows[0] if rows else None  # chunks come first


assets: list[Any] = [retrieval_scores, general_answers, inference_benchmark]
checks = [retrieval_finds_gold]
