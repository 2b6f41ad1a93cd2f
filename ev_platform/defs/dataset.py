"""Assets and checks of the stage `dataset`: from passages to training, validation and test rows."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from ev_platform import dataset, prompting, retrieval, tasks, teachers
from ev_platform.dataset import steps
from ev_platform.dataset.leakage import find_leaks
from ev_platform.dataset.overlap import Overlap
from ev_platform.dataset.splits import build_splits
from ev_platform.dataset.steps import describe_task
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import (
    RETRY,
    TEACHER,
    build,
    final_user_errors,
    markdown_table,
    outs,
    spec,
    table_check,
    tasks_partitions,
)
from ev_platform.evaluation import metrics
from ev_platform.identity import code_version
from ev_platform.storage import Record
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.types import get_task_type
from ev_platform.training import tokens
from ev_platform.training.tokens import chats_counter

GROUP = "dataset"
CODE = code_version(dataset, tasks, teachers, prompting, retrieval, tokens, metrics)


class ExamineConfig(dg.Config):
    """What a person says to the examination of the teacher."""

    overruled_by: str = Field(
        default="", description="Why the run goes on whatever the verdict on the teacher; empty: the verdict holds."
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "teacher_evaluation": "How well the teacher answers the test rows, and whether to let it write more.",
            "teacher_answers": "Its answer to each of them, with scores.",
        },
    ),
    partitions_def=tasks_partitions,
    pool=TEACHER,
    retry_policy=RETRY,
    code_version=CODE,
    name="examine",
)
@final_user_errors
def examine(
    context: dg.AssetExecutionContext,
    config: ExamineConfig,
    store: StoreResource,
    chunks: Table,
    chunk_vectors: Table,
    clean_documents: Table,
    dropped_documents: Table,
) -> Iterator[dg.Output[Record]]:
    """Let the teacher answer test rows before it is paid for more."""
    task, opened = store.task(context.partition_key), store.store()
    yield from build(
        context,
        store,
        ["teacher_evaluation", "teacher_answers"],
        inputs={"chunks": chunks, "clean_documents": clean_documents, "dropped_documents": dropped_documents},
        config=describe_task(task, "teacher", "teacher_evaluation", "retrieval", "dataset")
        | {"overruled_by": config.overruled_by},
        code=CODE,
        force=steps.has_news(opened, task.name, "teacher_answers"),
        compute=lambda: steps.examine(
            task,
            opened,
            context.run_id,
            chunks.frame,
            chunk_vectors.frame,
            clean_documents.frame,
            dropped_documents.frame,
            config.overruled_by,
        ),
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "qa_candidates": "Hand-written rows joined to their passages, and what the teacher wrote or labelled.",
            "generation_log": "What became of every chunk, or every unlabelled text, and why there is nothing of it.",
        },
    ),
    deps=["teacher_evaluation"],
    partitions_def=tasks_partitions,
    pool=TEACHER,
    retry_policy=RETRY,
    code_version=CODE,
    name="generate",
)
@final_user_errors
def generate(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    chunks: Table,
    clean_documents: Table,
    dropped_documents: Table,
) -> Iterator[dg.Output[Record]]:
    """Locate human rows in the corpus and let the teacher write more; stored replies cost nothing."""
    task, opened = store.task(context.partition_key), store.store()
    yield from build(
        context,
        store,
        ["qa_candidates", "generation_log"],
        inputs={"chunks": chunks, "clean_documents": clean_documents, "dropped_documents": dropped_documents},
        config=describe_task(task, "teacher", "dataset") | {"texts": steps.read_unlabelled(task)},
        code=CODE,
        force=steps.has_news(opened, task.name, "generation_log"),
        compute=lambda: steps.generate(
            task, opened, context.run_id, chunks.frame, clean_documents.frame, dropped_documents.frame
        ),
    )


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "examples": "Candidates that are grounded, well formed, new, and far from every test row.",
            "rejected_examples": "Candidates that are not, each with its reason.",
            "coverage": "How many examples each chunk, or each unlabelled text, has, and why not more.",
        },
    ),
    partitions_def=tasks_partitions,
    pool=TEACHER,
    retry_policy=RETRY,
    code_version=CODE,
    name="validate",
)
@final_user_errors
def validate(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    qa_candidates: Table,
    feedback_candidates: Table,
    generation_log: Table,
    chunks: Table,
    clean_documents: Table,
) -> Iterator[dg.Output[Record]]:
    """Judge each candidate with its source in front; reviewed ones win."""
    task, opened = store.task(context.partition_key), store.store()
    reviews = opened.current("reviews", task.name)
    # Feedback that nobody has decided on takes no part, so that it makes nothing stale either.
    feedback = steps.decided_feedback(task, opened, feedback_candidates.frame)
    yield from build(
        context,
        store,
        ["examples", "rejected_examples", "coverage"],
        inputs={"qa_candidates": qa_candidates, "generation_log": generation_log, "chunks": chunks},
        config=describe_task(task, "teacher", "dataset")
        | {"reviews": reviews.fingerprint if reviews else None, "feedback": feedback["example_id"].to_list()},
        code=CODE,
        force=steps.has_news(opened, task.name, "examples", "rejected_examples"),
        compute=lambda: steps.validate(
            task,
            opened,
            context.run_id,
            qa_candidates.frame,
            generation_log.frame,
            feedback,
            chunks.frame,
            clean_documents.frame,
        ),
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
        config=describe_task(task, "dataset", "retrieval"),
        code=CODE,
        compute=lambda: build_splits(
            examples.frame,
            chunks.frame,
            get_task_type(task.config.type),
            task.instructions,
            chats_counter(base_model.artifact),
            task.config.dataset,
            task.config.retrieval,
            chunk_vectors.frame,
        ),
    )


@dg.asset(
    deps=["teacher_evaluation"],
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("teacher_calls", "Every call that a teacher was paid for, behind what is in force now.", GROUP),
)
def teacher_calls(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    teacher_answers: Table,
    qa_candidates: Table,
    generation_log: Table,
    examples: Table,
    rejected_examples: Table,
) -> Iterator[dg.Output[Record]]:
    """Copy the calls of these tables from the ledger."""
    named = [teacher_answers, qa_candidates, generation_log, examples, rejected_examples]
    yield from build(
        context,
        store,
        ["teacher_calls"],
        inputs={table.record.table: table for table in named},
        config={},
        code=CODE,
        force=True,  # the ledger may know more of a call than the tables that name it
        compute=lambda: {"teacher_calls": steps.paid_calls(store.store(), [table.frame for table in named])},
    )


@table_check("teacher_evaluation", is_blocking=True)
def teacher_is_good_enough(teacher_evaluation: Table) -> dg.AssetCheckResult:
    """The verdict is proceed, or a person overruled it, or this teacher is not one that answers."""
    row = teacher_evaluation.frame.to_dicts()[0]
    overrule = "to go on all the same, set overruled_by in the run's configuration (`ev-platform run --overrule WHY`)"
    return dg.AssetCheckResult(
        passed=not row["is_blocking"],
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{row['verdict']}: {row['reason']}; {overrule}." if row["is_blocking"] else row["reason"],
        metadata={key: row[key] for key in ("verdict", "metric", "value", "overruled_by", "cost_usd") if row[key]},
    )


@table_check("training_set", "validation_set", "benchmark", "chunks", is_blocking=True)
def no_leakage(training_set: Table, validation_set: Table, benchmark: Table, chunks: Table) -> dg.AssetCheckResult:
    """No training or validation row shares a document, a passage or a question with a test row."""
    config = DatasetConfig.model_validate(training_set.record.config["dataset"])
    records = [training_set.record, validation_set.record]
    leaks = find_leaks(training_set.store, records, benchmark.record, chunks.record, config)
    table = pl.DataFrame(leaks[:20], schema=list(Overlap._fields), orient="row")
    return dg.AssetCheckResult(
        passed=not leaks,
        description=f"{len(leaks)} training rows meet a test row" if leaks else None,
        metadata={"pairs": dg.MetadataValue.md(markdown_table(table))},
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


@table_check("benchmark", "chunks")
def benchmark_rows_are_located(benchmark: Table, chunks: Table) -> dg.AssetCheckResult:
    """The document behind every test row is known; only then can it be held out of training."""
    lost = benchmark.frame.filter(pl.col("cluster_id").is_null() & (chunks.record.n_rows > 0))
    return dg.AssetCheckResult(
        passed=lost.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{lost.height} test rows have no known document: give them a source" if lost.height else None,
        metadata={"rows": dg.MetadataValue.md(markdown_table(lost.select("question", "answer").head(20)))},
    )


@table_check("coverage")
def sources_are_covered(coverage: Table) -> dg.AssetCheckResult:
    """Every chunk, or unlabelled text, that was asked about has an example."""
    asked = coverage.frame.filter(pl.col("n_asked") > 0)
    bare = asked.filter(pl.col("n_examples") == 0)
    reasons = coverage.frame["status"].value_counts(sort=True)
    return dg.AssetCheckResult(
        passed=bare.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{bare.height} of {asked.height} that were asked about have no example" if bare.height else None,
        metadata={"by_status": dg.MetadataValue.md(markdown_table(reasons))},
    )


@table_check("examples", "qa_candidates", "rejected_examples", is_blocking=True)
def candidates_add_up(qa_candidates: Table, examples: Table, rejected_examples: Table) -> dg.AssetCheckResult:
    """Candidates in, those from feedback that somebody decided on among them, equal examples plus rejected ones."""
    n_made, n_kept, n_rejected = (t.record.n_rows for t in (qa_candidates, examples, rejected_examples))
    n_feedback = len(examples.record.config.get("feedback", ()))
    return dg.AssetCheckResult(
        passed=n_made + n_feedback == n_kept + n_rejected,
        metadata={"in": n_made, "from_feedback": n_feedback, "kept": n_kept, "rejected": n_rejected},
    )


assets: list[Any] = [examine, generate, validate, split, teacher_calls]
checks = [
    teacher_is_good_enough,
    candidates_add_up,
    sources_are_covered,
    benchmark_rows_are_located,
    no_leakage,
    training_set_is_not_empty,
    benchmark_is_not_empty,
]
