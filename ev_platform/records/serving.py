"""Rows about answering people: what was asked over HTTP, and what people said of the answers.

They are not materialized by the graph but appended while serving (`serving.journal`), so they lie beside the tables:
`<data>/serving/<table>/<day>/*.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request that passed the key check (`requests`)."""

    request_id: str
    asked_at: datetime
    key_id: str
    route: str  # "/v1/answers"
    status: int  # of HTTP; 499 where the client went away before the answer
    error: str | None  # code of a refusal or failure
    is_streamed: bool
    task: str | None
    model: str | None  # as it was asked for; None where nothing of that name is served
    model_version: str | None
    question: str | None  # None where the configuration says so
    question_hash: str | None  # keyed BLAKE2b, so that equal questions can be counted without their text
    answer: str | None
    answer_hash: str | None
    chunk_ids: list[str]  # what the answer was made from, best first
    scores: list[float]  # cosine of the question and each of them
    is_abstention: bool | None  # whether the answer is the task's sentence for "no answer"
    similarity: float | None  # cosine of the question and the nearest one trained on
    n_prompt_tokens: int | None
    n_completion_tokens: int | None
    finish_reason: str | None  # cancelled: what a client had of a stream that it left, or that broke
    batch_size: int | None
    queue_ms: float | None
    retrieve_ms: float | None
    first_token_ms: float | None
    generate_ms: float | None
    total_ms: float  # in the gateway, body read to last byte handed over


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody said of an answer (`feedback`); a later one on the same request by the same key replaces it."""

    feedback_id: str
    request_id: str
    given_at: datetime
    key_id: str
    rating: str  # "up" or "down"
    correction: str | None  # what the answer should have been
    comment: str | None
    task: str
    model_version: str
    question: str  # as asked; the client sends it again where the log does not keep text
    answer: str | None
    chunk_ids: list[str]
