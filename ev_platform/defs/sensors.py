"""Sensors: what starts a run without a person or the schedule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg

from ev_platform.collect import inbox_state
from ev_platform.defs.jobs import jobs_by_name
from ev_platform.defs.resources import StoreResource
from ev_platform.defs.stage import tasks_partitions


@dg.sensor(
    job=jobs_by_name["ingest"],
    minimum_interval_seconds=60,
    description="Starts `ingest` for a task when PDFs are put into the folder inbox/<task> of the data folder.",
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


sensors: list[Any] = [new_pdfs]
