"""The asset of the stage `registry`: one immutable version for each new model."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import registry
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, spec, tasks_partitions
from ev_platform.evaluation.report import METRIC_NAMES
from ev_platform.evaluation.statistics import verdict
from ev_platform.evaluation.summary import deciding_metric, differences_of
from ev_platform.storage import Record, code_version
from ev_platform.tasks.types import get_task_type

CODE = code_version(registry)


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("registered_model", "Every version of the task's model, and which of them is champion.", "registry"),
)
def registered_model(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    serving_model: Table,
    adapter: Table,
    training_set: Table,
    chunks: Table,
    benchmark: Table,
    eval_report: Table,
) -> Iterator[dg.Output[Record]]:
    """Register the model; it becomes champion if the verdict is to ship it."""
    task, opened = context.partition_key, store.store()
    folder = store.task(task)
    task_type = get_task_type(folder.config.type)
    metric = deciding_metric(task_type)
    judged = verdict(differences_of(eval_report.frame, metric), METRIC_NAMES[metric])
    settings = registry.serving_settings(folder, judged.verdict)
    template = registry.template_fingerprint(serving_model.artifact, task_type)
    scores = eval_report.frame.filter(pl.col("compared_to").is_null())
    for output in build(
        context,
        store,
        ["registered_model"],
        inputs={
            "serving_model": serving_model,
            "training_set": training_set,
            "chunks": chunks,
            "benchmark": benchmark,
            "eval_report": eval_report,
        },
        config={"serving": settings, "template": template},
        code=CODE,
        compute=lambda: {
            "registered_model": registry.register(
                opened,
                task,
                serving_model=serving_model.frame,
                adapter=adapter.frame,
                training_set=(training_set.version, training_set.fingerprint),
                chunks=(chunks.version, chunks.fingerprint),
                serving=settings,
                benchmark_fingerprint=benchmark.fingerprint,
                template=template,
                verdict=judged.verdict,
                reason=judged.reason,
                scores={f"{s}/{m}": v for s, m, v in scores.select("system", "metric", "value").rows()},
            )
        },
    ):
        yield output.with_metadata({**output.metadata, "aliases": registry.apply_aliases(opened, task)})


assets: list[Any] = [registered_model]
