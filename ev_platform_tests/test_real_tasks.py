"""Public task folders as they are, Banking77 and SQuAD by configuration: what is read and what the check says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ev_platform.tasks import Task
from ev_platform.tasks.folders import Report, check_folder
from ev_platform.tasks.rows import read_rows, scan_texts

DATA = Path(__file__).parents[2] / "shared" / "data"
TASKS = DATA / "tasks"
SQUAD = TASKS / "squad"
# folder: type, rows of train and test, texts, labels, (exact, normalised) test questions that stand in train
FOLDERS = {
    "distil_banking_routing": ("classification", 48, 96, 1000, 8, (0, 0)),
    "distil_ecommerce": ("classification", 48, 96, 1000, 4, (0, 0)),
    "distil_mental_health": ("classification", 48, 96, 1000, 4, (0, 0)),
    "distil_question_answering": ("open_book_qa", 50, 100, 1000, 0, (0, 0)),
    "distil_rag": ("open_book_qa", 44, 46, 172, 0, (9, 0)),
}


def needs(*files: Path) -> None:
    if not all(file.exists() for file in files):
        pytest.skip("the real task folders are not beside this checkout")


def configure(folder: Path, config: dict[str, Any], job: dict[str, Any]) -> Task:
    """Write a task folder that holds nothing but its configuration."""
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "job_description.json").write_text(json.dumps(job))
    return Task(folder.name, folder)


def tell(report: Report) -> Counter[str]:
    """Print what a report counts; return how many test questions leak, by the nearest kind."""
    leaking = Counter({leak.test: leak.kind for leak in reversed(report.leaks)}.values())
    print(f"\n{report.task}, {report.type}: {len(report.labels)} labels, leakage {dict(leaking)}")
    for summary in report.files:
        print(
            f"  {summary.file}: {summary.n_rows} rows, {summary.n_wrong} wrong, {summary.n_unanswerable} unanswerable"
        )
    print(f"  findings {dict(Counter(finding.kind for finding in report.findings))}")
    return leaking


@pytest.mark.real_data
@pytest.mark.parametrize("name", FOLDERS)
def test_public_task_folder_is_read_in_place_and_its_leakage_found(name: str, tmp_path: Path) -> None:
    source = TASKS / name
    needs(source / "train.csv")
    kind, n_train, n_test, n_texts, n_labels, equal = FOLDERS[name]
    files = {split: str(source / f"{split}.csv") for split in ("train", "test", "unstructured")}
    job = json.loads((source / "job_description.json").read_text())
    task = configure(tmp_path, {"type": kind, "files": files}, job)
    assert (len(read_rows(task, "train")), len(read_rows(task, "test"))) == (n_train, n_test)
    assert len(list(scan_texts(task))) == n_texts and len(task.classes) == n_labels
    report = check_folder(tmp_path)
    leaking = tell(report)
    assert (report.is_ok, report.type, len(report.labels)) == (True, kind, n_labels)
    assert (leaking["exact"], leaking["normalised"]) == equal
    assert all(label.is_described for label in report.labels)
    assert not [finding for finding in report.findings if finding.kind == "unknown_label"]
    # The folder as it is says the same, and of what type it is.
    own = check_folder(source)
    assert (own.type, own.files, own.labels, own.leaks) == (kind, report.files, report.labels, report.leaks)
    assert {finding.kind for finding in own.findings if finding.stops} == ({"type"} if n_labels else set())


@pytest.mark.real_data
def test_banking77_is_read_with_its_own_columns_and_its_contradictions_found(tmp_path: Path) -> None:
    source = TASKS / "banking77"
    needs(source / "train.csv")
    config = {
        "type": "classification",
        "columns": {"question": "text", "answer": "category"},
        "files": {split: str(source / f"{split}.csv") for split in ("train", "test")},
    }
    task = configure(tmp_path, config, {"task_description": "Classify the request of a bank's customer."})
    assert sorted(task.classes) == sorted(json.loads((source / "categories.json").read_text()))
    assert set(task.classes.values()) == {""} and task.instructions.count("\n- ") == 77
    report = check_folder(tmp_path)
    leaking = tell(report)
    assert report.is_ok and [summary.n_rows for summary in report.files] == [10003, 3080]
    assert len(report.labels) == 77 and all(label.n_test == 40 for label in report.labels)
    assert (leaking["exact"], leaking["normalised"]) == (6, 19)
    said = [finding.message for finding in report.findings if finding.kind == "contradiction"]
    assert any("'Has my top-up gone through?' is 'pending_top_up' there and 'top_up_reverted' here." in s for s in said)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("test_file", "n_test", "n_unanswerable"),
    [("dev-v1.1.json", 10570, 0), ("dev-v2.0-cs224n-half.json", 6078, 3168)],
)
def test_squad_is_read_with_spans_that_hold_and_unanswerable_questions(
    tmp_path: Path, test_file: str, n_test: int, n_unanswerable: int
) -> None:
    files = {"train": SQUAD / "train-subset-v1.1.json", "test": SQUAD / test_file}
    needs(*files.values())
    config = {"type": "extractive_qa", "files": {split: str(file) for split, file in files.items()}}
    task = configure(tmp_path, config, {"task_description": "Answer from the passage."})
    report = check_folder(tmp_path)
    tell(report)
    assert report.is_ok
    counts = [(s.n_rows, s.n_wrong, s.n_unanswerable) for s in report.files]
    assert counts == [(2019, 0, 0), (n_test, 0, n_unanswerable)]
    assert not [finding for finding in report.findings if finding.kind == "not_a_span"]
    for split in files:
        for row in read_rows(task, split):
            assert row.context
            if row.is_answerable:
                assert row.answer_start is not None
                assert row.context[row.answer_start : row.answer_start + len(row.answer)] == row.answer


@pytest.mark.real_data
def test_vehicle_manual_is_split_by_section_and_its_texts_are_sources(tmp_path: Path) -> None:
    source = DATA / "vehicle_manual"
    needs(source / "questions.json")
    config = {"type": "open_book_qa", "files": {"rows": str(source / "questions.json")}}
    task = configure(tmp_path, config, {"task_description": "Answer questions about operating the car."})
    (tmp_path / "sources.yaml").write_text(f"texts: ['{source / 'docs'}/*.md']\n")
    report = check_folder(tmp_path)
    leaking = tell(report)
    assert report.is_ok
    rows = {split: read_rows(task, split) for split in ("train", "test")}
    assert sum(map(len, rows.values())) == 2078 and 0.19 < len(rows["test"]) / 2078 < 0.21
    documents = {split: {str(row.source).partition("#")[0].rstrip("/") for row in own} for split, own in rows.items()}
    print(f"  documents { ({split: len(own) for split, own in documents.items()}) }")
    assert len(documents["train"] | documents["test"]) == 128 and not documents["train"] & documents["test"]
    # Questions that the set asks of several sections; a run takes them out of train.
    assert leaking["exact"] < 0.1 * len(rows["test"])


@pytest.mark.real_data
def test_hotpotqa_is_read_with_its_lists_of_passages(tmp_path: Path) -> None:
    source = TASKS / "hotpotqa" / "hotpotqa_train_100.json"
    needs(source)
    config = {"type": "open_book_qa", "files": {"rows": str(source)}}
    task = configure(tmp_path, config, {"task_description": "Answer the question from the passages."})
    report = check_folder(tmp_path)
    tell(report)
    rows = [*read_rows(task, "train"), *read_rows(task, "test")]
    assert report.is_ok and len(rows) == 100
    first = next(row for row in rows if row.question == "If Gallu is a demon Lilu is what?")
    assert first.context and first.context.startswith("Demon Dice\nDemon Dice, originally published as Chaos")
