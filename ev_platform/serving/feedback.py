"""What people say of an answer: checked against the request that it is about, and written into the journal.

It is text of strangers and stays that: what becomes of it is decided by a person (`dataset.feedback`). It is kept until
somebody deletes it, since who gives it wants it to be used; the log's retention is about what people merely asked.

What does not belong here: HTTP (`api`), the limits of its fields (`schemas`), files (`journal`).
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache
from pathlib import Path
from typing import Any

from ev_platform.records import Feedback
from ev_platform.serving import logs
from ev_platform.serving.journal import Journal, find_request, text_hash
from ev_platform.serving.keys import KeyInfo
from ev_platform.serving.schemas import ApiError, FeedbackRequest
from ev_platform.storage import now


def give(data_root: Path, key: KeyInfo, request: FeedbackRequest) -> Feedback:
    """Keep what somebody says of an answer; later feedback of the same key on the same request replaces it.

    Args:
        data_root: Data folder.
        key: Under which it comes. It may judge its own requests, an admin key everybody's.
        request: What is said.

    Returns:
        The row, which survives this process from here on.

    Raises:
        ApiError: 404 if the key made no such request; 422 if nothing was answered in it, or if the question is needed,
            since the log holds its hash only, and is missing or another one; 503 if it cannot be written down.
    """
    asked = find_request(data_root, request.request_id, None if key.may("admin") else key.key_id)
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
        question=_question(data_root, asked, request.question),
        answer=asked["answer"],
        chunk_ids=asked["chunk_ids"],
    )
    try:
        _journal(data_root.resolve()).add(row)
    except OSError as error:  # such as a full disk
        logs.fault("feedback could not be kept", error, request_id=request.request_id)
        raise ApiError(503, "The feedback could not be kept: send it again later.", "feedback_not_kept") from None
    return row


def _text(text: str | None) -> str | None:
    return text.strip() or None if text else None


def _question(data_root: Path, asked: dict[str, Any], told: str | None) -> str:
    """Return the question of a request: from the log, or as it is told once more where the log has its hash only."""
    if told is None:
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
    return Journal(data_root, "feedback")
