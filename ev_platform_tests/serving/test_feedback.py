"""What the journal keeps of somebody's judgement, and what is refused."""

import errno
import os
from datetime import UTC, datetime

import pytest

from ev_platform.serving import feedback
from ev_platform.serving.feedback import give
from ev_platform.serving.journal import Journal, read_journal, text_hash
from ev_platform.serving.keys import create_key, list_keys
from ev_platform.serving.schemas import ApiError, FeedbackRequest
from ev_platform_tests.serving.rows import figure, served, wait_for

QUESTION = "What are Mode 3 cables rated for?"


@pytest.fixture
def root(tmp_path):
    """A data folder with keys for two people and an administrator."""
    for name, scopes in (("ann", ("query", "feedback")), ("bob", ("query", "feedback")), ("admin", ("admin",))):
        create_key(tmp_path, name, scopes=scopes)
    yield tmp_path
    feedback._journal(tmp_path.resolve()).close()
    feedback._journal.cache_clear()


def key_of(root, name):
    (key,) = [key for key in list_keys(root) if key.name == name]
    return key


def log(root, name="ann", **changes):
    hashes = {"question_hash": text_hash(root, QUESTION), "answer_hash": text_hash(root, "32 A.")}
    journal = Journal(root, "requests")
    journal.add(served(key_id=key_of(root, name).key_id, **{"question": QUESTION} | hashes | changes))
    journal.close()


def told(root, name="ann", **fields):
    return give(root, key_of(root, name), FeedbackRequest(**{"request_id": "req_1", "rating": "down"} | fields))


def refusal(root, *arguments, **fields):
    with pytest.raises(ApiError) as caught:
        told(root, *arguments, **fields)
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message
    return caught.value.status, caught.value.code, caught.value.param


def test_feedback_is_kept_with_what_it_is_about(root):
    log(root)
    before = datetime.now(UTC)
    row = told(root, correction=" 32 amperes. ", comment="  ")
    assert read_journal(root, "feedback").to_dicts() == [
        {
            "feedback_id": row.feedback_id,
            "request_id": "req_1",
            "given_at": row.given_at,
            "key_id": key_of(root, "ann").key_id,
            "rating": "down",
            "correction": "32 amperes.",
            "comment": None,
            "task": "fake_task",
            "model_version": "fake_task@3",
            "question": QUESTION,
            "answer": "32 A.",
            "chunk_ids": ["chk_cable", "chk_manual"],
        }
    ]
    assert before <= row.given_at <= datetime.now(UTC)
    assert told(root, rating="up").feedback_id != row.feedback_id


def test_key_judges_its_own_requests_only_and_an_admin_key_those_of_all(root):
    log(root)
    assert refusal(root, "bob") == (404, "request_not_found", "request_id")
    assert refusal(root, request_id="req_2") == (404, "request_not_found", "request_id")
    # Two people may send the same id with their requests: the question tells which is meant.
    assert refusal(root, "admin") == (422, "question_needed", "question")
    assert told(root, "admin", question=QUESTION).key_id == key_of(root, "admin").key_id
    log(root, "bob", question="Another?", question_hash=text_hash(root, "Another?"), answer="5")
    assert (told(root, "bob").answer, told(root, "ann").answer) == ("5", "32 A.")
    assert told(root, "admin", question=QUESTION).answer == "32 A."


def test_question_tells_which_of_a_key_s_requests_of_one_id_is_judged(root):
    log(root)
    log(root, question="Another?", question_hash=text_hash(root, "Another?"), answer="5")
    assert (told(root, question=QUESTION).answer, told(root).answer) == ("32 A.", "5")


def unanswered(root, name="ann", **changes):
    nothing = dict.fromkeys(("task", "model_version", "question", "question_hash", "answer", "answer_hash"))
    log(root, name, **nothing | {"chunk_ids": []} | changes)


