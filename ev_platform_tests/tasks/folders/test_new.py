import re
from pathlib import Path

import pytest
import yaml

from ev_platform.errors import UserError
from ev_platform.tasks import Task, get_task
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.folders import check_folder, new_task
from ev_platform.tasks.rows import read_rows
from ev_platform.tasks.sources import Sources
from ev_platform.tasks.types import TASK_TYPES

DESCRIPTION = "Answer questions about heat pumps in a few words."


@pytest.fixture
def folder(tmp_path):
    return new_task("heat_pumps", "open_book_qa", f"  {DESCRIPTION}\n", tmp_path / "tasks")


def uncommented(file):
    """Return the text of a YAML file with every key that stands in a comment."""
    return re.sub(r"^# (?=[a-z_]+:|  )", "", file.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_new_task_is_a_task_of_its_type_and_description(tmp_path, kind):
    folder = new_task("heat-pumps_2", kind, DESCRIPTION, tmp_path)
    task = get_task("heat-pumps_2", tmp_path)
    assert (task.folder, task.description, task.config) == (folder, DESCRIPTION, TaskConfig(type=kind))
    assert bool(task.classes) == TASK_TYPES[kind].has_classes
    assert bool(task.sources.texts) == TASK_TYPES[kind].has_corpus


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_new_task_runs_on_samples_and_check_names_them_only(tmp_path, kind):
    folder = new_task("pumps", kind, DESCRIPTION, tmp_path)
    report = check_folder(folder)
    assert (report.is_ok, report.type) == (True, kind)
    assert [(f.kind, f.file) for f in report.findings] == [("sample_rows", "train.csv"), ("sample_rows", "test.csv")]
    assert all(summary.n_rows >= 4 for summary in report.files)


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_new_task_has_sample_answers_that_stand_in_its_sample_texts(tmp_path, kind):
    folder = new_task("pumps", kind, DESCRIPTION, tmp_path)
    rows = [row for split in ("train", "test") for row in read_rows(get_task("pumps", tmp_path), split)]
    for row in rows:
        text = row.context or ((folder / row.source).read_text() if row.source else None)
        if row.is_answerable and text:
            assert row.answer.casefold() in " ".join(text.casefold().split())
    tested = {row.source or row.context for row in rows if row.split == "test"} - {None}
    assert not tested & {row.source or row.context for row in rows if row.split == "train"}


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_new_task_has_no_gap_left_in_what_it_writes(tmp_path, kind):
    folder = new_task("pumps", kind, DESCRIPTION, tmp_path)
    for file in folder.rglob("*.*"):
        assert not re.search(r"\{(name|type|folder|description|steps|rows)\}", file.read_text())
    assert {"corpus", "steps.md", "rows.md"}.isdisjoint(file.name for file in folder.rglob("*"))


def test_new_task_names_every_key_of_its_sources_with_the_default(folder):
    data = yaml.safe_load(uncommented(folder / "sources.yaml"))
    assert data.keys() == Sources.model_fields.keys()
    shown = Sources.model_validate(data)
    examples = {"seeds", "pdfs", "texts", "mirrors"}
    assert shown.model_dump(exclude=examples) == Sources().model_dump(exclude=examples)
    assert all(getattr(shown, name) for name in examples)


def test_new_task_names_keys_of_its_config_with_their_defaults(folder):
    data = yaml.safe_load(uncommented(folder / "config.yaml"))
    assert data.keys() == TaskConfig.model_fields.keys() - {"teacher_evaluation"}
    assert TaskConfig.model_validate(data) == TaskConfig()


def test_new_task_has_a_readme_whose_rows_can_be_copied(folder):
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# heat_pumps\n\n{DESCRIPTION}\n")
    assert f"ev-platform task check {folder}\nev-platform run --task heat_pumps\n" in readme
    (folder / "train.csv").write_text(readme.split("```csv\n")[1].split("```")[0])
    rows = read_rows(Task("heat_pumps", folder), "train")
    assert [(row.answer, row.source) for row in rows] == [
        ("3 m; the warden", "https://example.com/gate.html"),
        ("12 m", "pdfs/well.pdf#page=3"),
    ]


def test_check_of_a_new_task_that_was_filled_in_finds_nothing(folder):
    (folder / "train.csv").write_text("question,answer,source\nHow loud is the pump?,40 dB,\n")
    (folder / "test.csv").write_text("question,answer,source\nWho may open the lid?,an electrician,\n")
    (folder / "sources.yaml").write_text(
        (folder / "sources.yaml").read_text().replace("# seeds:\n#   -", "seeds:\n  -")
    )
    report = check_folder(folder)
    assert report.findings == []
    assert (report.is_ok, report.is_trainable, report.type) == (True, True, "open_book_qa")


@pytest.mark.parametrize("name", ["", "heat pumps", "../x", "_x", "-x", "a/b", "wärme", "a.b", "x" * 65, "x\n", "٣"])
def test_new_task_of_a_name_that_cannot_be_used_says_which_can(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot be a task's name: take up to 64 of a to z, A to Z, 0 to 9, _ and -,"):
        new_task(name, "open_book_qa", DESCRIPTION, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_task_of_an_unknown_type_says_which_there_are(tmp_path):
    with pytest.raises(UserError, match=r"^There is no task type 'sorting': choose one of .*open_book_qa.*\.$"):
        new_task("pumps", "sorting", DESCRIPTION, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_task_of_a_short_description_says_what_to_write(tmp_path):
    with pytest.raises(UserError, match=r"^The description 'pumps' is too short: say in a sentence what"):
        new_task("pumps", "open_book_qa", "  pumps      ", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_task_overwrites_nothing(folder, tmp_path):
    (folder / "train.csv").write_text("mine")
    with pytest.raises(UserError, match=r"^There is a task 'heat_pumps' already: choose another name\.$"):
        new_task("heat_pumps", "open_book_qa", DESCRIPTION, tmp_path / "tasks")
    assert (folder / "train.csv").read_text() == "mine"
    (tmp_path / "tasks" / "draft").mkdir()
    with pytest.raises(UserError, match=r"draft exists already: choose another name, or move it away\.$"):
        new_task("draft", "open_book_qa", DESCRIPTION, tmp_path / "tasks")
    assert list((tmp_path / "tasks" / "draft").iterdir()) == []


def test_new_task_of_the_examples_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^There is a task 'ev_charging' already"):
        new_task("ev_charging", "open_book_qa", DESCRIPTION, tmp_path)


def test_new_task_below_what_is_no_folder_says_what_to_set(tmp_path):
    (tmp_path / "tasks").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): set EV_TASKS_DIR to another folder\.$"):
        new_task("pumps", "open_book_qa", DESCRIPTION, Path(tmp_path / "tasks" / "deep"))
