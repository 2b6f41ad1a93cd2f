"""The report of a run: read from the stored tables, written into the data folder as a page and as JSON.

What does not belong here: what it says (`figures`, `surroundings`) and how it looks (`report`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.evaluation.figures import Subject, describe_evaluation
from ev_platform.evaluation.metrics import libraries
from ev_platform.evaluation.report import render_report
from ev_platform.evaluation.statistics import Verdict
from ev_platform.evaluation.summary import deciding_metric, judge
from ev_platform.evaluation.surroundings import describe_surroundings
from ev_platform.files import write_atomic
from ev_platform.lineage.catalogue import rows_of
from ev_platform.records import TABLES
from ev_platform.storage import Record, Store
from ev_platform.tasks import Task
from ev_platform.tasks.types import get_task_type

# Shown where they were computed from the tables that are in force, whenever their own asset ran.
SURROUNDING = (
    "pair_judgements",
    "seed_scores",
    "retrieval_report",
    "abstention_calibration",
    "abstention_scores",
    "general_answers",
    "inference_benchmark",
    "coverage",
    "teacher_evaluation",
    "teacher_calls",
)
# Shown as they are: they say themselves what they are about, or are what the tuned model was made from.
KEPT = ("adapter", "benchmark_versions", "promotion_gate", "promotions")
NAMED = ("predictions", "eval_report", "benchmark", "chunks", "training_set", "adapter", "serving_model")


def write_report(store: Store, task: Task) -> tuple[Path, Verdict]:
    """Write the page of a task's last evaluation to `reports/<task>.html`, and its figures beside it as JSON.

    Args:
        store: Where tables live.
        task: The evaluated task.

    Returns:
        Path of the page, and the verdict on it.

    Raises:
        UserError: If the task has not been evaluated.
    """
    report = read_report(store, task)
    page = store.root / "reports" / f"{task.name}.html"
    write_atomic(page.with_suffix(".json"), to_json(report).encode())
    write_atomic(page, render_report(report).encode())
    return page, Verdict(report["verdict"], report["reason"])


def to_json(report: dict[str, Any]) -> str:
    """Return a report as JSON; what is no number, such as the spread of one seed, is null."""
    return json.dumps(_finite(report), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(store: Store, task: Task) -> dict[str, Any]:
    """Return everything that the page tells, as JSON values.

    The predictions and the test rows are those that the scores were computed from, also where newer ones are stored.

    Raises:
        UserError: If the task has not been evaluated.
    """
    scored = store.current("eval_report", task.name)
    answered = _version(store, "predictions", task.name, scored.inputs["predictions"]) if scored else None
    if scored is None or answered is None:
        raise UserError(f"The task {task.name} has not been evaluated yet: run `ev-platform run --task {task.name}`.")
    metrics = store.read("eval_report", task.name)
    differences = metrics.filter(pl.col("compared_to").is_not_null())
    if differences.height and differences["p_value"].null_count() == differences.height:
        raise UserError(
            f"The task {task.name} was evaluated by an earlier release, which made no permutation test: run "
            f"`ev-platform run --task {task.name}`."
        )
    predictions = store.read("predictions", task.name, answered.version)
    asked = _version(store, "benchmark", task.name, answered.inputs.get("benchmark"))
    benchmark = store.read("benchmark", task.name, asked.version) if asked else pl.DataFrame()
    task_type = get_task_type(task.config.type)
    subject = Subject(
        task=task.name,
        description=task.description,
        task_type=task_type.name,
        metric=deciding_metric(task_type),
        verdict=judge(metrics, task_type, task.config.promotion.min_rows),
        addresses=_addresses(store, task.name, predictions),
        documents=_documents(store, task.name, benchmark),
    )
    tables = {name: store.read(name, task.name) for name in (*KEPT, *_in_force(store, task.name))}
    version = _model_version(store, task.name, predictions, answered)
    name = version["model_version"] if version else None
    return {
        "model_version": name if version is None or is_about(answered, version) else f"{name} with today's passages",
        "champion": answered.config.get("champion"),
        **describe_evaluation(subject, metrics, predictions, benchmark),
        **describe_surroundings(tables, name, answered.inputs.get("benchmark")),
        "recipe": task.config.recipe,
        "provenance": _provenance(store, task.name, answered, scored, version),
    }


def _version(store: Store, table: str, task: str, fingerprint: str | None) -> Record | None:
    """Return the newest record of a table with these very rows."""
    current = store.current(table, task)
    if current is not None and current.fingerprint == fingerprint:
        return current
    return next((r for r in reversed(store.history(table, task)) if r.fingerprint == fingerprint), None)


def _in_force(store: Store, task: str) -> list[str]:
    """Return the tables that were computed from what is current; one that waits for its turn in a run is not shown."""
    found, adapter = [], store.current("adapter", task)
    for name in SURROUNDING:
        record = store.current(name, task)
        if record is None:
            continue
        sources = {table: store.current(table, task) for table in record.inputs if table in TABLES}
        prints = {table: source.fingerprint for table, source in sources.items() if source}
        if adapter and "adapter" in prints:  # a model that was kept was trained on rows that may not be those of today
            prints |= {table: known for table, known in adapter.inputs.items() if table in prints}
        if all(record.inputs[table] == known for table, known in prints.items()):
            found.append(name)
    return found


def _model_version(store: Store, task: str, predictions: pl.DataFrame, answered: Record) -> dict[str, Any] | None:
    """Return the version as which the tuned model is registered that answered, with these passages, these rows.

    Where that one was kept though some of them changed, it is the newest of the same weights.
    """
    tuned = predictions.filter(pl.col("system").is_in(["tuned", "tuned_rag"]))["model_id"].unique().to_list()
    rows = [row for row in store.read("registered_model", task).to_dicts() if row["serving_model_id"] in tuned]
    same = [row for row in rows if is_about(answered, row)]
    registered = store.current("registered_model", task)
    tables = ("benchmark", "chunks")
    if registered and all(registered.inputs.get(table) == answered.inputs.get(table, "") for table in tables):
        same = same or rows  # registering has seen them, and made no other version
    return same[-1] if same else None


def is_about(answered: Record, version: Mapping[str, Any]) -> bool:
    """Return whether predictions are of a version's very passages and test rows.

    They are not where it was kept though some of them changed (see `training.kept.version_kept`).

    Args:
        answered: Record of `predictions`.
        version: Row of `registered_model`.
    """
    return all(version[f"{table}_fingerprint"] == answered.inputs.get(table) for table in ("benchmark", "chunks"))


def _addresses(store: Store, task: str, predictions: pl.DataFrame) -> dict[str, str]:
    shown = {chunk for ids in predictions["context_chunk_ids"] for chunk in ids}
    wanted = sorted(shown | set(predictions["gold_chunk_id"].drop_nulls()))
    found = rows_of(
        store,
        "SELECT chunk_id, url, page FROM chunk_sources WHERE task = ? AND chunk_id IN (SELECT unnest(?))",
        [task, wanted],
    )
    return {chunk: f"{url}#page={page}" if page else url for chunk, url, page in found}


def _documents(store: Store, task: str, benchmark: pl.DataFrame) -> dict[str, str]:
    if benchmark.is_empty():
        return {}
    return dict(
        rows_of(
            store,
            "SELECT document_id, url FROM document_sources WHERE task = ? AND document_id IN (SELECT unnest(?))",
            [task, benchmark["document_id"].drop_nulls().unique().sort().to_list()],
        )
    )


def _provenance(
    store: Store, task: str, answered: Record, scored: Record, version: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what makes the figures repeatable: fingerprints of what went in, and versions of what computed them."""
    current = {name: store.current(name, task) for name in NAMED}
    prints = {name: record.fingerprint for name, record in current.items() if record is not None}
    prints |= {name: value for name, value in answered.inputs.items() if name in NAMED}
    prints["predictions"] = answered.fingerprint
    if version:
        columns = ("weights_sha256", "template_fingerprint", "recipe_fingerprint", "code")
        prints |= {name: version[name] for name in columns if version[name]}
    return {
        "run": answered.fingerprint[:12],
        "answered_at": answered.finished_at,
        "host": answered.host,
        "git_commit": answered.git_commit,
        "code": {"predictions": answered.code_version, "eval_report": scored.code_version},
        # As they were when the scores were made, where that was noted down.
        "libraries": scored.config.get("libraries") or libraries(),
        "fingerprints": prints,
    }
