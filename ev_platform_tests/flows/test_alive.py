"""Flow runs whose process was killed, and those that go on."""

import os
import subprocess
import sys

import psutil
import pytest
from filelock import FileLock, Timeout

from ev_platform.flows.alive import _end_orphaned_servers, marked

KILLED = """
import os, signal, time
from pathlib import Path
from prefect import flow, get_client, task
from prefect.runtime import flow_run
from ev_platform.flows.alive import end_dead_flow_runs, marked

@task
def stage():
    print(end_dead_flow_runs(Path("data")), flush=True)  # the run itself goes on
    with get_client(sync_client=True) as client:  # a stage is written down by and by
        while not client.read_task_runs():
            time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

@flow
def weekly():
    with marked(Path("data"), str(flow_run.id)):
        stage()

weekly()
"""
AFTERWARDS = """
from pathlib import Path
from prefect import get_client
from ev_platform.flows.alive import end_dead_flow_runs

print([(run.state.name, run.state.message) for run in end_dead_flow_runs(Path("data"))])
with get_client(sync_client=True) as client:
    print([stage.state.name for stage in client.read_task_runs()])
print(end_dead_flow_runs(Path("data")), list(Path("data").rglob("*-*")))
"""


@pytest.fixture
def python(tmp_path):
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_LOGGING_LEVEL": "CRITICAL", "DO_NOT_TRACK": "1"}
    env = {**os.environ, **own, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("PREFECT_API_URL", None)

    def run(code):
        with (tmp_path / "out").open("w+") as out:  # a pipe would be held by the server that is left behind
            done = subprocess.run(
                [sys.executable, "-c", code], env=env, cwd=tmp_path, stdout=out, stderr=out, timeout=240, check=False
            )
            out.seek(0)
            return done.returncode, out.read().strip().splitlines()

    return run


@pytest.mark.slow  # real processes that import the graph
def test_killed_flow_run_and_its_stage_are_shown_as_crashed_by_the_next_process(python):
    code, lines = python(KILLED)
    assert (code, lines) == (-9, ["[]"])
    code, lines = python(AFTERWARDS)
    assert code == 0, lines
    assert lines == [
        "[('Crashed', 'The process of this run ended without a word: it was killed.')]",
        "['Crashed']",
        "[] []",
    ]


def test_mark_is_held_while_a_run_goes_on_and_gone_afterwards(tmp_path):
    with marked(tmp_path, "a-run"):
        (mark,) = (tmp_path / "runs" / "flow_runs").iterdir()
        assert mark.name == "a-run"
        with pytest.raises(Timeout):
            FileLock(mark, timeout=0).acquire()
    assert list((tmp_path / "runs" / "flow_runs").iterdir()) == []


class Process:
    """A process as psutil tells of it."""

    def __init__(self, exe, *, pid=70, parent=None):
        self.pid, self._exe, self._parent, self.is_ended = pid, exe, parent, False

    def environ(self):
        return {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_HOME": "/data/prefect"}

    def parent(self):
        return self._parent

    def exe(self):
        if self._exe is None:
            raise psutil.AccessDenied(self.pid)
        return self._exe

    def terminate(self):
        self.is_ended = True


OURS = "/opt/ev-platform/.venv/bin/python"


@pytest.mark.parametrize(
    ("parent", "is_ended"),
    [
        pytest.param(None, True, id="no parent"),
        pytest.param(Process("/sbin/init", pid=1), True, id="init"),
        pytest.param(Process(None, pid=1), True, id="init that is root's"),
        pytest.param(Process("/usr/lib/systemd/systemd", pid=900), True, id="a user's systemd"),
        pytest.param(Process(OURS, pid=900), False, id="a run"),
        pytest.param(Process(OURS, pid=1), False, id="a run that is the first process of its container"),
        pytest.param(Process(None, pid=900), False, id="somebody who cannot be looked at"),
    ],
)
def test_server_of_one_run_is_ended_where_nobody_runs_with_it_any_more(monkeypatch, parent, is_ended):
    server = Process(OURS, parent=parent)
    monkeypatch.setenv("PREFECT_HOME", "/data/prefect")
    monkeypatch.setattr(psutil, "process_iter", lambda: [server])
    _end_orphaned_servers()
    assert server.is_ended is is_ended
