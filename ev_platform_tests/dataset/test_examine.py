"""The teacher's examination, with a teacher whose every answer is written down here."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from ev_platform.dataset.examine import examine_teacher
from ev_platform.errors import UserError
from ev_platform.evaluation.metrics import score_rows
from ev_platform.records import Example, TeacherAnswer, TeacherEvaluation, to_frame
from ev_platform.tasks.config import TaskConfig, TeacherEvaluationConfig
from ev_platform.tasks.models import read_model
from ev_platform.teachers import Brief, Judgement, Label, Outcome

BRIEF = Brief("Answer questions about charging.", "open_book_qa")
LABELS = Brief("Name the language.", "classification", classes={"C": "", "C++": ""})
PLAIN = TeacherEvaluationConfig(is_judged=False)


class BookTeacher:
    """Answers, labels and judges by the book it is given; an entry may be an `Outcome` of its own."""

    name = "book"

    def __init__(self, answers=None, judgements=None):
        self.answers = answers or {}
        self.judgements = judgements
        self.asked, self.judged = [], []

    def answer(self, brief, jobs):
        for job in jobs:
            self.asked.append(job)
            entry = self.answers[job.question]
            yield (
                entry
                if isinstance(entry, Outcome)
                else Outcome(
                    job.source_id, "ok", entry, call_id=f"call_{job.source_id}", cost_usd=0.01, prompt_version="v1"
                )
            )

    def label(self, brief, jobs):
        for job in jobs:
            label, call_id = Label(self.answers[job.text], 0.9), f"call_{job.source_id}"
            yield Outcome(job.source_id, "ok", label, call_id=call_id, cost_usd=0.002, prompt_version="l1")

    def judge(self, brief, jobs):
        for job in jobs:
            self.judged.append(job)
            if self.judgements is None:
                yield Outcome(job.source_id, "unsupported", detail="no judge")
                continue
            entry = self.judgements[job.question]
            yield (
                entry
                if isinstance(entry, Outcome)
                else Outcome(job.source_id, "ok", Judgement(entry, "so it is"), call_id="call_judge", cost_usd=0.005)
            )


class MuteTeacher(BookTeacher):
    name = "mute"

    def answer(self, brief, jobs):
        return (Outcome(job.source_id, "unsupported", detail="needs a model") for job in jobs)

    label = answer


def example(question, answer, *, answers=(), context=None, split="test"):
    fields = dict.fromkeys(Example.__dataclass_fields__)
    given = {
        "example_id": f"exm_{question}",
        "question": question,
        "answer": answer,
        "answers": [answer, *answers],
        "context": context,
        "is_answerable": True,
        "origin": "human",
        "kind": "human",
        "split": split,
    }
    return Example(**(fields | given))  # type: ignore[arg-type]


def tests_of(*pairs):
    return to_frame("examples", [example(question, answer) for question, answer in pairs])


def examine(frame, teacher, config=PLAIN, *, brief=BRIEF, contexts=None, overruled_by=None):
    tables = examine_teacher(frame, contexts or {}, teacher, brief, config, overruled_by)
    (evaluation,) = tables["teacher_evaluation"].to_dicts()
    answers = [TeacherAnswer(**row) for row in tables["teacher_answers"].iter_rows(named=True)]
    return TeacherEvaluation(**evaluation), answers


def failure(status):
    return Outcome("", status, detail=f"it was {status}")


def test_examine_answers_get_the_figures_of_the_metrics():
    frame = tests_of(("q1", "about 50 kW of power"), ("q2", "Type 2"))
    evaluation, answers = examine(frame, BookTeacher({"q1": "50 kW", "q2": "type 2"}))
    expected = score_rows(["50 kW", "type 2"], ["about 50 kW of power", "Type 2"])
    figures = [(a.exact_match, a.token_f1, a.rouge_l, a.meteor) for a in answers]
    assert figures == expected.select("exact_match", "token_f1", "rouge_l", "meteor").rows()
    assert evaluation.metric == "token_f1"
    assert evaluation.value == pytest.approx(expected["token_f1"].mean())
    assert json.loads(evaluation.scores)["rouge_l"] == pytest.approx(expected["rouge_l"].mean(), abs=1e-6)
    assert (evaluation.teacher, evaluation.prompt_version, evaluation.n_rows) == ("book", "v1", 2)
    assert evaluation.cost_usd == pytest.approx(0.02)


def test_examine_rows_that_ask_the_same_share_a_call_and_its_cost_is_counted_once():
    evaluation, answers = examine(tests_of(("Same?", "yes"), ("Same?", "no")), BookTeacher({"Same?": "yes"}))
    assert [answer.call_id for answer in answers] == ["call_exm_Same?"] * 2
    assert evaluation.cost_usd == 0.01


def test_examine_several_accepted_answers_count_the_best_one():
    frame = to_frame("examples", [example("q", "electric vehicle supply equipment", answers=["EVSE"])])
    _, (answer,) = examine(frame, BookTeacher({"q": "EVSE"}))
    assert (answer.exact_match, answer.token_f1) == (1.0, 1.0)
    assert answer.reference == "electric vehicle supply equipment"


def test_examine_only_test_rows_are_asked_with_their_own_passage_first():
    rows = [
        example("own", "x", context="Its own passage."),
        example("found", "x"),
        example("bare", "x"),
        example("training", "x", split="train"),
    ]
    teacher = BookTeacher(dict.fromkeys(("own", "found", "bare"), "x"))
    brought = {"exm_own": ("not this",), "exm_found": ("one", "two")}
    examine(to_frame("examples", rows), teacher, contexts=brought)
    assert [(job.question, job.contexts) for job in teacher.asked] == [
        ("own", ("Its own passage.",)),
        ("found", ("one", "two")),
        ("bare", ()),
    ]


@pytest.mark.parametrize(
    ("n_right", "verdict", "is_blocking", "advice"),
    [
        (6, "proceed", False, "at least 0.6"),
        (5, "iterate", True, "read the worst rows of teacher_answers"),
        (3, "iterate", True, "read the worst rows of teacher_answers"),
        (2, "rethink", True, "the task or the teacher does not fit"),
    ],
)
def test_examine_verdict_follows_the_thresholds(n_right, verdict, is_blocking, advice):
    frame = tests_of(*((f"q{i}", f"word{i}") for i in range(10)))
    book = {f"q{i}": f"word{i}" if i < n_right else "wrong" for i in range(10)}
    evaluation, _ = examine(frame, BookTeacher(book))
    assert (evaluation.verdict, evaluation.is_blocking) == (verdict, is_blocking)
    assert f"token_f1 is {n_right / 10:.3f} over 10 test rows" in evaluation.reason
    assert advice in evaluation.reason
    assert json.loads(evaluation.thresholds) == {"proceed": 0.6, "rethink": 0.3}


def test_examine_a_person_overrules_and_the_verdict_stays():
    evaluation, _ = examine(tests_of(("q", "x")), BookTeacher({"q": "wrong"}), overruled_by="The test rows are old.")
    assert evaluation.verdict == "rethink"
    assert not evaluation.is_blocking
    assert evaluation.overruled_by == "The test rows are old."


def test_examine_an_empty_reason_overrules_nothing():
    evaluation, _ = examine(tests_of(("q", "x")), BookTeacher({"q": "wrong"}), overruled_by="  ")
    assert evaluation.is_blocking
    assert evaluation.overruled_by is None


def test_examine_judge_decides_where_there_is_one_and_sees_what_was_accepted():
    rows = [example("q1", "a wall box", answers=["EVSE"], context="A passage."), example("q2", "Type 2")]
    teacher = BookTeacher({"q1": "a home charger", "q2": "type  2"}, {"q1": 0.8})
    evaluation, answers = examine(to_frame("examples", rows), teacher, TeacherEvaluationConfig())
    (job,) = teacher.judged  # the other answer equals its reference: nothing to pay a judge for
    assert (job.reference, job.prediction, job.contexts) == (
        "any one of these: a wall box; EVSE",
        "a home charger",
        ("A passage.",),
    )
    assert [(a.judge_score, a.judge_reason) for a in answers] == [(0.8, "so it is"), (1.0, "equals an accepted answer")]
    assert (evaluation.metric, evaluation.value, evaluation.verdict) == ("judge", pytest.approx(0.9), "proceed")
    assert answers[0].judge_call_id == "call_judge"
    assert evaluation.cost_usd == pytest.approx(0.025)


def test_examine_teacher_that_cannot_judge_is_scored_by_token_f1():
    evaluation, answers = examine(
        tests_of(("q1", "x"), ("q2", "b")), BookTeacher({"q1": "x", "q2": "wrong"}), TeacherEvaluationConfig()
    )
    assert (evaluation.metric, evaluation.value) == ("token_f1", 0.5)
    assert [a.judge_score for a in answers] == [None, None]


def test_examine_judge_that_fails_on_most_answers_decides_nothing():
    frame = tests_of(*((f"q{i}", "x") for i in range(4)))
    book = dict.fromkeys(("q0", "q1", "q2", "q3"), "wrong")
    teacher = BookTeacher(book, {"q0": 1.0, "q1": 1.0, "q2": failure("refused"), "q3": failure("failed")})
    # Outcomes name their job in the order asked, whatever a fake writes into them.
    teacher.judgements |= {q: Outcome(f"exm_{q}", "refused", detail="no") for q in ("q2", "q3")}
    evaluation, answers = examine(frame, teacher, TeacherEvaluationConfig())
    assert evaluation.metric == "token_f1"
    assert answers[2].judge_reason == "refused: no"
    forced, _ = examine(frame, teacher, TeacherEvaluationConfig(metric="judge"))
    assert (forced.verdict, forced.is_blocking, forced.value) == ("not_evaluated", True, None)
    assert "name another metric" in forced.reason


def test_examine_rows_without_an_answer_count_as_wrong_and_show_why():
    frame = tests_of(("q1", "x"), ("q2", "b"), ("q3", "c"))
    book = {"q1": "x", "q2": failure("refused"), "q3": failure("failed")}
    evaluation, answers = examine(frame, BookTeacher(book))
    assert [(a.status, a.prediction, a.token_f1) for a in answers] == [
        ("ok", "x", 1.0),
        ("refused", None, 0.0),
        ("failed", None, 0.0),
    ]
    assert answers[1].detail == "it was refused"
    assert evaluation.value == pytest.approx(1 / 3)
    assert evaluation.n_answered == 1
    assert "(1 failed, 1 refused, counted as wrong)" in evaluation.reason


@pytest.mark.parametrize("status", ["failed", "over_budget", "interrupted"])
def test_examine_a_provider_that_fails_most_rows_gives_no_verdict_and_stops(status):
    frame = tests_of(("q1", "x"), ("q2", "b"), ("q3", "c"))
    evaluation, _ = examine(frame, BookTeacher({"q1": "x", "q2": failure(status), "q3": failure(status)}))
    assert (evaluation.verdict, evaluation.is_blocking, evaluation.value) == ("not_evaluated", True, None)
    assert f"2 {status}" in evaluation.reason


def test_examine_a_model_that_refuses_most_rows_is_to_be_thought_over():
    frame = tests_of(("q1", "x"), ("q2", "b"), ("q3", "c"), ("q4", "d"))
    book = {"q1": "x"} | {q: failure("refused") for q in ("q2", "q3", "q4")}
    evaluation, _ = examine(frame, BookTeacher(book))
    assert (evaluation.verdict, evaluation.is_blocking) == ("rethink", True)


@pytest.mark.parametrize(("brief", "what"), [(BRIEF, "answer questions"), (LABELS, "label texts")])
def test_examine_a_teacher_that_cannot_answer_does_not_stop_the_run(brief, what):
    evaluation, answers = examine(tests_of(("q", "C")), MuteTeacher(), TeacherEvaluationConfig(), brief=brief)
    assert (evaluation.verdict, evaluation.is_blocking, evaluation.n_answered) == ("not_evaluated", False, 0)
    assert f"cannot {what}" in evaluation.reason
    assert (answers[0].status, answers[0].token_f1) == ("unsupported", None)
    assert json.loads(evaluation.scores) == {}


def test_examine_without_test_rows_stops():
    evaluation, answers = examine(to_frame("examples", [example("q", "x", split="train")]), BookTeacher())
    assert (evaluation.verdict, evaluation.is_blocking, evaluation.n_rows, answers) == ("not_evaluated", True, 0, [])
    assert "no test rows" in evaluation.reason


def test_examine_classes_are_labelled_and_compared_as_labels():
    frame = tests_of(("int x;", "C"), ("int y;", "C++"), ("int z;", "C++"))
    book = {"int x;": "C", "int y;": "C++", "int z;": "C"}
    evaluation, answers = examine(frame, BookTeacher(book), TeacherEvaluationConfig(), brief=LABELS)
    assert [a.exact_match for a in answers] == [1.0, 1.0, 0.0]
    assert (evaluation.metric, evaluation.value) == ("accuracy", pytest.approx(2 / 3))
    assert evaluation.prompt_version == "l1"
    assert [a.judge_score for a in answers] == [None] * 3


def test_examine_classes_with_a_judge_to_decide_are_refused():
    with pytest.raises(UserError, match="use accuracy"):
        examine(tests_of(("q", "C")), BookTeacher(), TeacherEvaluationConfig(metric="judge"), brief=LABELS)


def test_examine_takes_rows_from_all_over_the_file():
    frame = tests_of(*((f"q{i}", "x") for i in range(10)))
    config = TeacherEvaluationConfig(max_rows=4, is_judged=False)
    _, answers = examine(frame, BookTeacher({f"q{i}": "x" for i in range(10)}), config)
    assert [a.question for a in answers] == ["q0", "q2", "q5", "q7"]


def test_examine_the_same_rows_give_the_same_tables():
    frame = tests_of(("q1", "about 50 kW"), ("q2", "b"))
    first, second = (examine_teacher(frame, {}, BookTeacher({"q1": "50 kW", "q2": "b"}), BRIEF, PLAIN) for _ in "12")
    assert all(first[table].equals(second[table]) for table in first)
    assert isinstance(first["teacher_answers"], pl.DataFrame)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"proceed": 0.2, "rethink": 0.5}, "rethink (0.5) is above proceed (0.2)"),
        ({"metric": "judge", "is_judged": False}, "metric is judge, but is_judged is false"),
    ],
)
def test_config_that_contradicts_itself_is_told_in_one_sentence(tmp_path, written, told):
    file = Path(tmp_path) / "config.yaml"
    file.write_text(yaml.safe_dump({"teacher_evaluation": written}))
    with pytest.raises(UserError) as caught:
        read_model(TaskConfig, file)
    assert f"{file}: teacher_evaluation: " in str(caught.value)
    assert told in str(caught.value)
