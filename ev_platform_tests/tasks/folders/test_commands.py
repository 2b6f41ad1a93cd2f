import json

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app

SENTENCE = "Answer questions about heat pumps in a few words."


@pytest.fixture
def tasks(own_folders):
    return own_folders / "tasks"


def call(*arguments):
    return CliRunner().invoke(app, ["task", *map(str, arguments)])


def fill(folder):
    (folder / "train.csv").write_text("question,answer,source\nHow loud is the pump?,40 dB,\n")
    (folder / "test.csv").write_text("question,answer,source\nWho may open the lid?,an electrician,\n")
    (folder / "sources.yaml").write_text("seeds: ['https://pumps.example/']\n")


def test_task_new_writes_a_folder_that_runs_and_check_says_that_its_rows_are_samples(tasks):
    made = call("new", "pumps", "--type", "open_book_qa", "--description", SENTENCE)
    assert made.exit_code == 0
    assert f"ev-platform task check {tasks / 'pumps'}`" in made.output
    sample = call("check", tasks / "pumps")
    assert sample.exit_code == 0 and "train.csv still holds the sample rows" in sample.output
    fill(tasks / "pumps")
    full = call("check", tasks / "pumps")
    assert full.exit_code == 0 and "sample" not in full.output
    assert "Nothing stops a run: `ev-platform run --task pumps`\n" in full.output


def test_task_check_of_a_folder_elsewhere_says_how_a_run_finds_it(tasks, tmp_path):
    call("new", "pumps", "--description", SENTENCE)
    fill(tasks / "pumps")
    (tasks / "pumps").rename(tmp_path / "pumps")
    assert f"`EV_TASKS_DIR={tmp_path} ev-platform run --task pumps`\n" in call("check", tmp_path / "pumps").output


def test_task_check_takes_the_drop_folder_for_a_source(tasks, tmp_path):
    call("new", "pumps", "--description", SENTENCE)
    fill(tasks / "pumps")
    (tasks / "pumps" / "sources.yaml").unlink()
    assert call("check", tasks / "pumps").exit_code == 1
    (tmp_path / "data" / "inbox" / "pumps").mkdir(parents=True)
    (tmp_path / "data" / "inbox" / "pumps" / "manual.pdf").write_bytes(b"%PDF")
    assert call("check", tasks / "pumps").exit_code == 0


def test_task_check_prints_json_and_nothing_else(tasks):
    call("new", "pumps", "--description", SENTENCE)
    for name in ("train.csv", "test.csv", "sources.yaml"):
        (tasks / "pumps" / name).write_text("")
    result = call("check", tasks / "pumps", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["ok"] is False
    assert [finding["kind"] for finding in data["findings"]] == ["rows", "rows", "nothing_to_collect"]
    fill(tasks / "pumps")
    result = call("check", tasks / "pumps", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "heat pumps", "--description", SENTENCE), "'heat pumps' cannot be a task's name"),
        (("new", "pumps", "--type", "sorting", "--description", SENTENCE), "There is no task type 'sorting'"),
        (("check", "no-such-folder"), "is not a folder: name a task folder"),
    ],
)
def test_task_commands_print_one_sentence_for_bad_input(tasks, arguments, said):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and said in result.stderr
