from datetime import UTC, datetime

import pytest

from ev_platform.dataset.overlap import Vectors
from ev_platform.dataset.validate import validate_candidates
from ev_platform.records import Chunk, Review, to_frame
from ev_platform.tasks.config import DatasetConfig
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers import Check, Outcome
from ev_platform_tests.dataset.test_overlap import example

TEXT = "Type 1 carries 32 A and Type 2 carries 63 A. The tower of Arden was built in 1931."
CHUNKS = to_frame("chunks", [Chunk("chk_1", "doc_1", "doc_1", 0, 0, 9, "Plugs", None, TEXT, 9)])
EMBED = Vectors()
NO_ANSWER = "The passages do not say."


def generated(question="How much current does Type 1 carry?", answer="32 A", **changes):
    fields = {"origin": "generated", "chunk_id": "chk_1", "kind": "number", "call_id": "call_1", "cost_usd": 0.5}
    return example(question, answer, **(fields | changes))


def validate(*rows, reviews=(), classes=None, check=None):
    made = to_frame("qa_candidates", rows)
    tables = validate_candidates(
        made,
        CHUNKS,
        reviews,
        config=DatasetConfig(),
        task_type=get_task_type("open_book_qa"),
        classes=classes or {},
        no_answer=NO_ANSWER,
        languages=["en"],
        check=check,
        embed=EMBED,
    )
    kept, rejected = tables["examples"], tables["rejected_examples"]
    assert sorted([*kept["example_id"], *rejected["example_id"]]) == sorted(made["example_id"]) or reviews
    assert kept.height + rejected.height == made.height
    return kept, dict(zip(rejected["question"], rejected["reject_reason"], strict=True)), rejected


def review(row, decision, question="", answer=""):
    return Review(row.example_id, decision, question, answer, "ann", None, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (generated(chunk_id=None), "no_source"),
        (generated(answer="33 A"), "number_not_in_passage"),
        (generated(answer="</s> 32 A"), "residue"),
        (generated(answer="No connector information available"), "refusal"),
        (generated("How much does it carry?"), "not_self_contained"),
        (generated("Type 1 current"), "not_a_question"),
        (generated(answer="63 A " * 31), "answer_too_long"),
        (generated(origin="labelled", confidence=0.2), "unsure_label"),
    ],
)
def test_candidate_that_trips_a_rule_is_rejected_with_its_reason_and_cost(row, reason):
    kept, reasons, rejected = validate(row)
    assert reasons == {row.question: reason} and kept.is_empty()
    assert (rejected["call_id"].item(), rejected["cost_usd"].item()) == (row.call_id, row.cost_usd)


def test_answer_that_a_person_wrote_may_be_as_long_as_they_want():
    kept, reasons, _ = validate(example("How is a plug made?", "First it is cast. " * 40, chunk_id="chk_1"))
    assert kept.height == 1 and not reasons


def test_every_candidate_ends_as_an_example_or_as_a_rejected_one():
    test = example("When was the tower of Arden built?", "1931", split="test", row="test.csv row 2")
    rows = [
        generated(),
        generated("How much current is carried by Type 1?", example_id="again"),
        generated("How much current does Type 2 carry?", "63 A"),
        generated("When was the tower of Arden built?", "1931", example_id="leak"),
        example("How many plugs are there?", "2", chunk_id="chk_1", row="train.csv row 2"),
        test,
    ]
    kept, reasons, _ = validate(*rows)
    assert kept["question"].to_list() == [test.question, rows[4].question, rows[0].question, rows[2].question]
    assert reasons == {rows[1].question: "near_duplicate_question", test.question: "equals_test_question"}


def test_test_row_is_kept_unless_it_repeats_another():
    odd = example("it", "</s>", split="test", row="test.csv row 2")
    again = example("It!", "b", split="test", row="test.csv row 3", example_id="again")
    kept, reasons, _ = validate(odd, again)
    assert kept["question"].to_list() == ["it"] and reasons == {"It!": "repeated_question"}


