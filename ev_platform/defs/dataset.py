"""Assets and checks of the stage `dataset`: from passages to training, validation and test rows."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import dataset, prompting, retrieval, tasks
from ev_platform.dataset import build as dataset_build
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, markdown_table, outs, spec, table_check, tasks_partitions
from ev_platform.storage import Record, code_version
from ev_platform.tasks.rows import read_rows
from ev_platform.tasks.types import get_task_type
from ev_platform.training import tokens
from ev_platform.training.tokens import chat_counter

GROUP = "dataset"
CODE = code_version(dataset, tasks, prompting, retrieval, tokens)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("qa_candidates", "Hand-written rows joined to their passages, and generated questions.", GROUP),
)
def qa_candidates(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    chunks: Table,
    clean_documents: Table,
    dropped_documents: Table,
) -> Iterator[dg.Output[Record]]:
    """Locate human rows in the corpus and let the teacher write more."""
    task = store.task(context.partition_key)
    rows = [*read_rows(task, "train"), *read_rows(task, "test")]
    yield from build(
        context,
        store,
        ["qa_candidates"],
        inputs={
            "chunks": chunks,
            "clean_documents": clean_documents,
            "dropped_documents": dropped_documents,
        },
        config={"rows": [[r.split, r.question, r.answer, r.context, r.source] for r in rows]}
        | task.config.dataset.model_dump(mode="json"),
        code=CODE,
        compute=lambda: {
            "qa_candidates": dataset_build.make_candidates(
                rows, chunks.frame, clean_documents.frame, dropped_documents.frame, task.config.dataset
            )
        },
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "examples": "Candidates that are grounded, well formed, new, and far from every test row.",
            "rejected_examples": "Candidates that are not, each with its reason.",
        },
    ),
    partitions_def=tasks_partitions,
    code_version=CODE,
    name="validate",
)
def validate(
    context: dg.AssetExecutionContext, store: StoreResource, qa_candidates: Table, chunks: Table
) -> Iterator[dg.Output[Record]]:
    """Judge each candidate with its source in front."""
    yield from build(
        context,
        store,
        ["examples", "rejected_examples"],
        inputs={"qa_candidates": qa_candidates, "chunks": chunks},
        config={},
        code=CODE,
        compute=lambda: dataset_build.validate_candidates(qa_candidates.frame, chunks.frame),
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "training_set": "Rows to train on: instruction/input/output and chat messages, passages included.",
            "validation_set": "Rows of held-out documents that choose nothing but show over-fitting.",
            "benchmark": "Hand-written test rows; their documents are never trained on.",
        },
    ),
    partitions_def=tasks_partitions,
    code_version=CODE,
    name="split",
)
def split(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    examples: Table,
    chunks: Table,
    chunk_vectors: Table,
    base_model: Table,
) -> Iterator[dg.Output[Record]]:
    """Split by document and write the prompts."""
    task = store.task(context.partition_key)
    yield from build(
        context,
        store,
        ["training_set", "validation_set", "benchmark"],
        inputs={"examples": examples, "chunks": chunks, "chunk_vectors": chunk_vectors, "base_model": base_model},
        config={
            "description": task.description,
            "type": task.config.type,
            "dataset": task.config.dataset.model_dump(mode="json"),
            "retrieval": task.config.retrieval.model_dump(mode="json"),
        },
        code=CODE,
        compute=lambda: dataset_build.build_splits(
            examples.frame,
            chunks.frame,
            task.description,
            get_task_type(task.config.type),
            chat_counter(base_model.artifact),
            task.config.dataset,
            task.config.retrieval,
            chunk_vectors.frame,
        ),
    )


@table_check("training_set", "validation_set", "benchmark", "chunks", is_blocking=True)
def no_leakage(training_set: Table, validation_set: Table, benchmark: Table, chunks: Table) -> dg.AssetCheckResult:
    """No training or validation row shares a document, a passage or a question with a test row."""
    trained_on = pl.concat([training_set.frame, validation_set.frame])
    leaks = dataset_build.leaking_rows(trained_on, benchmark.frame, chunks.frame)
    table = pl.DataFrame(leaks, schema=["reason", "training question", "test question"], orient="row")
    return dg.AssetCheckResult(
        passed=not leaks,
        description=f"{len(leaks)} training rows meet a test row" if leaks else None,
        metadata={"pairs": dg.MetadataValue.md(markdown_table(table.head(20)))},
    )


@table_check("training_set", "rejected_examples", is_blocking=True)
def training_set_is_not_empty(training_set: Table, rejected_examples: Table) -> dg.AssetCheckResult:
    """There is something to train on."""
    n = training_set.record.n_rows
    reasons = rejected_examples.frame["reject_reason"].value_counts(sort=True).rows()
    return dg.AssetCheckResult(
        passed=n > 0,
        description=None
        if n
        else f"No training row is left: {reasons or 'train.csv gave none'}; see rejected_examples.",
        metadata={"rows": n},
    )


@table_check("benchmark", is_blocking=True)
def benchmark_is_not_empty(benchmark: Table) -> dg.AssetCheckResult:
    """There is something to evaluate on."""
    return dg.AssetCheckResult(passed=benchmark.record.n_rows > 0, metadata={"rows": benchmark.record.n_rows})


@table_check("benchmark")
def benchmark_rows_are_located(benchmark: Table) -> dg.AssetCheckResult:
    """The document behind every test row is known; only then can it be held out of training."""
    lost = benchmark.frame.filter(pl.col("cluster_id").is_null())
    return dg.AssetCheckResult(
        passed=lost.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{lost.height} test rows have no known document: give them a source" if lost.height else None,
        metadata={"rows": dg.MetadataValue.md(markdown_table(lost.select("question", "answer").head(20)))},
    )


@table_check("examples", "qa_candidates", "rejected_examples", is_blocking=True)
def candidates_add_up(qa_candidates: Table, examples: Table, rejected_examples: Table) -> dg.AssetCheckResult:
    """Candidates in equal examples plus rejected examples."""
    n_in, n_kept, n_rejected = (t.record.n_rows for t in (qa_candidates, examples, rejected_examples))
    return dg.AssetCheckResult(
        passed=n_in == n_kept + n_rejected, metadata={"in": n_in, "kept": n_kept, "rejected": n_rejected}
    )


assets: list[Any] = [qa_candidates, validate, split]
checks = [candidates_add_up, benchmark_rows_are_located, no_leakage, training_set_is_not_empty, benchmark_is_not_empty]
