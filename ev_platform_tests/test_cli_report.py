"""The command `ev-platform report`."""

import json

import pytest
import typer
from typer.testing import CliRunner

from ev_platform.cli_report import report
from ev_platform_tests.evaluation.stored import TASK, store_evaluation, store_surroundings

app = typer.Typer()
app.command()(report)


@pytest.fixture
def evaluated(own_folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stored = store_evaluation(own_folders)
    store_surroundings(stored)
    stored.store.catalogue  # noqa: B018 - the command opens a store of its own, which finds the catalogue there
    return stored


def invoke(*arguments):
    return CliRunner().invoke(app, ["--task", TASK, *arguments])


def test_report_prints_verdict_gate_systems_and_page(evaluated):
    done = invoke()
    assert done.exit_code == 0, done.output
    assert done.output.startswith("charging@2: ship tuned + retrieval. Tuning on top of retrieval does it:")
    assert "Gate: kept. charging@1 stays: not_worse_than_champion failed." in done.output
    row = next(
        row
        for row in evaluated.read("eval_report").to_dicts()
        if (row["system"], row["compared_to"], row["metric"]) == ("tuned_rag", None, "token_f1")
    )
    assert f"[{row['low']:.3f}, {row['high']:.3f}]" in done.output
    page = evaluated.store.root / "reports" / f"{TASK}.html"
    assert f"Report: {page}" in done.output
    assert "Not promoted" in page.read_text()


def test_report_as_json_is_what_stands_beside_the_page(evaluated):
    invoke()
    done = invoke("--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == json.loads((evaluated.store.root / "reports" / f"{TASK}.json").read_text())


def test_report_prints_the_card_of_the_newest_benchmark(evaluated):
    done = invoke("--benchmark-card")
    assert (done.exit_code, done.output) == (0, "# card\n")


@pytest.mark.parametrize(
    ("option", "said"),
    [([], "has not been evaluated yet"), (["--benchmark-card"], "has no version yet")],
)
def test_report_of_a_task_that_never_ran_says_what_to_do(own_folders, option, said):
    from ev_platform_tests.evaluation.stored import write_task

    write_task(own_folders / "tasks" / TASK)
    done = invoke(*option)
    assert done.exit_code == 1
    assert said in done.output and f"ev-platform run --task {TASK}" in done.output
    assert "Traceback" not in done.output
