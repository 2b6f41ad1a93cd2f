"""Dagster's own settings and state: `dagster.yaml` of the data folder, and runs whose process is no more.

What does not belong here: the graph, and how a run is started (`run`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES, RunsFilter
from dagster._core.storage.runs import SqliteRunStorage
from filelock import FileLock

from ev_platform.files import write_atomic
from ev_platform.settings import get_settings

# Of a run that has its process from the beginning; those of the webserver are given one later.
PROCESS_TAG = "ev/process"
_MARK = "# Written by ev-platform, which keeps it up to date; a file without this line is left as it is.\n"
# What was written before there was a mark.
_UNMARKED = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"
SETTINGS = f"""{_MARK}
# No usage reports and no first-run dialog: the UI has to work without a network.
telemetry:
  enabled: false
nux:
  enabled: false
# The daemon compares the age of what is served with its freshness policy.
freshness:
  enabled: true
concurrency:
  pools:
    # Of each of network, teacher and compute; another limit: `dagster instance concurrency set network 4`.
    default_limit: 1
    granularity: op
  runs:
    # Each is a process of about 600 MB before any model is loaded.
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  # A killed run keeps its place in a pool until then.
  free_slots_after_run_end_seconds: 60
  max_resume_run_attempts: 0
retention:
  sensor:
    purge_after_days: {{skipped: 7, success: 90, failure: 90}}
  auto_materialize:
    purge_after_days: {{skipped: 7, success: 90, failure: 90}}
"""
# Dagster reads the variable itself, so that no file holds the password.
_POSTGRES = """storage:
  postgres:
    postgres_url:
      env: EV_POSTGRES_URL
"""


def write_settings(home: Path) -> None:
    """Write `dagster.yaml` into Dagster's home, unless somebody has written one of his own.

    Args:
        home: DAGSTER_HOME; it exists.
    """
    file, wanted, database = home / "dagster.yaml", SETTINGS, get_settings().postgres_url
    if database is not None:
        wanted += _POSTGRES
        os.environ.setdefault("EV_POSTGRES_URL", database.get_secret_value())  # it may stand in `.env` only
    found = file.read_text(encoding="utf-8") if file.exists() else _UNMARKED
    if found != wanted and (found == _UNMARKED or found.startswith(_MARK)):
        write_atomic(file, wanted.encode())


def open_instance(home: Path, overrides: Mapping[str, Any] | None = None) -> dg.DagsterInstance:
    """Open Dagster's state, a context manager; of processes that come first at once, one makes the databases.

    Args:
        home: DAGSTER_HOME.
        overrides: Of its `dagster.yaml`.
    """
    with FileLock(home / ".opening"):
        return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=overrides))


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose process is no more, and free the places in pools that they and finished runs hold.

    Without a daemon nobody else does, and a run that waits for such a place would wait for ever. Where Dagster keeps
    its state in a database that several machines share, nothing is done: its daemon sees to it.

    Args:
        instance: Of this machine.

    Returns:
        The ids of the runs that were marked.
    """
    if not isinstance(instance.run_storage, SqliteRunStorage):
        return []
    dead = []
    for run in instance.get_runs(RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED, *IN_PROGRESS_RUN_STATUSES])):
        if not _is_alive(instance, run.run_id):
            instance.report_run_failed(run, "The process of this run ended without a word: it was killed.")
            dead.append(run.run_id)
    log = instance.event_log_storage
    for run_id in log.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            log.free_concurrency_slots_for_run(run_id)
    return dead


def end_dead_runs_of(home: Path) -> list[str]:
    """Do what `end_dead_runs` does for the Dagster whose home a folder is."""
    with open_instance(home) as instance:
        return end_dead_runs(instance)


def _is_alive(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a process that tells of the run is there; a run that has none yet counts as alive."""
    # Dagster's events name the process that they come from.
    told = {
        int(str(entry.value)): event.timestamp
        for event in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        if event.dagster_event
        for name, entry in event.dagster_event.engine_event_data.metadata.items()
        if name == "pid" and str(entry.value).isdigit()
    }
    record = instance.get_run_record_by_id(run_id)
    if record is not None and (pid := record.dagster_run.tags.get(PROCESS_TAG)):  # killed before its first event
        told[int(pid)] = record.create_timestamp.timestamp()
    return not told or any(_is_process(pid, told_at) for pid, told_at in told.items())


def _is_process(pid: int, told_at: float) -> bool:
    import psutil

    try:
        # A process that began after the event has only taken the number over; a second is the clocks' grain.
        return psutil.Process(pid).create_time() <= told_at + 1
    except psutil.NoSuchProcess:
        return False
