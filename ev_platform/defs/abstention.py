"""The assets that choose the score below which a model abstains, and the check that it keeps strangers out."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from ev_platform import pages, prompting, retrieval
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, markdown_table, outs, table_check, tasks_partitions
from ev_platform.evaluation import calibration, plots, predicting
from ev_platform.identity import code_version, fingerprint
from ev_platform.storage import Record
from ev_platform.tasks import splitting

GROUP = "evaluation"
CODE = code_version(calibration, predicting, prompting, retrieval, splitting)
MIN_REFUSED = 0.8


@dg.multi_asset(
    outs=outs(
        GROUP,
        {
            "abstention_calibration": "The score below which the model abstains, and what share of questions that is.",
            "abstention_scores": "How near the nearest passage found is to questions of the task and outside it.",
        },
    ),
    partitions_def=tasks_partitions,
    code_version=CODE,
    name="calibrate_abstention",
)
def calibrate_abstention(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    chunks: Table,
    chunk_vectors: Table,
    training_set: Table,
    validation_set: Table,
    benchmark: Table,
) -> Iterator[dg.Output[Record]]:
    """Choose the score on training questions and on questions outside the task; measure it on others."""
    task = store.task(context.partition_key)
    strange = [asdict(it) for it in calibration.strange_questions(task)]
    for output in build(
        context,
        store,
        ["abstention_calibration", "abstention_scores"],
        inputs={
            "chunks": chunks,
            "chunk_vectors": chunk_vectors,
            "training_set": training_set,
            "validation_set": validation_set,
            "benchmark": benchmark,
        },
        config={
            "type": task.config.type,
            "retrieval": task.config.retrieval.model_dump(mode="json"),
            "max_rows": task.config.evaluation.max_rows,
            "out_of_domain": fingerprint(strange),
        },
        code=CODE,
        compute=lambda: calibration.calibrate(
            task,
            chunks.frame,
            chunk_vectors.frame,
            pl.concat([training_set.frame, validation_set.frame]),
            benchmark.frame,
        ),
    ):
        frame = store.store().read(output.value.table, context.partition_key, output.value.version)
        shown: dict[str, Any] = {}
        if output.value.table == "abstention_calibration":
            shown["reason"] = frame.item(0, "reason")
            shown["shares"] = dg.MetadataValue.md(markdown_table(frame.drop("reason")))
        elif frame.height:
            min_score = calibration.min_score_of(store.store().read("abstention_calibration", context.partition_key))
            figure = plots.draw_scores_of_questions(frame.to_dicts(), min_score)
            shown["distributions"] = dg.MetadataValue.md(pages.markdown_image(figure, "scores of questions"))
        yield output.with_metadata({**output.metadata, **shown})


@table_check("abstention_calibration")
def strangers_are_refused(abstention_calibration: Table) -> dg.AssetCheckResult:
    """Of the held-out questions outside the task, four of five are refused by their score, unless that is off."""
    (held_out,) = abstention_calibration.frame.filter(pl.col("group") == "strange_held_out").to_dicts()
    if not held_out["n"] or held_out["reason"] == calibration.SWITCHED_OFF:
        return dg.AssetCheckResult(passed=True, description=held_out["reason"])
    figures = {name: held_out[name] for name in ("value", "low", "high", "n", "min_score")}
    return dg.AssetCheckResult(
        passed=held_out["value"] >= MIN_REFUSED,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"Of {held_out['n']} held-out questions outside the task {held_out['value']:.0%} are refused; "
            f"{MIN_REFUSED:.0%} are wanted. {held_out['reason']}"
        ),
        metadata={name: value for name, value in figures.items() if value is not None},
    )


assets: list[Any] = [calibrate_abstention]
checks = [strangers_are_refused]
