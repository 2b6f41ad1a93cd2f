"""Sensors: what starts a run without a person or the schedule. What costs time or money is off until switched on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from ev_platform.collect import inbox_state
from ev_platform.defs.automation import views_after_runs
from ev_platform.defs.jobs import STAGES, jobs_by_name, select
from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import tasks_partitions
from ev_platform.serving.journal import read_journal

# So many judgements are worth a reviewer's sheet; a sheet of fewer is a nuisance.
ENOUGH_FEEDBACK = 10

# Which stage reads a file of the task's folder first; files that are not named (rows, recipes) are read by `dataset`.
_FIRST_STAGE = {
    "sources.yaml": "collect",
    "unstructured": "collect",
    "config.yaml": "corpus",
    "job_description.json": "corpus",
}


@dg.sensor(
    job=jobs_by_name["ingest"],
    minimum_interval_seconds=60,
    description="Starts `ingest` for a task when PDFs are put into the folder inbox/<task> of the data folder. "
    "Off until switched on: a large PDF takes minutes.",
)
def new_pdfs(context: dg.SensorEvaluationContext, store: StoreResource) -> Iterator[dg.RunRequest]:
    """Compare each task's drop folder with the state it had at the last tick."""
    opened = store.store()
    seen: dict[str, str] = json.loads(context.cursor or "{}")
    found = {name: inbox_state(store.task(name), opened) for name in tasks_partitions.get_partition_keys()}
    for name, state in found.items():
        if state != seen.get(name, ""):
            yield dg.RunRequest(partition_key=name)
    context.update_cursor(json.dumps(found))


@dg.sensor(
    job=jobs_by_name["everything"],
    minimum_interval_seconds=60,
    description="Starts `everything` for a task when a file of its folder has changed, from the stage that reads it: "
    "collect for sources.yaml and unstructured texts, corpus for config.yaml and the description, dataset for rows and "
    "recipes. Off until switched on: it pays the teacher and trains.",
)
def changed_sources(context: dg.SensorEvaluationContext, store: StoreResource) -> Iterator[dg.RunRequest]:
    """Compare the files of each task's folder with those of the last tick; the first tick only looks."""
    seen: dict[str, dict[str, list[int]]] | None = json.loads(context.cursor) if context.cursor else None
    found = {name: _files(store.task(name).folder) for name in tasks_partitions.get_partition_keys()}
    for name, files in found.items():
        before = files if seen is None else seen.get(name, {})
        changed = {file for file in files.keys() | before.keys() if files.get(file) != before.get(file)}
        if changed:
            first = min(STAGES.index(_first_stage(file)) for file in changed)
            keys = select(*STAGES[first:]).resolve(context.repository_def.asset_graph)  # type: ignore[union-attr]
            yield dg.RunRequest(
                partition_key=name, asset_selection=sorted(keys), tags={"ev/changed": ", ".join(sorted(changed))}
            )
    context.update_cursor(json.dumps(found))


def _files(folder: Path) -> dict[str, list[int]]:
    """Return size and time of each file of a task's folder; what its sources name elsewhere is for the crawl to see."""
    stats = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items() if not name.startswith(".")}


def _first_stage(file: str) -> str:
    return _FIRST_STAGE.get(file) or _FIRST_STAGE.get(file.split(".")[0], "dataset")


@dg.sensor(
    job=jobs_by_name["feedback"],
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Starts `feedback` for a task after {ENOUGH_FEEDBACK} new judgements of served answers, so that they "
    "wait as candidates for review; nothing is trained on before a person accepts it. Takes seconds; on unless "
    "switched off.",
)
def new_feedback(context: dg.SensorEvaluationContext, store: StoreResource) -> Iterator[dg.RunRequest]:
    """Count each task's judgements since those that the last run took up."""
    taken: dict[str, int] = json.loads(context.cursor or "{}")
    given = read_journal(store.store().root, "feedback", query=lambda rows: rows.select("task", "given_at"))
    counts = Counter(given["task"].to_list())
    for name in tasks_partitions.get_partition_keys():
        # Feedback may be deleted by age; what is new is then counted from there.
        taken[name] = min(taken.get(name, 0), counts[name])
        if counts[name] - taken[name] >= ENOUGH_FEEDBACK:
            taken[name] = counts[name]
            yield dg.RunRequest(partition_key=name)
    context.update_cursor(json.dumps(taken))


sensors: list[Any] = [new_pdfs, changed_sources, new_feedback, views_after_runs]
