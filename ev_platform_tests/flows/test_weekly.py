"""The Prefect flow and the command that starts it, each in a process of its own, as a person runs them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from ev_platform.storage import Store
from ev_platform_tests.tiny import write_tiny_model, write_tiny_task

# The host that one asset works on is gone for a moment; the calls are counted, of the asset before it as well.
OUTAGE = """
import json
from ev_platform import corpus
from ev_platform.flows import weekly

calls = []

def counted(name, error=None):
    compute = getattr(corpus, name)

    def run(*arguments, **options):
        calls.append(name)
        if error and calls.count(name) == 1:
            raise error
        return compute(*arguments, **options)

    setattr(corpus, name, run)

for name in ("extract_documents", "chunk_documents", "summarise_corpus"):
    counted(name)
counted("clean_documents", ConnectionResetError("the host is gone"))
weekly._stage = weekly._stage.with_options(retry_delay_seconds=0)
state = weekly.materialize_graph(tasks=["tiny"], stages=["collect", "corpus"], return_state=True)
result = state.result()["tiny"]
print(json.dumps([state.name, calls, sorted(result.computed), sorted(result.unchanged)]))
"""
INTERRUPTED = """
import os, signal, time
from ev_platform import collect
from ev_platform.flows import weekly

def compute(*arguments, **options):
    print("begun", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

collect.collect_texts = compute
weekly._stage = weekly._stage.with_options(retry_delay_seconds=0)
try:
    weekly.materialize_graph(tasks=["tiny", "ev_charging"], stages=["collect"])
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.fixture
def workspace(tmp_path):
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    return tmp_path


def run(workspace, *arguments):
    mine = {"EV_DATA_DIR": "data", "EV_TASKS_DIR": "tasks", "PREFECT_HOME": "prefect"}
    env = {**os.environ, **{name: str(workspace / folder) for name, folder in mine.items()}}
    env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("DAGSTER_HOME", None)
    return subprocess.run(
        [sys.executable, *arguments], env=env, cwd=workspace, capture_output=True, text=True, timeout=280, check=False
    )


def left_behind(workspace):
    """Return the command lines of processes that were started with this test's PREFECT_HOME."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFECT_HOME={workspace / 'prefect'}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_flow_with_one_stage_collects_and_leaves_no_process_behind(workspace):
    done = run(workspace, "-m", "ev_platform.cli", "run", "--task", "tiny", "--stage", "collect")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Computed: raw_pages, raw_pdfs, raw_texts" in done.stdout.splitlines()
    took = re.fullmatch(r"(\d+) s, (\d+) s of it since Prefect began the flow", done.stdout.splitlines()[-1])
    assert took and int(took[2]) < int(took[1])
    store = Store(workspace / "data")
    assert store.read("raw_pages", "tiny").height == 7
    assert store.current("documents", "tiny") is None
    deadline = time.monotonic() + 5
    while left_behind(workspace) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(workspace) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_retry_after_an_outage_goes_on_at_the_asset_that_failed(workspace):
    write_tiny_model(workspace / "model")
    done = run(workspace, "-c", OUTAGE)
    assert done.returncode == 0, done.stderr[-2000:]
    state, calls, computed, unchanged = json.loads(done.stdout.strip().splitlines()[-1])
    assert state == "Completed"
    # What had succeeded is not computed again, in the stage that failed or in the one before; the rest is.
    assert calls == ["extract_documents", "clean_documents", "clean_documents", "chunk_documents", "summarise_corpus"]
    assert unchanged == ["base_model", "documents"]
    assert {"clean_documents", "dropped_documents", "chunks", "chunk_vectors", "corpus_report"} <= set(computed)
    store = Store(workspace / "data")
    tables = ("raw_pages", "base_model", "documents", "clean_documents", "chunks")
    assert {table: len(store.history(table, "tiny")) for table in tables} == dict.fromkeys(tables, 1)
    with dg.DagsterInstance.from_config(str(workspace / "data" / "dagster")) as instance:
        runs = [run.status.value for run in reversed(instance.get_runs())]
    assert runs == ["SUCCESS", "FAILURE", "SUCCESS"]  # collect, corpus, and corpus again


@pytest.mark.slow  # most of it Prefect's start; that a run ends so is in defs/test_run
def test_signal_ends_the_flow_and_no_other_attempt_or_task_is_begun(workspace):
    done = run(workspace, "-c", INTERRUPTED)
    assert done.stdout.strip().endswith("KeyboardInterrupt"), done.stderr[-2000:]
    assert done.stdout.count("begun") == 1
    assert Store(workspace / "data").current("raw_pages", "ev_charging") is None


def test_command_for_an_unknown_task_prints_one_sentence_before_prefect_is_started(workspace):
    done = run(workspace, "-m", "ev_platform.cli", "run", "--task", "nope", "--stage", "collect")
    assert done.returncode == 1
    assert "Error: There is no task 'nope'; the tasks are ev_charging, tiny." in done.stderr.splitlines()
    assert "Traceback" not in done.stderr + done.stdout
    assert not (workspace / "prefect").exists()
