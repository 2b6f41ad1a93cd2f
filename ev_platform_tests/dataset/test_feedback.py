"""Which candidates feedback gives, and what accepted ones become; the whole way is in defs/test_feedback_loop."""

from datetime import UTC, datetime, timedelta

import pytest

from ev_platform.dataset.feedback import accepted_examples, collect_candidates, decided_candidates, find_unsound
from ev_platform.dataset.review import export_feedback, read_review
from ev_platform.records import Chunk, FeedbackCandidate, Review, to_frame
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.serving.rows import judged

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
QUESTION, GIVEN, NO_ANSWER = "What are Mode 3 cables rated for?", "16 A.", "The passages do not say."
TEXTS = {
    "chk_cable": "Mode 3 cables are rated for 32 A.",
    "chk_manual": "Test the RCD every three months.",
    "chk_type": "The Type 2 plug is locked by a motor in the car.",
}
CHUNKS = to_frame(
    "chunks",
    [
        Chunk(name, f"doc_{name}", f"doc_{name}", n, 0, 9, "", None, text, 9)
        for n, (name, text) in enumerate(TEXTS.items())
    ],
)
NONE_YET, NO_REVIEWS = to_frame("feedback_candidates", []), to_frame("reviews", [])


def said(number, **changes):
    """Return a judgement, each a minute after the one before."""
    fields = {"feedback_id": f"f{number}", "request_id": f"req_{number}", "given_at": AT + timedelta(minutes=number)}
    return judged(**fields | changes)


def collect(*rows, previous=NONE_YET, reviews=NO_REVIEWS):
    return collect_candidates(to_frame("feedback", rows), previous, reviews)


def review(example_id, decision="accept", question="", answer=""):
    return Review(example_id, decision, question, answer, "Ada", None, datetime(2026, 11, 21, tzinfo=UTC))


def reviewed(*rows):
    return to_frame("reviews", rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rating": "up", "correction": None}, ("liked", GIVEN)),
        ({"rating": "down", "correction": "32 A."}, ("corrected", "32 A.")),
        ({"rating": "up", "correction": "32 A."}, ("corrected", "32 A.")),
        ({"rating": "down", "correction": None}, ("disliked", "")),
        ({"rating": "down", "correction": GIVEN}, ("disliked", "")),
        ({"rating": "up", "correction": None, "answer": None}, None),
        ({"rating": "down", "correction": None, "answer": None}, ("disliked", "")),
    ],
)
def test_feedback_proposes_what_its_kind_can(changes, expected):
    found = collect(said(1, **changes)).select("kind", "answer").rows()
    assert found == ([expected] if expected else [])


def test_later_feedback_of_a_key_on_a_request_replaces_the_earlier_one():
    rows = [said(1, rating="up", correction=None), said(2, request_id="req_1", rating="down", correction="32 A.")]
    for order in (rows, rows[::-1]):
        (row,) = collect(*order).to_dicts()
        assert (row["kind"], row["answer"], row["n_up"], row["n_down"]) == ("corrected", "32 A.", 0, 1)
    (one, other) = collect(rows[0], said(2, request_id="req_1", key_id="00000002")).to_dicts()
    assert (one["kind"], other["kind"]) == ("liked", "corrected")


def test_feedback_on_two_questions_under_one_id_is_of_two_requests():
    rows = [said(1), said(2, request_id="req_1", question="Who tests the RCD?", correction="An electrician.")]
    found = collect(*rows)
    assert found["question"].to_list() == [QUESTION, "Who tests the RCD?"]
    assert found.select("feedback_id", "key_id").rows() == [("f1", "00000001"), ("f2", "00000001")]


def test_sheet_and_table_of_what_nobody_has_read_are_for_their_owner_only(store, tmp_path):
    found, sheet = collect(said(1)), tmp_path / "sheet.csv"
    record = store.publish("feedback_candidates", "tiny", found)
    pages = to_frame("clean_documents", [])
    export_feedback(found, NO_REVIEWS, CHUNKS, pages, sheet, n=1, seed=1)
    table = store.root / "tables" / "feedback_candidates" / "tiny" / f"{record.version}.parquet"
    assert [file.stat().st_mode & 0o777 for file in (sheet, table)] == [0o600, 0o600]


def test_question_with_a_null_byte_can_be_reviewed(tmp_path):
    found, sheet = collect(said(1, question="Which\0 plug?", correction="Type 2\0")), tmp_path / "sheet.csv"
    assert "\0" not in str(found.to_dicts())
    export_feedback(found, NO_REVIEWS, CHUNKS, to_frame("clean_documents", []), sheet, n=1, seed=1)
    sheet.write_text(sheet.read_text("utf-8-sig").replace(",feedback,,", ",feedback,accept,"))
    assert read_review(sheet, found, AT, "Ada")["decision"].to_list() == ["accept"]


def test_same_proposal_of_several_is_one_candidate_that_counts_them():
    rows = [said(n, key_id=f"0000000{n}", comment=f"comment {n}") for n in (1, 2)]
    rows += [said(3, key_id="00000003", rating="up", correction=None), said(4, key_id="00000001")]
    corrected, liked = collect(*rows).to_dicts()
    assert corrected["request_ids"] == ["req_1", "req_2", "req_4"] and corrected["request_id"] == "req_1"
    assert corrected["comments"] == ["comment 2", "comment 1"]
    assert [(row["n_up"], row["n_down"]) for row in (corrected, liked)] == [(1, 2), (1, 2)]
    assert corrected["given_at"] == rows[3].given_at


