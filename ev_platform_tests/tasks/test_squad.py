import json

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.rows import read_rows

CONTEXT = "Paris is the capital of France. Paris lies on the Seine."


def answer(text, start):
    return {"text": text, "answer_start": start}


def qa(question="Which city?", answers=(), **more):
    return {"id": "1", "question": question, "answers": list(answers), **more}


@pytest.fixture
def read(tmp_path):
    """Return a function that reads one paragraph of a SQuAD file as test rows."""

    def read(*qas, context=CONTEXT, data=None, config=""):
        data = data or {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": context, "qas": qas}]}]}
        (tmp_path / "test.json").write_text(json.dumps(data))
        (tmp_path / "config.yaml").write_text(config)
        return read_rows(Task("cars", tmp_path), "test")

    return read


def test_squad_row_has_its_paragraph_its_answers_and_their_place(read):
    (row,) = read(qa(answers=[answer("Paris", 32), answer("Paris", 0), answer("Seine", 50)]))
    assert (row.split, row.where) == ("test", "test.json data[0].paragraphs[0].qas[0]")
    assert (row.question, row.answer, row.context) == ("Which city?", "Paris", CONTEXT)
    assert (row.answers, row.answer_start, row.is_answerable) == (("Paris", "Seine"), 32, True)


def test_squad_row_of_a_padded_paragraph_points_into_the_context_without_blanks(read):
    (row,) = read(qa(answers=[answer(" France", 26)]), context=f"\n  {CONTEXT} ")
    assert row.context == CONTEXT
    assert row.answer_start is not None
    assert row.context[row.answer_start :].startswith("France.") and row.answer == "France"


def test_squad_question_without_an_answer_takes_the_one_of_the_config(read):
    unanswerable = qa(is_impossible=True, plausible_answers=[answer("Paris", 0)])
    (row,) = read(unanswerable)
    assert (row.answer, row.answers, row.answer_start) == ("The passages do not say.", (), None)
    assert not row.is_answerable
    (row,) = read(unanswerable, config="no_answer: unanswerable")
    assert row.answer == "unanswerable"


def test_squad_offsets_count_characters_and_not_utf16_units(read):
    (row,) = read(qa(answers=[answer("rises", 3)]), context="🌞é rises.")
    assert row.answer_start == 3
    with pytest.raises(UserError, match=r"answer_start 4 does not point at 'rises': it stands at 3\."):
        read(qa(answers=[answer("rises", 4)]), context="🌞é rises.")


def test_squad_columns_of_the_config_do_not_apply(read):
    (row,) = read(qa(answers=[answer("Paris", 0)]), config="columns: {question: text}")
    assert row.question == "Which city?"


QAS = "data[0].paragraphs[0].qas[1]"
RIGHT = qa(answers=[answer("Paris", 0)])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (qa(answers=[answer("Paris", 30)]), "answer_start 30 does not point at 'Paris': it stands at 32."),
        (qa(answers=[answer("Paris", -5)]), "answer_start -5 does not point at 'Paris': it stands at 0."),
        (qa(answers=[answer("London", 0)]), "answer_start 0 does not point at 'London': the context does not hold it."),
        (qa(answers=[answer("Paris", "0")]), "answer_start of 'Paris' is str, not a whole number."),
        (qa(answers=[{"text": "Paris"}]), "answer_start of 'Paris' is NoneType, not a whole number."),
        (qa(answers=[answer("", 0)]), "answers.text is empty."),
        (qa(answers=["Paris"]), "answers is not a list of objects with text and answer_start."),
        (qa(), "answers is empty: write one, or set is_impossible to true."),
        (
            qa(answers=[answer("Paris", 0)], is_impossible=True),
            "is_impossible is true, but there are answers: remove one of the two.",
        ),
        (qa(question=" "), "question is empty."),
        (qa(question=None), "question is empty."),
    ],
)
def test_squad_question_that_is_wrong_is_named_by_its_place(read, tmp_path, wrong, said):
    with pytest.raises(UserError) as error:
        read(RIGHT, wrong)
    assert str(error.value) == f"{tmp_path / 'test.json'} {QAS}: {said}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"data": {}}, "data is not a list, as SQuAD has it."),
        ({"data": [3]}, "data[0] is not an object, as SQuAD has it."),
        ({"data": [{"title": "T"}]}, "data[0]: paragraphs is not a list, as SQuAD has it."),
        ({"data": [{"paragraphs": [3]}]}, "data[0].paragraphs[0] is not an object, as SQuAD has it."),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "data[0].paragraphs[0]: context is empty."),
        ({"data": [{"paragraphs": [{"context": "A."}]}]}, "data[0].paragraphs[0]: qas is not a list, as SQuAD has it."),
        (
            {"data": [{"paragraphs": [{"context": "A.", "qas": [3]}]}]},
            "data[0].paragraphs[0].qas[0] is not an object, as SQuAD has it.",
        ),
        ({"data": []}, "has no rows: write at least one question and answer."),
    ],
)
def test_squad_file_that_is_wrong_names_the_place(read, tmp_path, data, said):
    with pytest.raises(UserError) as error:
        read(data=data)
    assert str(error.value) == f"{tmp_path / 'test.json'} {said}"
