"""The score below which a model abstains: how it is chosen, and on which questions."""

from typing import Any

import polars as pl
import pytest

from ev_platform.errors import UserError
from ev_platform.evaluation.calibration import (
    GROUPS,
    MIN_QUESTIONS,
    calibrate,
    choose,
    min_score_of,
    strange_questions,
    wilson,
)
from ev_platform.records import Chunk, DatasetRow, schema_of, to_frame
from ev_platform.tasks import get_task
from ev_platform.tasks.config import TaskConfig

CONFIG = TaskConfig()
FAR = [0.1] * 15 + [0.3] * 15


def test_choose_takes_the_middle_between_the_task_and_what_is_outside():
    min_score, reason = choose([0.5] * 40, FAR, CONFIG)
    assert min_score == pytest.approx(0.4)
    assert reason == "Below 0.400 lie 0 of 40 questions of the task (2% may) and 30 of 30 outside it."


@pytest.mark.parametrize(("share", "n_refused"), [(0.0199, 1), (0.02, 2), (0.1, 10)])
def test_choose_refuses_no_more_of_the_task_than_may_be(share, n_refused):
    own = [0.2 + n / 1000 for n in range(100)]
    config = TaskConfig.model_validate({"retrieval": {"max_false_abstention": share}})
    # Strangers stand between all of them, so that the bound alone decides.
    min_score, _ = choose(own, [*[0.1] * 50, *(score + 0.0004 for score in own)], config)
    assert min_score is not None
    assert sum(score < min_score for score in own) == n_refused


def test_choose_rounds_the_score_to_no_more_than_may_be():
    own = [0.1] * 4 + [0.50009] * 8 + [0.6] * 188
    min_score, _ = choose(own, [*[0.1] * 49, 0.50008], CONFIG)
    assert min_score is not None
    assert sum(score < min_score for score in own) == 4 == CONFIG.retrieval.max_false_abstention * 200


def test_choose_without_enough_questions_says_so():
    few = [0.5] * (MIN_QUESTIONS - 1)
    assert choose(few, FAR, CONFIG) == (
        None,
        "There are 19 questions of the task that it retrieves for; at least 20 are needed to choose a score.",
    )
    assert choose([0.5] * 20, few, CONFIG)[1].startswith("There are 19 questions outside the task;")


def test_choose_where_both_kinds_score_alike_gives_none():
    min_score, reason = choose([n / 40 for n in range(40)], [n / 40 for n in range(40)], CONFIG)
    assert min_score is None and reason.startswith("Scores do not tell the two kinds apart: below ")


def test_choose_that_is_switched_off_gives_none():
    off = TaskConfig.model_validate({"retrieval": {"max_false_abstention": 0}})
    assert choose([0.5] * 40, FAR, off) == (
        None,
        "Abstention by score is switched off: retrieval.max_false_abstention is 0.",
    )


@pytest.mark.parametrize("n_refused", [0, 3, 50])
def test_wilson_gives_scipys_interval(n_refused):
    from scipy.stats import binomtest

    expected = binomtest(n_refused, 50).proportion_ci(0.95, method="wilson")
    assert wilson(n_refused, 50) == pytest.approx((expected.low, expected.high), abs=1e-4)