def test_personal_data_is_masked_in_all_that_a_stranger_wrote():
    mail = "ann@firm.de"
    changes = {"question": f"Who is {mail}?", "answer": mail, "correction": f"not {mail}", "comment": f"ask {mail}"}
    (row,) = collect(said(1, **changes)).to_dicts()
    assert (row["question"], row["answer"], row["given_answer"]) == ("Who is [email]?", "not [email]", "[email]")
    assert mail not in str(row)


def test_decided_candidate_stays_as_it_was_decided_and_others_follow_the_journal():
    first = collect(said(1), said(2, correction="33 A."))
    kept = first["example_id"][0]
    again = collect(said(5, key_id="00000005"), previous=first, reviews=reviewed(review(kept)))
    assert again.to_dicts() == first.filter(example_id=kept).to_dicts()
    assert collect(previous=first).is_empty()


def accepted(*candidates, reviews, task_type="open_book_qa", chunks=CHUNKS):
    frame = to_frame("feedback_candidates", candidates)
    return accepted_examples(frame, reviewed(*reviews), chunks, get_task_type(task_type), NO_ANSWER)


def candidate(answer="32 A.", question=QUESTION, chunk_ids=("chk_manual", "chk_cable"), **changes):
    fields = {
        "example_id": "fbk_1",
        "kind": "corrected",
        "question": question,
        "answer": answer,
        "given_answer": GIVEN,
        "comments": [],
        "n_up": 0,
        "n_down": 1,
        "chunk_ids": list(chunk_ids),
        "request_id": "req_1",
        "request_ids": ["req_1"],
        "model_version": "fake_task@3",
        "given_at": AT,
        "feedback_id": "f1",
        "key_id": "00000001",
    }
    return FeedbackCandidate(**fields | changes)


def test_candidate_that_nobody_has_decided_on_becomes_nothing():
    assert accepted(candidate(), reviews=[]) == []
    assert decided_candidates(to_frame("feedback_candidates", [candidate()]), NO_REVIEWS).is_empty()


def test_accepted_row_is_human_traced_and_rests_on_the_cited_passage_that_supports_it():
    (row,) = accepted(candidate(), reviews=[review("fbk_1")])
    assert (row.origin, row.split, row.request_id) == ("human", "train", "req_1")
    assert (row.chunk_id, row.document_id, row.is_answerable) == ("chk_cable", "doc_chk_cable", True)
    (edited,) = accepted(candidate(), reviews=[review("fbk_1", "edit", "How much do Mode 3 cables carry?", "32 A")])
    assert (edited.question, edited.answer, edited.answers) == ("How much do Mode 3 cables carry?", "32 A", ["32 A"])
    assert edited.example_id != row.example_id


def test_accepted_row_whose_passage_is_gone_finds_another_or_none():
    locked = candidate("a motor in the car", "What locks the Type 2 plug?", ["chk_of_yesterday"])
    assert [row.chunk_id for row in accepted(locked, reviews=[review("fbk_1")])] == ["chk_type"]
    (lost,) = accepted(candidate("on Mars", "Where?", ["chk_of_yesterday"]), reviews=[review("fbk_1")])
    assert lost.chunk_id is None
    assert find_unsound(vars_of(lost), None, get_task_type("open_book_qa"), {}, NO_ANSWER) == (
        "no_source",
        "no passage of the corpus holds it; asked in request req_1",
    )


def vars_of(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_accepted_abstention_is_unanswerable_and_its_passage_must_not_hold_the_answer():
    silent = candidate(NO_ANSWER, "Who built the tower of Arden in 1931?", ["chk_cable"])
    (row,) = accepted(silent, reviews=[review("fbk_1")])
    assert (row.is_answerable, row.chunk_id) == (False, "chk_cable")
    assert find_unsound(vars_of(row), TEXTS["chk_cable"], get_task_type("open_book_qa"), {}, NO_ANSWER) is None
    (row,) = accepted(candidate(NO_ANSWER, chunk_ids=["chk_cable"]), reviews=[review("fbk_1")])
    flaw = find_unsound(vars_of(row), TEXTS["chk_cable"], get_task_type("open_book_qa"), {}, NO_ANSWER)
    assert flaw is not None and flaw[0] == "answer_in_passage"


def test_label_of_a_classification_task_needs_no_passage_but_must_be_a_class():
    task_type, classes = get_task_type("classification"), {"lost": "", "refund": ""}
    text = candidate("lost", "Somebody took my card", ())
    (row,) = accepted(text, reviews=[review("fbk_1")], task_type="classification")
    assert (row.chunk_id, row.answer) == (None, "lost")
    assert find_unsound(vars_of(row), None, task_type, classes, NO_ANSWER) is None
    flaw = find_unsound(vars_of(row) | {"answer": "Lost!"}, None, task_type, classes, NO_ANSWER)
    assert flaw is not None and flaw[0] == "unknown_label"
