"""Rows as a server logs them, for tests."""

from datetime import UTC, datetime
from typing import Any

from ev_platform.records import Feedback, ServedRequest

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def served(request_id: str = "req_1", asked_at: datetime | None = None, **changes: Any) -> ServedRequest:
    """Return a request that was answered just now."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "asked_at": asked_at or datetime.now(UTC),
        "key_id": "00000001",
        "route": "/v1/answers",
        "status": 200,
        "error": None,
        "is_streamed": False,
        "task": "fake_task",
        "model": None,
        "model_version": "fake_task@3",
        "question": "What are Mode 3 cables rated for?",
        "question_hash": "a" * 32,
        "answer": "32 A.",
        "answer_hash": "b" * 32,
        "chunk_ids": ["chk_cable", "chk_manual"],
        "scores": [0.75, 0.25],
        "is_abstention": False,
        "similarity": 0.5,
        "n_prompt_tokens": 100,
        "n_completion_tokens": 10,
        "finish_reason": "stop",
        "batch_size": 2,
        "queue_ms": 1.5,
        "retrieve_ms": 2.5,
        "first_token_ms": 30.0,
        "generate_ms": 120.0,
        "total_ms": 130.0,
    }
    return ServedRequest(**fields | changes)


def judged(feedback_id: str = "fb_1", given_at: datetime | None = None, **changes: Any) -> Feedback:
    """Return a judgement that was given just now."""
    fields: dict[str, Any] = {
        "feedback_id": feedback_id,
        "request_id": "req_1",
        "given_at": given_at or datetime.now(UTC),
        "key_id": "00000001",
        "rating": "down",
        "correction": "32 amperes.",
        "comment": None,
        "task": "fake_task",
        "model_version": "fake_task@3",
        "question": "What are Mode 3 cables rated for?",
        "answer": "16 A.",
        "chunk_ids": ["chk_cable"],
    }
    return Feedback(**fields | changes)
