"""What people say of an answer: checked against the request that it is about, and written into the journal.

It is text of strangers and stays that: what becomes of it is decided by a person (`dataset.feedback`). It is kept until
somebody deletes it, since who gives it wants it to be used; the log's retention is about what people merely asked. What
a key says of one answer is bounded, since each word of it takes room.

What does not belong here: HTTP (`api`), the limits of its fields (`schemas`), files (`journal`).
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache
from pathlib import Path
from typing import Any

from ev_platform.records import Feedback
from ev_platform.serving import logs, metrics
from ev_platform.serving.journal import Journal, find_request, read_journal, text_hash
from ev_platform.serving.keys import KeyInfo
from ev_platform.serving.schemas import ApiError, FeedbackRequest
from ev_platform.storage import now

MAX_PER_ANSWER = 20


def give(data_root: Path, key: KeyInfo, request: FeedbackRequest) -> Feedback:
    """Keep what somebody says of an answer; later feedback of the same key on the same answer replaces it.

    Args:
        data_root: Data folder.
        key: Under which it comes. It may judge its own requests, an admin key everybody's.
        request: What is said. Clients choose ids, and may use one twice: of the requests that were answered, the newest
            is meant, or the newest with the question where it says that.

    Returns:
        The row, which survives this process from here on.

    Raises:
        ApiError: 404 if the key made no such request; 422 if nothing was answered in it, if it was cut off and is
            praised, if the question is needed, since the log holds its hash only or the request is another
            key's, and is missing or another one, or if the key has said too much of it; 503 if it cannot be written
            down.
    """
    asked = _find(data_root, key, request)
    if asked is None:
        raise ApiError(
            404,
            "This key made no request of that id, or it has been deleted: send the x-request-id of one of its answers.",
            "request_not_found",
            "request_id",
        )
    if not (asked["task"] and asked["model_version"] and asked["answer_hash"]):
        raise ApiError(
            422,
            f"The request of that id to {asked['route']} was not answered by a model: there is nothing to judge.",
            "nothing_to_judge",
            "request_id",
        )
    if asked["finish_reason"] == "cancelled" and request.rating == "up":
        raise ApiError(
            422,
            "That answer was cut off before its end: rate it down, with a correction if you like, or ask again.",
            "answer_incomplete",
            "rating",
        )
    question = _question(data_root, key, asked, request.question)
    if _n_given(data_root, key, asked, question) >= MAX_PER_ANSWER:
        raise ApiError(
            422,
            f"This key has judged that answer {MAX_PER_ANSWER} times: the last judgement stays.",
            "too_much_feedback",
            "request_id",
        )
    row = Feedback(
        feedback_id=f"fdb_{secrets.token_hex(10)}",
        request_id=request.request_id,
        given_at=now(),
        key_id=key.key_id,
        rating=request.rating,
        correction=_text(request.correction),
        comment=_text(request.comment),
        task=asked["task"],
        model_version=asked["model_version"],
        question=question,
        answer=asked["answer"],
        chunk_ids=asked["chunk_ids"],
    )
    try:
        _journal(data_root.resolve()).add(row)
    except OSError as error:  # such as a full disk
        metrics.journal_lost("feedback")
        logs.fault("feedback could not be kept", error, request_id=request.request_id)
        raise ApiError(503, "The feedback could not be kept: send it again later.", "feedback_not_kept") from None
    return row


def _text(text: str | None) -> str | None:
    return text.strip() or None if text else None


def _find(data_root: Path, key: KeyInfo, request: FeedbackRequest) -> dict[str, Any] | None:
    told = None if request.question is None else text_hash(data_root, request.question)
    owners = (key.key_id, None) if key.may("admin") else (key.key_id,)
    answered, others = ([(owner, told, flag) for owner in owners] for flag in (True, False))
    # An id may be used again, by feedback itself too, for what is not answered: that hides no answer. What is found
    # beyond the answered ones will be refused, and only says why.
    searches = [*answered, *others]
    if told is not None:
        searches += [(owners[-1], None, True), (owners[-1], None, False)]
    for owner, question_hash, is_answered in searches:
        found = find_request(data_root, request.request_id, owner, question_hash, is_answered=is_answered)
        if found is not None:
            return found
    return None


def _n_given(data_root: Path, key: KeyInfo, asked: dict[str, Any], question: str) -> int:
    same = {"request_id": asked["request_id"], "key_id": key.key_id, "question": question}
    given = read_journal(data_root, "feedback", asked["asked_at"], lambda rows: rows.filter(**same).select("given_at"))
    return given.height


def _question(data_root: Path, key: KeyInfo, asked: dict[str, Any], told: str | None) -> str:
    """Return the question of a request: from the log, or as it is told once more where the log has its hash only."""
    if told is None:
        if asked["key_id"] != key.key_id:
            raise ApiError(
                422,
                "That request is another key's, and several keys may use one id: send its question too.",
                "question_needed",
                "question",
            )
        if asked["question"] is None:
            raise ApiError(
                422,
                "This server keeps no text of requests: send the question again, as it was asked.",
                "question_needed",
                "question",
            )
        return asked["question"]
    # Either way: another question means that the id is another request's.
    if not hmac.compare_digest(text_hash(data_root, told), asked["question_hash"] or ""):
        raise ApiError(
            422,
            "That is not the question of this request: send it letter by letter as it was asked.",
            "question_differs",
            "question",
        )
    return told


@cache
def _journal(data_root: Path) -> Journal:
    # One for the life of the process. What it holds when the process ends is in its file, for the next one to roll.
    return Journal(data_root, "feedback", on_fault=lambda _: metrics.journal_fault("feedback"))