# ---- questions outside the task ----


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a task."""
    folder = tmp_path / "plants"
    folder.mkdir()
    (folder / "job_description.json").write_text('{"task_description": "Answers questions about cables."}')
    return folder


def task_with(folder, config=""):
    (folder / "config.yaml").write_text(config)
    return get_task(folder.name, folder.parent)


def test_strange_questions_are_distinct_and_half_of_each_topic_is_held_out(folder):
    found = strange_questions(task_with(folder))
    assert len({it.question for it in found}) == len(found) == 100
    for topic in {it.topic for it in found}:
        own = [it.is_held_out for it in found if it.topic == topic]
        assert sum(own) == len(own) / 2
    assert {"instructions", "politics", "small_talk", "general"} <= {it.topic for it in found}


def test_strange_questions_leave_out_the_topics_that_are_the_tasks_own(folder):
    found = strange_questions(task_with(folder, "evaluation: {out_of_domain: {without: [household, computers]}}"))
    assert len(found) == 88 and not {"household", "computers"} & {it.topic for it in found}
    with pytest.raises(UserError, match=r"config\.yaml: .*without names 'garden', which is no topic: choose"):
        strange_questions(task_with(folder, "evaluation: {out_of_domain: {without: [garden]}}"))


def test_strange_questions_come_from_the_tasks_own_file(folder):
    task = task_with(folder, "evaluation: {out_of_domain: {file: strangers.yaml}}")
    with pytest.raises(UserError, match=r"strangers\.yaml is missing"):
        strange_questions(task)
    (folder / "strangers.yaml").write_text("birds:\n  - Do owls sing?\n  - Do finches?\n")
    assert [(it.question, it.topic, it.is_held_out) for it in strange_questions(task)] == [
        ("Do owls sing?", "birds", False),
        ("Do finches?", "birds", True),
    ]
    for content in ("birds: 3\n", "- Do owls sing?\n", "birds: []\n", "birds: [3]\n", ""):
        (folder / "strangers.yaml").write_text(content)
        with pytest.raises(UserError, match=r"strangers\.yaml should hold topics, each with a list of questions"):
            strange_questions(task)
    (folder / "strangers.yaml").write_text("birds: [")
    with pytest.raises(UserError, match=r"strangers\.yaml is not valid YAML"):
        strange_questions(task)


# ---- over a corpus ----

CABLES = [f"A resistor of {n} ohm in the plug marks a charging cable for {n} ampere." for n in range(10, 40)]
CHUNKS = to_frame(
    "chunks",
    [Chunk(f"chk_{n}", "doc", "doc", n, 0, 9, "Cables", None, text, 9) for n, text in enumerate(CABLES)],
)


def rows(split, questions, **changes):
    known: dict[str, Any] = dict.fromkeys(DatasetRow.__dataclass_fields__) | {
        "split": split,
        "answer": "32 A",
        "answers": ["32 A"],
    }
    known |= {"is_answerable": True, "context_chunk_ids": [], "messages": [], "origin": "human"}
    return [
        DatasetRow(**known | {"example_id": f"{split}_{n}_{len(q)}", "question": q} | changes)
        for n, q in enumerate(questions)
    ]


TRAINED = [f"Which resistor marks a charging cable for {n} ampere?" for n in range(10, 35)]
TESTED = ["Which charging cable has a resistor of 22 ohm?", "Where do penguins live?"]


def tables_of(task, trained, tested, chunks=CHUNKS):
    return calibrate(task, chunks, None, to_frame("training_set", trained), to_frame("benchmark", tested))


def shares(tables):
    return {row["group"]: (row["n"], row["n_refused"]) for row in tables["abstention_calibration"].to_dicts()}


def test_calibrate_lets_the_task_in_and_keeps_strangers_out(folder):
    tested = [
        *rows("test", TESTED),
        *rows("test", ["Which cable did the king of Spain buy?"], is_answerable=False),
        *rows("test", ["What is it?"], context="A row with a passage of its own is not searched for."),
    ]
    tables = tables_of(task_with(folder), rows("train", TRAINED), tested)
    found = shares(tables)
    assert list(found) == list(GROUPS)
    assert found["trained"] == (25, 0)
    assert found["strange"] == (50, 50)
    assert found["strange_held_out"][0] == 50 and found["strange_held_out"][1] >= 48
    assert found["answerable"] == (2, 1)
    assert found["unanswerable"][0] == 1
    min_score = min_score_of(tables["abstention_calibration"])
    scores = tables["abstention_scores"]
    assert min_score is not None
    assert scores["is_refused"].to_list() == (scores["score"] < min_score).to_list()
    refused = scores.filter((pl.col("group") == "answerable") & pl.col("is_refused"))["question"].to_list()
    assert refused == ["Where do penguins live?"]
    for name, table in tables.items():
        assert table.schema == schema_of(name)
        assert table.equals(tables_of(task_with(folder), rows("train", TRAINED), tested)[name])


def test_calibrate_learns_from_people_where_they_asked_enough(folder):
    made = rows("train", ["Which is it?", "Who?"], origin="generated")
    tables = tables_of(task_with(folder), [*rows("train", TRAINED), *made], [])
    assert shares(tables)["trained"] == (25, 0)
    fewer = tables_of(task_with(folder), [*rows("train", TRAINED[:19]), *made], [])
    assert shares(fewer)["trained"][0] == 21


def test_calibrate_does_not_learn_from_rows_that_retrieval_has_no_say_in(folder):
    trained = [
        *rows("train", TRAINED[:20], context="Its own passage."),
        *rows("train", TRAINED[20:], is_answerable=False),
    ]
    table = tables_of(task_with(folder), trained, [])["abstention_calibration"]
    assert min_score_of(table) is None
    assert table.item(0, "reason").startswith("There are 0 questions of the task that it retrieves for;")


@pytest.mark.parametrize(("kind", "chunks"), [("open_book_qa", CHUNKS.clear()), ("classification", CHUNKS)])
def test_calibrate_where_nothing_is_retrieved_says_so(folder, kind, chunks):
    tables = tables_of(task_with(folder, f"type: {kind}"), rows("train", TRAINED), [], chunks)
    assert tables["abstention_scores"].is_empty()
    assert min_score_of(tables["abstention_calibration"]) is None
    assert set(tables["abstention_calibration"]["reason"]) == {
        "Nothing is retrieved, so that no score can tell what is out of scope."
    }
