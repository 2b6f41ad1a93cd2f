"""Against a real Prefect server: what becomes of runs that were missed, and what its UI shows of a run."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from ev_platform_tests.ports import free_port
from ev_platform_tests.serving.web import chromium, needs_browser
from ev_platform_tests.tiny import write_tiny_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OFTEN = """
import sys
from ev_platform.flows.weekly import materialize_graph

if __name__ == "__main__":
    asked = {"parameters": {"tasks": ["tiny"], "stages": ["collect"]}, "rrule": sys.argv[1]}
    if sys.argv[2] == "plan":
        materialize_graph.to_deployment("often", **asked).apply()
    else:
        materialize_graph.serve("often", **asked, limit=1)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield the environment of a workspace with the task `tiny` and a Prefect server of its own."""
    root, port = tmp_path_factory.mktemp("prefect"), free_port()
    write_tiny_task(root / "tasks" / "tiny", root / "model")
    env = {**os.environ, "EV_DATA_DIR": str(root / "data"), "EV_TASKS_DIR": str(root / "tasks")}
    env |= {"PREFECT_HOME": str(root / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    env |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PYTHONPATH": os.pathsep.join(sys.path)}
    env |= {
        "EV_DAGSTER_URL": f"http://127.0.0.1:{free_port()}",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    env.pop("DAGSTER_HOME", None)
    prefect = str(Path(sys.executable).with_name("prefect"))
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(
            [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)], env=env, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 300
    while True:
        try:
            if httpx.get(f"{env['PREFECT_API_URL']}/health", timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, (root / "server.log").read_text()[-2000:]
        time.sleep(0.5)
    yield env
    process.terminate()
    process.wait(60)


def python(env, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_of_missed_runs_only_the_newest_does_the_work(server, tmp_path):
    script = tmp_path / "often.py"
    script.write_text(OFTEN)
    # Three runs that are planned while a server is there, and come due while nobody serves the flow.
    start = datetime.now(UTC) + timedelta(seconds=90)
    rule = f"DTSTART:{start:%Y%m%dT%H%M%S}\nRRULE:FREQ=SECONDLY;INTERVAL=2;COUNT=3"
    python(server, str(script), rule, "plan")
    api = server["PREFECT_API_URL"]
    asked = {"deployments": {"name": {"any_": ["often"]}}}
    (deployment,) = httpx.post(f"{api}/deployments/filter", json=asked, timeout=60).json()

    def states(ended):
        asked = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            runs = httpx.post(f"{api}/flow_runs/filter", json=asked, timeout=60).json()
            if len(runs) == 3 and all(run["state_name"] in ended for run in runs):
                return [run["state_name"] for run in runs]
            time.sleep(1)
        pytest.fail(f"{[run['state_name'] for run in runs]}")

    states({"Late"})
    serving = subprocess.Popen([sys.executable, str(script), rule, "serve"], env=server)
    try:
        assert states({"Skipped", "Completed", "Failed", "Crashed"}) == ["Skipped", "Skipped", "Completed"]
    finally:
        serving.terminate()
        serving.wait(60)


def test_schedule_that_is_stopped_keeps_its_planned_runs_on_the_server(server, tmp_path):
    api = server["PREFECT_API_URL"]

    def planned():
        asked = {"deployments": {"name": {"any_": ["weekly-tiny"]}}}
        runs = httpx.post(f"{api}/flow_runs/filter", json=asked, timeout=60).json()
        return {run["id"] for run in runs if run["state_type"] == "SCHEDULED"}

    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "ev_platform.cli", "schedule", "--task", "tiny", "--cron", "0 4 * * 1"]
        serving = subprocess.Popen(command, env=server, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not planned():
            assert serving.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
    serving.terminate()
    serving.wait(60)
    asked = {"deployments": {"name": {"any_": ["weekly-tiny"]}}}
    (deployment,) = httpx.post(f"{api}/deployments/filter", json=asked, timeout=60).json()
    assert not deployment["paused"]
    assert planned()


@needs_browser
def test_ui_shows_the_run_its_stages_and_what_they_did_without_a_network(server):
    env = server | {"EV_DAGSTER_URL": ""}
    python(env, "-m", "ev_platform.cli", "run", "--task", "tiny", "--stage", "collect")
    api, ui = server["PREFECT_API_URL"], server["PREFECT_API_URL"].removesuffix("/api")
    (run,) = httpx.post(f"{api}/flow_runs/filter", json={"limit": 1, "sort": "START_TIME_DESC"}, timeout=60).json()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(120_000)
        asked = set()
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
        page.goto(f"{ui}/runs")
        page.get_by_role("link", name=run["name"]).first.click()
        page.wait_for_url(f"**/{run['id']}**")
        page.get_by_text("Completed", exact=True).first.wait_for()
        page.get_by_text("Task Runs", exact=True).first.click()
        page.get_by_text("tiny: collect").locator("visible=true").first.wait_for()
        page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).first.click()
        page.get_by_text("run-tiny-collect").first.click()
        page.get_by_text("computed: raw_pages, raw_pdfs, raw_texts").wait_for()
        page.get_by_text("Dagster run").first.wait_for()
        assert {host for host in asked if host} == {"127.0.0.1"}
