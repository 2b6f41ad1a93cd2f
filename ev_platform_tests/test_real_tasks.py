"""Public task folders as they are, Banking77 and SQuAD by configuration: what is read and what the check says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ev_platform.tasks import Task
from ev_platform.tasks.folders import Report, check_folder
from ev_platform.tasks.rows import read_rows, scan_texts

TASKS = Path(__file__).parents[2] / "shared" / "data" / "tasks"
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
def test_public_task_folder_is_read_unchanged_and_its_leakage_found(name: str) -> None:
    needs(TASKS / name / "train.csv")
    kind, n_train, n_test, n_texts, n_labels, equal = FOLDERS[name]
    task = Task(name, TASKS / name)
    assert (len(read_rows(task, "train")), len(read_rows(task, "test"))) == (n_train, n_test)
    assert len(list(scan_texts(task))) == n_texts
    report = check_folder(TASKS / name)
    leaking = tell(report)
    assert (report.type, len(report.labels)) == (kind, n_labels)
    assert (leaking["exact"], leaking["normalised"]) == equal
    assert all(label.is_described for label in report.labels)
    # None brings sources to crawl, and classification cannot be trained yet; nothing else stands in the way.
    stops = {finding.kind for finding in report.findings if finding.stops}
    assert stops == {"nothing_to_collect"} | ({"type"} if not report.is_trainable else set())


@pytest.mark.real_data
def test_banking77_is_read_with_its_own_columns_and_its_contradictions_found(tmp_path: Path) -> None:
    source = TASKS / "banking77"
    needs(source / "train.csv")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").symlink_to(source / f"{split}.csv")
    described = dict.fromkeys(json.loads((source / "categories.json").read_text()), "A kind of request.")
    job = {"task_description": "Classify the request of a bank's customer.", "classes_description": described}
    (tmp_path / "job_description.json").write_text(json.dumps(job))
    (tmp_path / "config.yaml").write_text("type: classification\ncolumns: {question: text, answer: category}\n")
    report = check_folder(tmp_path)
    leaking = tell(report)
    assert [summary.n_rows for summary in report.files] == [10003, 3080]
    assert len(report.labels) == 77 and all(label.is_described and label.n_test == 40 for label in report.labels)
    assert (leaking["exact"], leaking["normalised"]) == (6, 19)
    said = [finding.message for finding in report.findings if finding.kind == "contradiction"]
    assert any("'Has my top-up gone through?' is 'pending_top_up' there and 'top_up_reverted' here." in s for s in said)


@pytest.mark.real_data
def test_squad_files_are_read_with_spans_that_hold_and_unanswerable_questions(tmp_path: Path) -> None:
    source = TASKS / "squad"
    names = {"train": "train-subset-v1.1.json", "test": "dev-v2.0-cs224n-half.json"}
    needs(*(source / name for name in names.values()))
    for split, name in names.items():
        (tmp_path / f"{split}.json").symlink_to(source / name)
    (tmp_path / "job_description.json").write_text('{"task_description": "Answer from the passage."}')
    report = check_folder(tmp_path)
    tell(report)
    assert report.type == "extractive_qa"
    assert [(s.n_rows, s.n_wrong, s.n_unanswerable) for s in report.files] == [(2019, 0, 0), (6078, 0, 3168)]
    for split in names:
        for row in read_rows(Task("squad", tmp_path), split):
            assert row.context
            if row.is_answerable:
                assert row.answer_start is not None
                assert row.context[row.answer_start : row.answer_start + len(row.answer)] == row.answer
