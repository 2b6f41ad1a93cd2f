"""Jobs that a person starts from the UI: one for each stage, everything, and decisions about a model's versions."""

import getpass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import OWNERS, tasks_partitions
from ev_platform.records import Promotion
from ev_platform.registry import promotion, prune
from ev_platform.registry.note import rewrite_report

STAGES = ("collect", "corpus", "dataset", "training", "evaluation", "registry", "serving")

# What a job spends where something has changed: shown as its tag `ev/spends`, and on each of its runs.
_SPENDS = "ev/spends"
SECONDS, MINUTES, HOURS, MONEY = "seconds", "minutes", "processor-hours", "teacher-money"

# By stage: name, what it does, what it spends.
_OF_STAGE = {
    "collect": ("collect", "Fetch pages and files; unchanged ones transfer headers only.", MINUTES),
    "corpus": ("corpus", "Extract, filter, deduplicate and cut what was collected.", MINUTES),
    "dataset": ("dataset", "Make and check training, validation and test rows; pays the teacher.", MONEY),
    "training": ("train", "Train the adapter, merge and export it.", HOURS),
    "evaluation": ("evaluate", "Let every system answer the benchmark.", HOURS),
    "registry": ("register", "Register the model, judge it, and promote it if it is better.", MINUTES),
    "serving": ("drift", "Compare what is asked of the served model with what it was trained on.", SECONDS),
}
_FORCE = (
    "What did not change is not computed again, unless the run's configuration says so (`resources.store.config.force`)"
)


def select(*stages: str) -> dg.AssetSelection:
    """Return the assets of some stages.

    Chunks and prompts are counted in the student's tokens, so the base model, which is cheap once it is there, comes
    with the stages that need it.
    """
    selection = dg.AssetSelection.groups(*stages)
    if {"corpus", "dataset"} & set(stages):
        selection = selection | dg.AssetSelection.assets("base_model")
    return selection


class _Task(dg.Config):
    task: str = Field(description="Whose model.")


class _Decision(_Task):
    reason: str = Field(description="Why; it is recorded with the decision.")
    by: str = Field(default="", description="Who decides; the login that runs Dagster if empty.")


class PromoteConfig(_Decision):
    """Which version becomes champion."""

    version: str = Field(description="Version or alias, such as candidate.")
    override: bool = Field(default=False, description="Promote it though it did not pass the gate.")


class RollbackConfig(_Decision):
    """Which version answers again."""

    version: str | None = Field(default=None, description="A former champion; the previous one if empty.")


class PruneConfig(_Task):
    """Which weights stay."""

    keep_last: int = Field(default=3, ge=0, description="How many of the newest versions are kept.")
    keep: list[str] = Field(default=[], description="Further versions to keep.")
    apply: bool = Field(default=False, description="Do it; else it is only listed.")


@dg.op
def promote_version(context: dg.OpExecutionContext, config: PromoteConfig, store: StoreResource) -> None:
    """Make a version champion; running endpoints swap it in."""
    by = config.by or getpass.getuser()
    version, override = config.version, config.override
    row = promotion.promote(store.store(), config.task, version, reason=config.reason, by=by, override=override)
    _tell(context, store, config.task, row)


@dg.op
def roll_back(context: dg.OpExecutionContext, config: RollbackConfig, store: StoreResource) -> None:
    """Let a former champion answer again; running endpoints swap it in."""
    by = config.by or getpass.getuser()
    row = promotion.rollback(store.store(), config.task, reason=config.reason, by=by, version=config.version)
    _tell(context, store, config.task, row)


def _tell(context: dg.OpExecutionContext, store: StoreResource, task: str, row: Promotion) -> None:
    said = {"outcome": row.decision, "reason": row.reason, "champion": row.champion_after or "", "by": row.decided_by}
    # Seen on the asset's page too, beside what the gate decided.
    context.log_event(dg.AssetMaterialization("promotions", partition=task, metadata={"unchanged": False, **said}))
    context.log.info(f"{row.decision}: {row.champion_after} answers in the place of {row.champion_before or 'none'}")
    rewrite_report(store.store(), task, Path(store.tasks_dir))


@dg.op
def prune_weights(context: dg.OpExecutionContext, config: PruneConfig, store: StoreResource) -> None:
    """Take weights off the disk that no alias, none of the newest versions and no named one needs."""
    plan = prune.prune(store.store(), config.task, keep_last=config.keep_last, keep=config.keep, apply=config.apply)
    context.add_output_metadata({"folders": list(plan.folders), "versions": list(plan.versions), "bytes": plan.n_bytes})
    done = "removed" if config.apply else "would remove"
    context.log.info(f"{done} {len(plan.folders)} folders, {plan.n_bytes} bytes")


@dg.job(description="Make a version of a task's model champion.", tags={_SPENDS: SECONDS}, owners=OWNERS)
def promote() -> None:
    """Promote."""
    promote_version()


@dg.job(description="Let a former champion of a task answer again.", tags={_SPENDS: SECONDS}, owners=OWNERS)
def rollback() -> None:
    """Roll back."""
    roll_back()


@dg.job(
    name="prune",
    description="Take weights off the disk that are no longer needed; a list unless told otherwise.",
    tags={_SPENDS: SECONDS},
    owners=OWNERS,
)
def prune_job() -> None:
    """Prune."""
    prune_weights()


def _assets_job(name: str, selection: dg.AssetSelection, told: str, spends: str) -> Any:
    return dg.define_asset_job(
        name,
        selection,
        partitions_def=tasks_partitions,
        description=f"{told} {_FORCE}.",
        tags={_SPENDS: spends},
        owners=OWNERS,
    )


jobs = [
    *(_assets_job(name, select(stage), told, spends) for stage, (name, told, spends) in _OF_STAGE.items()),
    _assets_job(
        "ingest",
        select("collect", "corpus"),
        "Collect and corpus in one: what the sensor on the drop folder starts.",
        MINUTES,
    ),
    _assets_job("everything", dg.AssetSelection.groups(*STAGES), "From sources to a registered model.", MONEY),
    _assets_job(
        "feedback",
        dg.AssetSelection.assets("feedback_candidates"),
        "Turn what people said of answers into candidates for review: what the sensor on feedback starts.",
        SECONDS,
    ),
    _assets_job("export", dg.AssetSelection.assets("exports"), "Write the tuned model for other engines.", MINUTES),
    _assets_job(
        "publish",
        dg.AssetSelection.assets("published_models"),
        "Send the tuned model to the Hugging Face Hub; a dry run unless told otherwise.",
        MINUTES,
    ),
    dg.define_asset_job(
        "lineage",
        dg.AssetSelection.groups("lineage"),
        description="Rebuild the catalogue's views of the lineage, and check them.",
        tags={_SPENDS: SECONDS},
        owners=OWNERS,
    ),
    promote,
    rollback,
    prune_job,
]

jobs_by_name = {job.name: job for job in jobs}
