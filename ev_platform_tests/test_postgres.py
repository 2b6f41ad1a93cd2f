"""Dagster's and Prefect's state in a Postgres of this machine, by environment variables only."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from ev_platform.storage import Store
from ev_platform_tests.ports import free_port
from ev_platform_tests.tiny import write_tiny_task

pytest.importorskip("dagster_postgres", reason="the extra `cluster` is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (shutil.which("initdb") and shutil.which("psql")), reason="no Postgres on this machine"),
]

FLOW = """
from ev_platform.flows.weekly import materialize_graph
if __name__ == "__main__":
    print(materialize_graph(tasks=["tiny"], stages=["collect"])["tiny"].run_ids[0])
"""


@pytest.fixture(scope="module")
def postgres():
    """Yield the address of an empty server, without the database's name."""
    # Postgres refuses to be run by root, and another user cannot read pytest's folders.
    owner = "postgres" if os.getuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ev-postgres-") as folder:
        if owner:
            shutil.chown(folder, owner)

        def call(*command):
            subprocess.run(command, check=True, user=owner, cwd=folder, stdout=subprocess.DEVNULL)

        call("initdb", "-D", f"{folder}/data", "-U", "ev", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            address = f"127.0.0.1:{port}"
            for name in ("dagster", "prefect"):
                call("psql", "-q", f"postgresql://ev@{address}/postgres", "-c", f"CREATE DATABASE {name}")
            yield address
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")


def rows(address, query):
    answer = subprocess.run(
        ["psql", "-At", f"postgresql://ev@{address}", "-c", query], check=True, capture_output=True, text=True
    )
    return answer.stdout.split()


def test_job_and_flow_keep_their_state_in_postgres(postgres, tmp_path):
    write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    mine = {"EV_DATA_DIR": "data", "EV_TASKS_DIR": "tasks", "PREFECT_HOME": "prefect"}
    env = {**os.environ, **{name: str(tmp_path / folder) for name, folder in mine.items()}}
    env |= {
        "EV_POSTGRES_URL": f"postgresql://ev@{postgres}/dagster",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://ev@{postgres}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    env.pop("DAGSTER_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", FLOW], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_id = done.stdout.split()[-1]
    assert Store(tmp_path / "data").read("raw_pages", "tiny").height == 7
    assert rows(f"{postgres}/dagster", "SELECT run_id || ':' || status FROM runs") == [f"{run_id}:SUCCESS"]
    assert rows(f"{postgres}/prefect", "SELECT state_type FROM flow_run") == ["COMPLETED"]
    assert not list((tmp_path / "data" / "dagster").rglob("runs.db"))
    assert not list(tmp_path.rglob("prefect.db"))
    assert "postgresql" not in (tmp_path / "data" / "dagster" / "dagster.yaml").read_text()
