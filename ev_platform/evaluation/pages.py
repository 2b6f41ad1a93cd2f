"""Writing the report page of a run into the data folder."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from ev_platform.evaluation.report import METRIC_NAMES, ReportContext, render_report
from ev_platform.evaluation.statistics import Verdict, verdict
from ev_platform.evaluation.summary import deciding_metric, differences_of
from ev_platform.lineage.catalogue import rows_of
from ev_platform.storage import Store, write_atomic
from ev_platform.tasks import Task
from ev_platform.tasks.types import get_task_type


def write_report(
    store: Store, task: Task, metrics: pl.DataFrame, predictions: pl.DataFrame, adapter: pl.DataFrame
) -> tuple[Path, Verdict]:
    """Render the page of an evaluation and write it to `reports/<task>.html`.

    Args:
        store: Where tables live.
        task: The evaluated task.
        metrics: The `eval_report` table.
        predictions: The `predictions` table.
        adapter: The `adapter` table of the tuned model.

    Returns:
        Path of the page, and the verdict on it.
    """
    metric = deciding_metric(get_task_type(task.config.type))
    judged = verdict(differences_of(metrics, metric), METRIC_NAMES[metric])
    shown = {chunk for ids in predictions["context_chunk_ids"] for chunk in ids}
    wanted = sorted(shown | set(predictions["gold_chunk_id"].drop_nulls()))
    sources = rows_of(
        store,
        "SELECT chunk_id, url, page FROM chunk_sources WHERE task = ? AND chunk_id IN (SELECT unnest(?))",
        [task.name, wanted],
    )
    page = render_report(
        metrics,
        predictions,
        context=ReportContext(
            task=task.name,
            description=task.description,
            metric=metric,
            verdict=judged.verdict,
            reason=judged.reason,
            n_train_rows=json.loads(adapter.item(0, "metrics"))["n_rows"],
            base_model=adapter.item(0, "base_model"),
            recipe=task.config.recipe,
            sources={chunk: f"{url}#page={page}" if page else url for chunk, url, page in sources},
        ),
    )
    file = store.root / "reports" / f"{task.name}.html"
    write_atomic(file, page.encode())
    return file, judged
