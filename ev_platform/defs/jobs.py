"""Jobs that a person starts from the UI: one for each stage, and everything."""

from __future__ import annotations

import dagster as dg

from ev_platform.defs.stage import tasks_partitions

STAGES = ("collect", "corpus", "dataset", "training", "evaluation", "registry")

_DESCRIPTIONS = {
    "collect": "Fetch pages and files; unchanged ones transfer headers only.",
    "corpus": "Extract, filter, deduplicate and cut what was collected.",
    "dataset": "Make and check training, validation and test rows.",
    "training": "Train the adapter, merge and export it.",
    "evaluation": "Let every system answer the benchmark.",
    "registry": "Register the model, and promote it if it is better.",
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
]

jobs_by_name = {job.name: job for job in jobs}
