"""The offline teacher as the stages see it: which questions it returns, what it cannot do, and its labels."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ev_platform.errors import UserError
from ev_platform.teachers import (
    AnswerJob,
    Brief,
    CheckJob,
    GenerationJob,
    JudgeJob,
    PairJob,
    QuestionPlan,
    Shot,
    TextJob,
)
from ev_platform.teachers.offline import OfflineTeacher, prompt_version

BRIEF = Brief("Answer questions about charging.", "open_book_qa", no_answer="Not said.")
TASKS = Path(__file__).parents[3] / "shared" / "data" / "tasks"

CONNECTORS = """A Type 2 connector has seven contacts. The long CCS cable must withstand a pull of 500 N.
A charging detail record is the bill of one session."""
CABLES = """A resistor of 220 ohm marks a Type 2 cable for 32 A. A Mode 3 cable is the link between car and station.
A damaged Mode 3 cable must be replaced within 48 hours."""
POWER = """A DC station takes 158 kW from the grid. A full Type 2 session lasts about 8 hours.
Bare copper conductors are common in a DC station because copper bends well."""


def job(source_id, text, *kinds, heading_path="Charging stations"):
    return GenerationJob(source_id, heading_path, text, tuple(QuestionPlan(kind, "easy", "driver") for kind in kinds))


def generated(jobs, brief=BRIEF, **teacher):
    outcomes = list(OfflineTeacher(**teacher).generate(brief, jobs))
    assert [outcome.source_id for outcome in outcomes] == [each.source_id for each in jobs]
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize("kind", ["number", "requirement", "definition", "yes_no"])
def test_generate_returns_the_kind_that_is_asked_for(kind):
    ((draft,),) = generated([job("a", CONNECTORS, kind)])
    assert draft.kind == kind


def test_generate_returns_another_kind_where_the_passage_gives_no_such():
    ((draft,),) = generated([job("a", CONNECTORS, "comparison")])
    assert draft.kind in {"number", "requirement", "definition"}


def test_generate_asks_whether_something_holds_only_where_that_is_wanted():
    text = "A Type 2 connector is certified in the north of Norway."
    assert generated([job("a", text, "number")]) == [()]
    ((draft,),) = generated([job("a", text, "yes_no")])
    assert draft.answer == "Yes, a Type 2 connector is certified in the north of Norway"


def test_generate_returns_at_most_one_draft_a_plan_and_none_twice():
    (drafts,) = generated([job("a", CONNECTORS, *["number"] * 6)])
    assert 1 <= len(drafts) <= 6
    assert len({draft.question for draft in drafts}) == len(drafts)
    (two,) = generated([job("a", CONNECTORS, "number", "definition")])
    assert {draft.kind for draft in two} == {"number", "definition"}


def test_generate_takes_different_sentences_while_there_are_some():
    (drafts,) = generated([job("a", CONNECTORS, "yes_no", "yes_no")])
    assert len({draft.evidence for draft in drafts}) == 2


def test_generate_of_a_passage_that_fits_no_rule_is_ok_and_empty():
    (outcome,) = OfflineTeacher().generate(BRIEF, [job("a", "So it goes, here and there.", "number")])
    assert (outcome.status, outcome.value, outcome.cost_usd, outcome.call_id) == ("ok", (), 0.0, None)


def test_question_that_a_passage_answers_in_two_ways_is_not_asked():
    text = "A Type 2 connector has seven contacts. A Type 2 connector has five contacts."
    assert generated([job("a", text, "number", "number")]) == [()]


def test_generate_of_another_language_is_unsupported_and_says_so():
    (outcome,) = OfflineTeacher().generate(replace(BRIEF, language="de"), [job("a", CONNECTORS, "number")])
    assert (outcome.status, outcome.value) == ("unsupported", None)
    assert outcome.detail == "The offline teacher's rules are for English and the task's language is 'de'."


def test_heading_that_asks_is_answered_by_the_first_passage_below_it_only():
    heading = "FAQ > How much power does a home station give?"
    texts = ("A home station gives 11 kW in most houses.", "A home station gives 7 kW in some houses.")
    first, second = generated([job(t, t, "number", "number", heading_path=heading) for t in texts])
    assert "How much power does a home station give?" in [draft.question for draft in first]
    assert "How much power does a home station give?" not in [draft.question for draft in second]


PASSAGES = [
    job("a", CONNECTORS, "number", "unanswerable"),
    job("b", CABLES, "number", "unanswerable"),
    job("c", POWER, "number", "unanswerable"),
]


def test_unanswerable_question_is_about_the_subject_and_its_passage_does_not_answer_it():
    sets = generated(PASSAGES)
    everything = {draft.question: draft for each in PASSAGES for draft in _all_drafts(each)}
    foreign = [
        (each, draft)
        for each, drafts in zip(PASSAGES, sets, strict=True)
        for draft in drafts
        if not draft.is_answerable
    ]
    assert len(foreign) >= 2
    for each, draft in foreign:
        assert (draft.kind, draft.is_answerable, draft.answer, draft.evidence) == (
            "unanswerable",
            False,
            "Not said.",
            None,
        )
        truth = everything[draft.question].answer
        assert not set(re.findall(r"\w{4,}|\d+", truth.lower())) & set(re.findall(r"\w+", each.text.lower())), draft
        here = f"{each.heading_path} {each.text}".lower()
        assert any(word.rstrip("s") in here for word in re.findall(r"\w{5,}", draft.question.lower())), draft


def _all_drafts(each):
    plans = ["number", "requirement", "definition", "reason", "fact"] * 3
    return generated([job(each.source_id, each.text, *plans)])[0]


def test_unanswerable_question_is_given_to_one_passage_only_and_asked_nowhere_else():
    questions = [draft.question for drafts in generated(PASSAGES) for draft in drafts]
    assert len(set(questions)) == len(questions)


def test_unanswerable_question_never_comes_from_a_passage_that_says_the_same():
    twins = [job("a", CONNECTORS, "unanswerable"), job("b", CONNECTORS + " A plug is a part.", "unanswerable")]
    assert [draft.kind for drafts in generated(twins) for draft in drafts].count("unanswerable") == 0


def test_unanswerable_question_about_something_else_is_not_taken():
    tomatoes = "A ripe garden tomato has twelve seeds. A wooden greenhouse is the home of a young plant."
    jobs = [job("a", CONNECTORS, "unanswerable"), job("b", tomatoes, "number", heading_path="Garden")]
    assert [draft.kind for draft in generated(jobs)[0]] != ["unanswerable"]


def test_generate_is_the_same_twice_and_another_seed_chooses_others():
    assert generated(PASSAGES) == generated(PASSAGES)
    assert len({str(generated([job("a", CONNECTORS, "comparison")], seed=seed)) for seed in range(8)}) > 1


def test_generate_of_a_changed_passage_leaves_the_other_passages_as_they_were():
    plans = [replace(each, plans=each.plans[:1]) for each in PASSAGES]
    changed = [*plans[:2], replace(plans[2], text=POWER.replace("158", "160"))]
    assert generated(plans)[:2] == generated(changed)[:2]


def test_example_gives_enough_sound_questions(example_documents):
    jobs = []
    for text, title in example_documents.select("text", "title").iter_rows():
        parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
        for heading, body in zip(["", *parts[1::2]], parts[::2], strict=True):
            path = f"{title} > {heading}" if heading else title
            jobs.append(job(f"{path} {len(jobs)}", body, "number", "definition", "yes_no", heading_path=path))
    drafts = [(each, draft) for each, found in zip(jobs, generated(jobs), strict=True) for draft in found]
    assert len(drafts) > 140
    for each, draft in drafts:
        assert draft.question[0].isupper() and draft.question.endswith("?")
        assert draft.evidence and (draft.evidence in each.text or draft.kind == "procedure"), draft


def test_prompt_version_is_a_stable_hash():
    (outcome,) = OfflineTeacher().generate(BRIEF, [job("a", CONNECTORS, "number")])
    assert outcome.prompt_version == prompt_version()
    assert re.fullmatch(r"prm_[0-9a-f]{20}", prompt_version())


# ---- labels ----

CLASSES = {"lost_card": "The card was lost or stolen.", "exchange_rate": "How foreign money is converted."}
ROWS = (
    Shot("My card has disappeared.", "lost_card"),
    Shot("Somebody stole my card on the train.", "lost_card"),
    Shot("I cannot find my card anywhere.", "lost_card"),
    Shot("What rate do I get for euros?", "exchange_rate"),
    Shot("How do you convert dollars into pounds?", "exchange_rate"),
    Shot("The rate for my foreign payment was wrong.", "exchange_rate"),
)
BANK = Brief("Route the request of a customer.", "classification", classes=CLASSES)
ASKED = {
    "I think I left my card in a taxi.": "lost_card",
    "A thief has my card!": "lost_card",
    "How good is your rate for yen?": "exchange_rate",
    "Which conversion do you use for francs?": "exchange_rate",
}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ()], ids=["calibrated", "one row", "descriptions alone"])
def test_labels_of_clear_texts_are_right_and_confident(rows):
    outcomes = list(OfflineTeacher(rows).label(BANK, [TextJob(text, text) for text in ASKED]))
    assert {outcome.source_id: outcome.value.label for outcome in outcomes} == ASKED
    assert all(0.5 < outcome.value.confidence <= 1 for outcome in outcomes)


def test_labels_of_a_text_between_two_classes_are_less_confident():
    clear, vague = OfflineTeacher(ROWS).label(BANK, [TextJob("a", "My card was stolen."), TextJob("b", "Hello there.")])
    assert clear.value and vague.value
    assert clear.value.confidence > vague.value.confidence


def test_labels_take_the_shots_of_the_brief_and_leave_out_unknown_labels():
    rows = [Shot("My card has disappeared.", "exchange_rate"), Shot("Where is the bank?", "unheard_of")]
    text = [TextJob("a", "My card has disappeared.")]
    (plain,) = OfflineTeacher().label(BANK, text)
    (taught,) = OfflineTeacher().label(replace(BANK, shots=tuple(rows)), text)
    assert (plain.value.label, taught.value.label) == ("lost_card", "exchange_rate")


def test_labels_without_classes_are_refused():
    with pytest.raises(UserError, match=r"^job_description.json: classes_description names fewer than two classes"):
        list(OfflineTeacher().label(BRIEF, [TextJob("a", "text")]))


def test_answer_of_a_classification_task_is_the_label():
    outcomes = list(OfflineTeacher(ROWS).answer(BANK, [AnswerJob(text, text) for text in ASKED]))
    assert {outcome.source_id: outcome.value for outcome in outcomes} == ASKED


def test_what_needs_a_language_model_is_unsupported_and_says_so():
    teacher = OfflineTeacher()
    outcomes = [
        *teacher.answer(BRIEF, [AnswerJob("a", "How long?")]),
        *teacher.judge(BRIEF, [JudgeJob("b", "How long?", "an hour", "a day")]),
        *teacher.check(BRIEF, [CheckJob("c", "text", "How long?", "an hour")]),
        *teacher.compare(BRIEF, [PairJob("d", "How long?", "an hour", "a day", "60 minutes")]),
    ]
    assert [(outcome.source_id, outcome.status, outcome.value) for outcome in outcomes] == [
        ("a", "unsupported", None),
        ("b", "unsupported", None),
        ("c", "unsupported", None),
        ("d", "unsupported", None),
    ]
    abilities = ("answer questions", "judge answers", "check examples", "compare answers")
    for outcome, what in zip(outcomes, abilities, strict=True):
        assert outcome.detail == (
            f"The offline teacher has no language model, so that it cannot {what}; "
            "configure teacher.provider to use one."
        )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "least"), [("distil_banking_routing", 0.85), ("distil_ecommerce", 0.85), ("distil_mental_health", 0.8)]
)
def test_labels_of_a_public_folder_are_mostly_right_and_better_where_confident(name, least):
    folder = TASKS / name
    if not folder.exists():
        pytest.skip("the real task folders are not beside this checkout")
    classes = json.loads((folder / "job_description.json").read_text())["classes_description"]
    rows = {}
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            rows[split] = [Shot(row["question"], row["answer"]) for row in csv.DictReader(file)]
    brief = Brief("Classify the text.", "classification", classes=classes)
    jobs = [TextJob(str(i), row.question) for i, row in enumerate(rows["test"])]
    labels = [outcome.value for outcome in OfflineTeacher(rows["train"]).label(brief, jobs)]
    scored = sorted(
        (label.confidence, label.label == row.answer) for label, row in zip(labels, rows["test"], strict=True)
    )
    accuracy = sum(right for _, right in scored) / len(scored)
    print(
        f"\n{name}: {len(rows['train'])} rows, {len(classes)} classes, accuracy {accuracy:.3f}, "
        f"mean confidence {sum(c for c, _ in scored) / len(scored):.3f}"
    )
    for limit in (0.5, 0.7, 0.9):
        kept = [right for confidence, right in scored if confidence >= limit]
        print(f"  confidence >= {limit}: {len(kept)} of {len(scored)} rows, accuracy {sum(kept) / len(kept):.3f}")
    assert accuracy >= least
    half = len(scored) // 2
    assert sum(right for _, right in scored[half:]) > sum(right for _, right in scored[:half])
