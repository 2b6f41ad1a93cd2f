"""Replies, rows and figures as a server makes them, for tests."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ev_platform.records import Feedback, ServedRequest
from ev_platform.registry import SourceChunk
from ev_platform.serving import metrics
from ev_platform.serving.exchange import Citation, Reply


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


def cited(chunk_id: str, score: float) -> Citation:
    at = datetime(2026, 11, 2, tzinfo=UTC)
    chunk = SourceChunk(chunk_id, "text", None, "", "https://example.org/", None, "CC0-1.0", "Press", at)
    return Citation(chunk, score)


REPLY = Reply(
    text="32 A.",
    finish_reason="stop",
    model_version="observed@3",
    citations=(cited("chk_1", 0.75), cited("chk_2", 0.25)),
    n_prompt_tokens=100,
    n_completion_tokens=4,
    similarity=0.5,
    queue_ms=2.0,
    retrieve_ms=3.0,
    first_token_ms=40.0,
    generate_ms=90.0,
    batch_size=2,
)


def figure(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)
