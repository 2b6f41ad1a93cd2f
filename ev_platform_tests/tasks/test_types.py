import json

import pytest

from ev_platform.tasks import Task
from ev_platform.tasks.types import TASK_TYPES, get_task_type

CLASSES = {"lending": "A wish to borrow.", "returns": "", "Damage": "A broken tool."}


def example(**changes):
    return {"answer": "Paris", "answer_start": None, "context": None, "is_answerable": True} | changes


@pytest.mark.parametrize("name", TASK_TYPES)
def test_every_type_has_systems_that_can_be_compared(name):
    task_type = get_task_type(name)
    systems = task_type.systems()
    assert ("base", "base", False) in systems and ("tuned", "tuned", False) in systems
    assert len({system for system, _, _ in systems}) == len(systems)
    assert any(retrieves for _, _, retrieves in systems) == task_type.has_corpus


@pytest.mark.parametrize("name", TASK_TYPES)
def test_instructions_begin_with_the_description(name):
    assert get_task_type(name).instructions("Sort the letters.", CLASSES).startswith("Sort the letters.")


def test_instructions_of_classification_name_every_class_with_its_description():
    said = get_task_type("classification").instructions("Sort the letters.", CLASSES)
    assert said.splitlines()[2:] == ["- lending: A wish to borrow.", "- returns", "- Damage: A broken tool."]


@pytest.mark.parametrize(
    ("answer", "flaw"),
    [
        ("returns", None),
        ("return", "unknown_label: 'return' is not a class; the nearest is 'returns'"),
        ("damage", "unknown_label: 'damage' is not a class; the nearest is 'Damage'"),
    ],
)
def test_label_that_is_no_class_is_a_flaw_with_the_nearest_class(answer, flaw):
    assert get_task_type("classification").flaw(example(answer=answer), None, CLASSES) == flaw


PASSAGE = "Paris is the capital of\nFrance."


@pytest.mark.parametrize(
    ("changes", "passage", "flaw"),
    [
        ({}, PASSAGE, None),
        ({"answer": "capital of France"}, PASSAGE, None),
        ({"answer": "Rome"}, PASSAGE, "not_a_span: 'Rome' does not stand in the passage"),
        ({"answer": "paris"}, PASSAGE, "not_a_span: 'paris' stands in the passage as 'Paris'"),
        ({"answer": "Rome"}, None, None),
        ({"answer": "The passages do not say.", "is_answerable": False}, PASSAGE, None),
        ({"answer_start": 0, "context": PASSAGE}, PASSAGE, None),
        ({"answer_start": 3, "context": PASSAGE}, PASSAGE, "not_a_span: answer_start 3 does not point at 'Paris'"),
    ],
)
def test_answer_that_is_no_span_of_its_passage_is_a_flaw(changes, passage, flaw):
    assert get_task_type("extractive_qa").flaw(example(**changes), passage, {}) == flaw


def test_unanswerable_question_is_a_flaw_where_no_passage_is_shown():
    closed = get_task_type("closed_book_qa")
    assert closed.flaw(example(), None, {}) is None
    assert str(closed.flaw(example(is_answerable=False), None, {})).startswith("unanswerable: ")
    assert get_task_type("open_book_qa").flaw(example(is_answerable=False), None, {}) is None


@pytest.fixture
def task(tmp_path):
    (tmp_path / "job_description.json").write_text(json.dumps({"task_description": "Sort the letters."}))
    (tmp_path / "train.csv").write_text("text,label\nHi.,b\nHo.,a\nHa.,b\n")
    return Task("letters", tmp_path)


def test_classes_are_those_of_the_train_rows_where_nothing_describes_them(task):
    (task.folder / "config.yaml").write_text("type: classification")
    assert task.classes == {"a": "", "b": ""}
    assert task.instructions.endswith("\n- a\n- b")


def test_classes_are_those_of_the_job_description_where_it_has_them(task):
    (task.folder / "config.yaml").write_text("type: classification")
    job = {"task_description": "Sort the letters.", "classes_description": {"z": "Last.", "a": "First."}}
    (task.folder / "job_description.json").write_text(json.dumps(job))
    assert list(task.classes.items()) == [("z", "Last."), ("a", "First.")]


def test_classes_are_none_where_answers_are_free(task):
    assert task.classes == {} and task.instructions == "Sort the letters."
