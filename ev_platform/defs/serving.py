"""Assets and check of what serving leaves behind: feedback as candidates for review, and drift of the questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from ev_platform.dataset import steps
from ev_platform.defs.resources import StoreResource, Table
from ev_platform.defs.stage import build, spec, table_check, tasks_partitions
from ev_platform.identity import code_version
from ev_platform.pages import table_cell, unlinked
from ev_platform.registry import similarity
from ev_platform.serving import drift
from ev_platform.storage import Record

GROUP = "serving"
CODE = code_version(drift, similarity)


class DriftConfig(dg.Config):
    """Which requests are looked at."""

    days: int = Field(
        default=drift.WINDOW_DAYS,
        ge=1,
        description="So many days, the last one on which anything was asked among them.",
    )


# Of the stage that takes it up: a run of `dataset` alone has to find new feedback too.
@dg.asset(
    partitions_def=tasks_partitions,
    **spec(
        "feedback_candidates",
        "What people said of served answers, as rows that a person may accept; nothing else of it is trained on.",
        "dataset",
    ),
)
def feedback_candidates(context: dg.AssetExecutionContext, store: StoreResource) -> Iterator[dg.Output[Record]]:
    """Turn feedback into candidates for review."""
    task, opened = store.task(context.partition_key), store.store()
    for output in build(context, store, ["feedback_candidates"], inputs={}, **steps.feedback_build(task, opened)):
        rows = opened.read("feedback_candidates", task.name)
        n_decided = steps.decided_feedback(task, opened, rows).height
        shown = rows.select("kind", "question", "answer", "n_up", "n_down", "request_id").tail(5).to_dicts()
        told = {"decided": n_decided, "undecided": rows.height - n_decided, "preview": _table(shown)}
        if rows.height > n_decided:
            told["review"] = f"ev-platform dataset review-export --feedback --task {task.name} --out review.csv"
        yield output.with_metadata({**output.metadata, **told})


@dg.asset(
    partitions_def=tasks_partitions,
    code_version=CODE,
    **spec("question_drift", "How far what people ask is from what each served version was trained on.", GROUP),
)
def question_drift(
    context: dg.AssetExecutionContext,
    config: DriftConfig,
    store: StoreResource,
    registered_model: Table,
    benchmark: Table,
    validation_set: Table,
) -> Iterator[dg.Output[Record]]:
    """Compare the questions of the request log with those that each version was tested with."""
    task, opened = store.task(context.partition_key), store.store()
    requests = drift.recent_requests(opened.root, task.name, config.days)
    # Rows are only ever added at the end and taken away at the beginning.
    asked = [str(at) for at in (requests["asked_at"].min(), requests["asked_at"].max()) if at]
    versions = requests["model_version"].unique(maintain_order=True).to_list()

    def compute() -> dict[str, pl.DataFrame]:
        rows = pl.concat([benchmark.frame, validation_set.frame])
        questions = rows["question"].unique(maintain_order=True).to_list()
        references = {
            version: drift.reference_similarities(opened, task.name, version, questions) for version in versions
        }
        return {"question_drift": drift.measure_drift(requests, references)}

    tables = {"registered_model": registered_model, "benchmark": benchmark, "validation_set": validation_set}
    for output in build(
        context,
        store,
        ["question_drift"],
        # Where nothing was asked, nothing is compared.
        inputs=tables if versions else {},
        config={"requests": [requests.height, *asked]},
        code=CODE,
        compute=compute,
    ):
        yield output.with_metadata({**output.metadata, **_told(opened.read("question_drift", task.name), requests)})


def _told(rows: pl.DataFrame, requests: pl.DataFrame) -> dict[str, Any]:
    if rows.is_empty():
        return {"why": "Nothing was asked of this task yet: the request log has no answers of it."}
    shown = rows.drop("percentiles", "reference_percentiles").with_columns(pl.col(pl.Float64).round(4))
    newest = rows.tail(1).to_dicts()[0]
    image, strange = drift.drift_image(newest), drift.least_familiar(requests)
    return {
        "preview": _table(shown.to_dicts()),
        "says": drift.judge(newest)[1],
        **{
            name: newest[name]
            for name in ("ks", "cliffs_delta", "unfamiliar_share", "abstention_share")
            if newest[name] is not None
        },
        **({"distributions": dg.MetadataValue.md(image)} if image else {}),
        **({"least_familiar": _table(strange), "least_familiar_text": _look_up(strange)} if strange else {}),
    }


def _look_up(rows: Sequence[Mapping[str, Any]]) -> str:
    # Not the questions themselves: what Dagster has been told stays there, and the log forgets.
    ids = ", ".join(f"'{row['request_id']}'" for row in rows)
    return f'ev-platform query "SELECT similarity, question FROM requests WHERE request_id IN ({ids}) ORDER BY 1"'


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Return rows that hold the words of strangers: nothing in them becomes a link, an image or HTML."""
    if not rows:
        return dg.MetadataValue.md("no rows")
    head = [f"| {' | '.join(rows[0])} |", "|" + " --- |" * len(rows[0])]
    lines = [f"| {' | '.join(table_cell(unlinked(str(cell)[:300])) for cell in row.values())} |" for row in rows]
    return dg.MetadataValue.md("\n".join([*head, *lines]))


@table_check("question_drift")
def questions_like_those_trained_on(question_drift: Table) -> dg.AssetCheckResult:
    """The version that was asked last gets questions as familiar to it as those it was tested with."""
    newest = question_drift.frame.tail(1).to_dicts()
    passed, sentence = drift.judge(newest[0]) if newest else (True, "Nothing was asked yet.")
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=sentence)


assets: list[Any] = [feedback_candidates, question_drift]
checks = [questions_like_those_trained_on]