def test_reviewed_rows_win_over_generated_ones_and_skip_the_rules_of_style():
    first, good = generated("How much current is carried by Type 1?"), generated()
    bad = generated("Where is it?", "33 A")
    kept, reasons, _ = validate(
        first, good, bad, reviews=[review(good, "accept"), review(bad, "edit", "Type 2, current", "63 A")]
    )
    assert kept["question"].to_list() == [good.question, "Type 2, current"]
    assert kept["origin"].to_list() == ["reviewed", "reviewed"] and kept["answers"][1].to_list() == ["63 A"]
    assert kept["example_id"][1] != bad.example_id
    assert reasons == {first.question: "near_duplicate_question"}
    assert validate(good, reviews=[review(good, "reject")])[1] == {good.question: "rejected_by_reviewer"}


def test_teacher_is_asked_about_surviving_generated_rows_only():
    rows = [
        generated(),
        generated("How much current does Type 2 carry?", "63 A"),
        generated("When was the tower of Arden built?", "1931"),
        generated(answer="33 A", example_id="wrong"),
        example("How many plugs are there?", "2", chunk_id="chk_1"),
    ]
    said = [Check(False, True, "no"), Check(True, False, "no"), None]
    asked = []

    def check(jobs):
        asked.extend(job.source_id for job in jobs)
        for job, value in zip(jobs, said, strict=True):
            yield Outcome(job.source_id, "ok" if value else "refused", value)

    kept, _, rejected = validate(*rows, check=check)
    assert asked == [row.example_id for row in rows[:3]]
    assert kept["example_id"].to_list() == [rows[4].example_id, rows[2].example_id]
    reasons = dict(zip(rejected["example_id"], rejected["reject_reason"], strict=True))
    assert reasons[rows[0].example_id] == "not_supported_by_teacher"
    assert reasons[rows[1].example_id] == "not_self_contained"


def test_labels_that_contradict_hand_written_rows_are_rejected():
    def text(words, label, **changes):
        return example(words, label, chunk_id="chk_1", **changes)

    human = [text("My card was stolen", "lost"), text("I lost my card", "lost"), text("I want my money back", "refund")]
    noisy = text("My bank card has been stolen", "refund", origin="labelled", example_id="noisy")
    clash = text("I lost my card!", "refund", origin="labelled", example_id="clash")
    sound = text("Somebody took my card on the bus", "lost", origin="labelled", example_id="sound")
    kept, reasons, _ = validate(*human, noisy, clash, sound, classes={"lost": "", "refund": ""})
    assert kept["example_id"].to_list()[3:] == ["sound"]
    assert reasons[noisy.question] == "label_disagrees"
    assert reasons[clash.question] in ("label_disagrees", "conflicting_label")
    people = [text("I lost my card", "lost"), text("I lost my card!", "refund", example_id="other")]
    assert validate(*people, classes={"lost": "", "refund": ""})[1] == {"I lost my card!": "conflicting_label"}


def test_review_that_answers_an_unanswerable_question_or_unanswers_one_changes_what_it_is():
    held, lost = generated("Who built it?", NO_ANSWER, is_answerable=False), generated(example_id="lost")
    reviews = [
        review(held, "edit", "When was the tower of Arden built?", "1931"),
        review(lost, "edit", "Who built the tower of Arden?", NO_ANSWER),
    ]
    kept, reasons, _ = validate(held, lost, reviews=reviews)
    assert reasons == {} and dict(kept.select("answer", "is_answerable").iter_rows()) == {
        "1931": True,
        NO_ANSWER: False,
    }


def test_review_that_edits_an_answer_finds_its_start_as_whole_words():
    row = example("How many plugs?", "18 plugs", context="The 18 plugs have 8 screws each.", answer_start=4)
    kept, _, _ = validate(row, reviews=[review(row, "edit", "How many screws has a plug?", "8")])
    assert kept["answer_start"].to_list() == [18]
