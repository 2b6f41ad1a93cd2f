"""The Dagster UI as `ev-platform dev` starts it, in headless Chromium: an asset is materialized and looked at."""

import os
import re
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from ev_platform_tests.ports import free_port
from ev_platform_tests.serving.web import chromium, needs_browser
from ev_platform_tests.test_graph import Workspace
from ev_platform_tests.tiny import write_tiny_task

PATIENCE_MS = 120_000  # on two cores that others use too


@pytest.fixture
def workspace(tmp_path):
    """The tiny task with its pages collected; what comes after needs no model before `chunks`."""
    workspace = Workspace(tmp_path)
    write_tiny_task(workspace.task, tmp_path / "no-model")
    workspace.run(stages=["collect"])
    return workspace


@pytest.fixture
def ui(workspace):
    """Start the UI with its daemon; give its address."""
    port = free_port()
    own = {"EV_DATA_DIR": str(workspace.root / "data"), "EV_TASKS_DIR": str(workspace.root / "tasks")}
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"} | own
    with (workspace.root / "dev.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ev_platform.cli", "dev", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_MS / 1000
        while not answers(url):
            assert process.poll() is None and time.monotonic() < until, (workspace.root / "dev.log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C does: it ends the daemon and the code server too
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def answers(url):
    try:
        return httpx.get(f"{url}/server_info", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_asset_is_materialized_in_the_ui_and_shows_its_plot_without_a_network(ui, workspace):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        asked = set()
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))

        page.goto(f"{ui}/asset-groups~/documents")  # the graph, with one asset selected
        page.get_by_role("button", name="Materialize selected").click()
        page.get_by_text("Select a partition or create one").click()
        page.get_by_role("menuitem", name="tiny").or_(page.locator("li, a, label").filter(has_text="tiny")).locator(
            "visible=true"
        ).last.click()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Launch 1 run").click()
        page.get_by_text("Launched run").wait_for()
        page.get_by_text("View", exact=True).locator("visible=true").last.click()
        page.wait_for_url("**/runs/*")
        expect(page.get_by_text("Success", exact=True).locator("visible=true").first).to_be_visible()
        n_rows = workspace.read("documents").height
        assert n_rows == len(workspace.read("raw_pages"))

        page.goto(f"{ui}/assets/documents")
        expect(page.get_by_text("A row: One version of one document", exact=False)).to_be_visible()
        expect(page.get_by_text("personal data replaced by a mark")).to_be_visible()  # of a column
        expect(page.get_by_text(str(n_rows), exact=True).first).to_be_visible()
        row = page.locator("tr").filter(has=page.get_by_text("plot_of_n_chars", exact=True))
        row.get_by_text("[Show Markdown]").click()
        image = page.get_by_role("img", name=re.compile("lengths in chars"))
        expect(image).to_be_visible()
        assert image.evaluate("picture => picture.naturalWidth") > 300
        assert {host for host in asked if host} == {"127.0.0.1"}
