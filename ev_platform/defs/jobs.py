"""Jobs that a person starts from the UI: one for each stage, everything, and decisions about a model's versions."""

import getpass
from pathlib import Path

import dagster as dg
from pydantic import Field

from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import tasks_partitions
from ev_platform.records import Promotion
from ev_platform.registry import promotion, prune
from ev_platform.registry.note import rewrite_report

STAGES = ("collect", "corpus", "dataset", "training", "evaluation", "registry", "serving")

_DESCRIPTIONS = {
    "collect": "Fetch pages and files; unchanged ones transfer headers only.",
    "corpus": "Extract, filter, deduplicate and cut what was collected.",
    "dataset": "Make and check training, validation and test rows.",
    "training": "Train the adapter, merge and export it.",
    "evaluation": "Let every system answer the benchmark.",
    "registry": "Register the model, judge it, and promote it if it is better.",
    "serving": "Compare what is asked of the served model with what it was trained on.",
}


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


@dg.job(description="Make a version of a task's model champion.")
def promote() -> None:
    """Promote."""
    promote_version()


@dg.job(description="Let a former champion of a task answer again.")
def rollback() -> None:
    """Roll back."""
    roll_back()


@dg.job(name="prune", description="Take weights off the disk that are no longer needed; a list unless told otherwise.")
def prune_job() -> None:
    """Prune."""
    prune_weights()


_INGEST = ("collect", "corpus")

jobs = [
    *(
        dg.define_asset_job(stage, select(stage), partitions_def=tasks_partitions, description=_DESCRIPTIONS[stage])
        for stage in STAGES
    ),
    dg.define_asset_job(
        "ingest",
        select(*_INGEST),
        partitions_def=tasks_partitions,
        description="Collect and corpus in one: what the sensor on the drop folder starts.",
    ),
    dg.define_asset_job(
        "everything",
        dg.AssetSelection.groups(*STAGES),
        partitions_def=tasks_partitions,
        description="From sources to a registered model; whatever did not change is not computed again.",
    ),
    dg.define_asset_job(
        "export",
        dg.AssetSelection.assets("exports"),
        partitions_def=tasks_partitions,
        description="Write the tuned model for other engines.",
    ),
    dg.define_asset_job(
        "publish",
        dg.AssetSelection.assets("published_models"),
        partitions_def=tasks_partitions,
        description="Send the tuned model to the Hugging Face Hub; a dry run unless told otherwise.",
    ),
    dg.define_asset_job(
        "lineage", dg.AssetSelection.groups("lineage"), description="Rebuild the catalogue's views of the lineage."
    ),
    promote,
    rollback,
    prune_job,
]

jobs_by_name = {job.name: job for job in jobs}