def test_rating_can_be_changed_by_a_client_that_sends_one_id_with_all_its_requests(root):
    log(root)
    assert told(root).rating == "down"
    unanswered(root, route="/v1/feedback", status=201)
    assert (told(root, rating="up").answer, told(root, question=QUESTION).answer) == ("32 A.", "32 A.")
    unanswered(root, "admin", route="/v1/feedback", status=201)
    assert told(root, "admin", question=QUESTION).answer == "32 A."
    assert refusal(root, question="Something else?") == (422, "question_differs", "question")


@pytest.mark.parametrize("kept", [{}, {"question": None, "answer": None}], ids=["text", "hashes"])
@pytest.mark.parametrize("reached", [{"task": "fake_task"}, {"task": "fake_task", "model_version": "fake_task@3"}])
def test_answer_on_the_screen_can_be_rated_though_it_was_asked_for_again_in_vain(root, kept, reached):
    log(root, **kept)
    again = {"question": QUESTION, "question_hash": text_hash(root, QUESTION)} | kept
    unanswered(root, status=504, **again | {"answer": None} | reached)
    assert told(root, question=QUESTION).model_version == "fake_task@3"
    if not kept:
        assert told(root).answer == "32 A."
    log(root, **kept | {"model_version": "fake_task@4"})  # answered at last: the newest is meant
    assert told(root, question=QUESTION).model_version == "fake_task@4"


def test_question_that_was_never_answered_cannot_be_judged_though_another_of_its_id_was(root):
    log(root)
    unanswered(root, question="Another?", question_hash=text_hash(root, "Another?"), task="fake_task", status=504)
    assert refusal(root, question="Another?") == (422, "nothing_to_judge", "request_id")


def test_what_was_left_in_the_middle_can_be_corrected_and_not_praised(root):
    log(root, status=499, finish_reason="cancelled")
    assert refusal(root, rating="up") == (422, "answer_incomplete", "rating")
    assert told(root, correction="32 A.").rating == "down"


def test_answer_is_judged_so_often_and_no_more(root, monkeypatch):
    monkeypatch.setattr(feedback, "MAX_PER_ANSWER", 2)
    log(root)
    log(root, "bob")
    told(root), told(root)
    assert refusal(root) == (422, "too_much_feedback", "request_id")
    told(root, "bob")
    log(root)  # asked again
    told(root)
    assert read_journal(root, "feedback").height == 4


@pytest.mark.parametrize("changes", [{"answer_hash": None}, {"model_version": None}, {"task": None}])
def test_request_that_no_model_answered_cannot_be_judged(root, changes):
    log(root, status=503, **changes)
    assert refusal(root) == (422, "nothing_to_judge", "request_id")


def test_question_is_asked_for_where_the_log_has_only_its_hash(root):
    log(root, question=None, answer=None)
    assert refusal(root) == (422, "question_needed", "question")
    assert refusal(root, question=QUESTION.lower()) == (422, "question_differs", "question")
    row = told(root, question=QUESTION)
    assert (row.question, row.answer) == (QUESTION, None)


def test_question_that_is_not_the_request_s_shows_that_the_id_is_another_s(root):
    log(root)
    assert refusal(root, question="Something else?") == (422, "question_differs", "question")
    assert told(root, question=QUESTION).question == QUESTION
    assert read_journal(root, "feedback").height == 1


def test_feedback_that_cannot_be_written_is_not_said_to_be_kept(root, monkeypatch):
    log(root)
    told(root)

    def full(handle, data):
        raise OSError(errno.ENOSPC, "no space left")

    before = figure("ev_journal_lost_rows_total", table="feedback")
    monkeypatch.setattr(os, "write", full)
    assert refusal(root) == (503, "feedback_not_kept", None)
    monkeypatch.undo()
    assert read_journal(root, "feedback").height == 1
    assert figure("ev_journal_lost_rows_total", table="feedback") == before + 1


def test_fault_of_the_journal_s_upkeep_is_counted(root):
    log(root)
    before = figure("ev_journal_faults_total", table="feedback")
    (root / "serving" / "feedback").mkdir()
    (root / "serving" / "feedback" / "empty").touch()  # where a folder has to be
    told(root)
    wait_for(lambda: figure("ev_journal_faults_total", table="feedback") > before)
