import json
import re

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.formats import Problem
from ev_platform.tasks.rows import read_rows, scan_rows, scan_texts
from ev_platform.tasks.splitting import choose_groups


@pytest.fixture
def made(tmp_path):
    """Return a function that makes a task of a config.yaml and of files beside the task's folder."""

    def made(config, files):
        for name, content in files.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.replace("HERE", str(tmp_path)))
        return Task("task", folder)

    return made


def asked(task, split):
    return [row.question for row in read_rows(task, split)]


def rows(n, **more):
    return [{"question": f"Question {n} of {n * n + 7}?", "answer": "Yes.", **more} for n in range(n)]


def test_files_are_read_by_relative_and_absolute_path(made):
    config = "files: {train: ../a.csv, test: HERE/b.json, unstructured: ../c.csv}"
    files = {"a.csv": "question,answer\nA?,a\n", "b.json": rows(1), "c.csv": ",context\n0,Text.\n"}
    task = made(config, files)
    assert (asked(task, "train"), asked(task, "test")) == (["A?"], ["Question 0 of 7?"])
    assert list(scan_texts(task)) == ["Text."]


def test_file_that_config_names_is_read_rather_than_the_usual_one(made):
    task = made("files: {train: ../a.csv}", {"a.csv": "question,answer\nA?,a\n"})
    for split in ("train", "test"):
        (task.folder / f"{split}.csv").write_text("question,answer\nB?,b\n")
    assert (asked(task, "train"), asked(task, "test")) == (["A?"], ["B?"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "files: {train: ../no.csv}",
            r"config\.yaml: files\.train is '\.\./no\.csv', but there is no file .*no\.csv: put",
        ),
        ("files: {rows: ../a.txt}", r"files\.rows is '\.\./a\.txt', which is none of \.csv, \.jsonl, \.json: save it"),
        ("files: {rows: ../a.txt, test: ../b.csv}", r"files: value error, rows stands instead of train and test"),
    ],
)
def test_file_that_cannot_be_read_is_named_with_its_key(made, config, said):
    with pytest.raises(UserError, match=said):
        read_rows(made(config, {"a.txt": "question,answer\nA?,a\n"}), "train")


def test_rows_of_one_file_are_split_by_document_in_about_the_wanted_share(made):
    found = [row for n in range(40) for row in rows(3, source=f"docs/{n}.md/#part-{n % 2}")]
    task = made("files: {rows: ../all.json, test_fraction: 0.25}", {"all.json": found})
    split = {name: read_rows(task, name) for name in ("train", "test")}
    assert len(split["train"]) + len(split["test"]) == 120 and 27 <= len(split["test"]) <= 33
    documents = {name: {row.source.partition("#")[0] for row in own} for name, own in split.items()}
    assert not documents["train"] & documents["test"]
    assert {row.split for row in split["test"]} == {"test"}
    numbers = [int(row.where.removeprefix("all.json row ")) for row in split["test"]]
    assert numbers == sorted(numbers) and numbers != list(range(numbers[0], numbers[0] + len(numbers)))


def test_rows_of_one_file_are_split_alike_again_and_otherwise_by_another_seed(made):
    files = {"all.json": rows(100)}
    first = made("files: {rows: ../all.json}", files)
    tested = asked(first, "test")
    assert asked(Task("again", first.folder), "test") == tested
    assert asked(made("{files: {rows: ../all.json}, dataset: {seed: 18}}", files), "test") != tested


def test_sections_of_one_document_and_copies_of_one_context_stay_together(made):
    found = rows(30, source="a.html#one") + rows(30, source="a.html#two/") + rows(60, context="A passage.")
    found += rows(60, context="a  PASSAGE")
    task = made("files: {rows: ../all.json, test_fraction: 0.4}", {"all.json": found})
    split = [{row.source is None for row in read_rows(task, name)} for name in ("train", "test")]
    assert split in ([{False}, {True}], [{True}, {False}])


def test_questions_without_source_or_context_stay_with_their_copies(made):
    pairs = [
        {"question": question, "answer": "Yes."}
        for n in range(50)
        for question in (f"Is part {n} of the north gate open now?", f"is the NORTH gate, of part {n}, open now")
    ]
    task = made("files: {rows: ../all.json, test_fraction: 0.3}", {"all.json": pairs})
    numbers = [int(re.sub(r"\D", "", question)) for question in asked(task, "test")]
    assert len(numbers) == 30 and sorted(numbers) == sorted([*set(numbers)] * 2)


def test_wrong_row_of_a_file_for_both_splits_is_told_once(made):
    task = made(
        "files: {rows: ../all.csv}",
        {"all.csv": "question,answer\n" + "\n".join(f"{n}?,a" for n in range(9)) + "\n?,\n"},
    )
    problems = {s: [r for r in scan_rows(task, s) if isinstance(r, Problem)] for s in ("train", "test")}
    assert [problem.place for problem in problems["train"]] == ["row 11"] and problems["test"] == []


def test_one_document_cannot_be_split(made):
    task = made("files: {rows: ../all.json}", {"all.json": rows(20, source="a.html")})
    with pytest.raises(
        UserError, match=r"all\.json has too few rows to make test rows of: look at files\.test_fraction\."
    ):
        read_rows(task, "test")
    assert len(read_rows(task, "train")) == 20


def test_group_that_leads_far_past_the_wanted_number_is_passed_over():
    groups = ["large"] * 80 + [f"small {n}" for n in range(20)]
    for seed in range(5):
        chosen = choose_groups(groups, 0.1, seed)
        assert "large" not in chosen and len(chosen) == 10


def test_row_whose_answer_is_that_of_no_answer_is_unanswerable(made):
    content = "question,answer,context\nA?,none,X.\nB?,b,X.\n"
    task = made("{files: {train: ../a.csv}, no_answer: none}", {"a.csv": content})
    assert [row.is_answerable for row in read_rows(task, "train")] == [False, True]
