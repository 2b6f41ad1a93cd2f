"""The tiny task as real processes that may be ended at any moment, and all that has to be the same afterwards.

What does not belong here: which process is ended and when (the tests).
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import psutil

from ev_platform.identity import frame_fingerprint
from ev_platform.records import TABLES, stable_columns
from ev_platform.registry import read_aliases
from ev_platform.storage import Store
from ev_platform_tests.tiny import write_tiny_model, write_tiny_task

TASK = "tiny"
SEED = int(os.environ.get("EV_FAULTS_SEED", "8"))
N_MOMENTS = int(os.environ.get("EV_FAULTS_MOMENTS", "10"))
LONGEST_RUN_S = 900

# When and how fast things were done, and what is named after that, differs between any two runs; all else must not.
_TIMES = {
    "benchmark_versions": ("benchmark_version", "card"),  # the card tells the hour at which pages were fetched
    "promotions": ("failed_checks", "reason"),  # the checks themselves are compared, but for the one on speed
    "registered_model": ("scores", "git_commit"),
}
_SPEEDS = {
    "eval_report": pl.col("metric").str.starts_with("latency_ms") | (pl.col("metric") == "tokens_per_second"),
    "promotion_gate": pl.col("check") == "latency",
}


@dataclass(frozen=True)
class Place:
    """A folder with the tiny task, its data, and the state of Dagster and Prefect."""

    root: Path

    @cached_property
    def data(self) -> Path:
        return self.root / "data"

    @cached_property
    def home(self) -> Path:
        """Dagster's; not below the data, so that the data can be taken away under a running Dagster."""
        return self.root / "dagster"

    @cached_property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("EV_", "PREFECT_", "DAGSTER"))
        }
        return kept | {
            "EV_DATA_DIR": str(self.data),
            "EV_TASKS_DIR": str(self.root / "tasks"),
            "DAGSTER_HOME": str(self.home),
            "PREFECT_HOME": str(self.root / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        }

    def fresh(self, root: Path) -> Place:
        """Return a place with the same task and no data."""
        shutil.copytree(self.root / "tasks", root / "tasks")
        return Place(root)

    def start(self, *command: str, log: str = "run.log", **environment: str) -> psutil.Popen:
        """Start a program of the virtual environment; its output goes to a file of the place."""
        program, *arguments = command
        with (self.root / log).open("a") as file:
            return psutil.Popen(
                [str(Path(sys.executable).with_name(program)), *arguments],
                env=self.environment | environment,
                cwd=self.root,
                stdout=file,
                stderr=file,
            )

    def start_run(self, **environment: str) -> psutil.Popen:
        """Start `ev-platform run`."""
        return self.start("python", "-m", "ev_platform.cli", "run", "--task", TASK, **environment)

    def run(self, **environment: str) -> float:
        """Let `ev-platform run` end; return how long it took in seconds."""
        started = time.monotonic()
        assert self.start_run(**environment).wait(LONGEST_RUN_S) == 0, self.told()
        return time.monotonic() - started

    def told(self, log: str = "run.log") -> str:
        """Return the end of what a process printed."""
        return (self.root / log).read_text()[-4000:]

    def n_tables(self) -> int:
        """Return how many tables are published."""
        return len(list(self.data.glob("tables/*/*/CURRENT")))

    def processes(self) -> list[psutil.Process]:
        """Return every process that was started for this place, also by one that is no more."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("EV_DATA_DIR") == str(self.data):
                    found.append(process)
        return [process for process in found if process.pid != os.getpid()]

    def left_after(self, seconds: float) -> list[str]:
        """Return what still runs after some time, as command lines."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        return [" ".join(process.cmdline()) for process in left if process.is_running()]

    def end_all(self) -> None:
        """Kill what runs for this place."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def state(self) -> dict[str, object]:
        """Return what two runs that did the same have in common, having read all of it; fails where that cannot be."""
        store = Store(self.data)
        records = {table: record for table in TABLES if (record := store.current(table, TASK))}
        frames = {table: store.read(table, TASK) for table in records}
        with duckdb.connect(str(store.catalogue), read_only=True) as catalogue:
            asked = catalogue.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal")
            shown = {view: catalogue.sql(f'FROM "{view}"').pl().height for (view,) in asked.fetchall()}
        for table, frame in frames.items():
            assert shown[table] == frame.height, f"the catalogue shows another version of {table}"
            assert records[table].fingerprint == frame_fingerprint(table, frame), table
        return {
            "tables": {table: _print_of_rows(table, frame) for table, frame in frames.items()},
            "weights": self._weights(store, frames["registered_model"].to_dicts()),
            "aliases": read_aliases(store, TASK),
            "views": sorted(shown),
        }

    @staticmethod
    def _weights(store: Store, versions: list[dict[str, object]]) -> dict[str, str]:
        from ev_platform.training.base import sha256_weights

        return {
            str(row["model_version"]): sha256_weights(
                store.artifact_path("serving_model", str(row["serving_model_id"]))
            )[0]
            for row in versions
        }

    def unfinished(self) -> dict[str, list[str]]:
        """Return what Dagster and Prefect show as going on, and who holds a place in a pool."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            runs = [f"{run.run_id} {run.status.value}" for run in instance.get_runs() if not run.is_finished]
            held = sorted(instance.event_log_storage.get_concurrency_run_ids())
        with sqlite3.connect(self.root / "prefect" / "prefect.db") as database:
            asked = "SELECT name || ' ' || state_type FROM {} WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
            flows, stages = ([name for (name,) in database.execute(asked.format(t))] for t in ("flow_run", "task_run"))
        return {"Dagster runs": runs, "places in pools": held, "flow runs": flows, "task runs": stages}


def _print_of_rows(table: str, frame: pl.DataFrame) -> tuple[int, str]:
    rows = frame.select(pl.exclude(_TIMES.get(table, ()))).filter(~_SPEEDS.get(table, pl.lit(False)))
    stable = [name for name in stable_columns(table) if name in rows.columns]
    return rows.height, hashlib.sha256(rows.select(stable).write_ndjson().encode()).hexdigest()


NOTHING = {"Dagster runs": [], "places in pools": [], "flow runs": [], "task runs": []}


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    Attributes:
        place: Where it ran.
        state: What it left.
        seconds: How long it took.
    """

    place: Place
    state: dict[str, object]
    seconds: float


def run_undisturbed(root: Path) -> Undisturbed:
    """Run the tiny task once from nothing."""
    write_tiny_task(root / "tasks" / TASK, write_tiny_model(root / "model"))
    place = Place(root)
    seconds = place.run()
    return Undisturbed(place, place.state(), seconds)


def moments(name: str) -> list[float]:
    """Return the parts of a run after which something happens, drawn anew for each kind of fault from one seed."""
    chance = random.Random(f"{SEED} {name}")
    drawn = [chance.uniform(0.03, 0.97) for _ in range(N_MOMENTS)]
    print(f"\n{name}, seed {SEED}: {', '.join(f'{moment:.2f}' for moment in drawn)}")
    return drawn


@contextmanager
def ended_afterwards(place: Place):
    """Leave no process of a place behind, whatever the test did."""
    try:
        yield place
    finally:
        place.end_all()
