"""Rows of the stage `dataset`: examples, what a teacher did, training and test rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from ev_platform.records.columns import VOLATILE


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer (`qa_candidates`, `examples`)."""

    example_id: str  # hash of question, answer and passage
    question: str  # the text to label, in a classification task
    answer: str  # the label, in a classification task
    answers: list[str]  # everything that counts as right, the answer first
    answer_start: int | None  # of the answer in the row's own context, in characters
    is_answerable: bool  # False where the passage does not hold the answer
    chunk_id: str | None  # the passage that supports the answer
    document_id: str | None
    cluster_id: str | None  # of the document, or of the row's own context
    context: str | None  # given by the task's own row; None where retrieval supplies it
    origin: str  # "human", "generated", "labelled" or "reviewed"
    teacher: str | None
    kind: str  # question kind
    difficulty: str | None
    register: str | None  # in whose words the question is asked
    evidence: str | None  # the words of the passage that the teacher rested the answer on
    confidence: float | None  # of a label, 0 to 1
    split: str  # "train" or "test"; human rows bring theirs, generated rows are always "train"
    row: str | None  # file and row of a human example
    call_id: str | None  # of the teacher's call that it came from
    prompt_version: str | None  # of that call
    cost_usd: float | None  # the example's share of that call
    check_call_id: str | None = None  # of the call in which a teacher checked it
    request_id: Annotated[str | None, VOLATILE] = None  # of the served question behind it; see `feedback_candidates`


@dataclass(frozen=True, slots=True)
class RejectedExample:
    """One candidate that was rejected, with its reason (`rejected_examples`)."""

    example_id: str
    question: str
    answer: str
    chunk_id: str | None
    document_id: str | None
    origin: str
    kind: str
    call_id: str | None
    cost_usd: float | None
    reject_reason: str
    reject_detail: str | None
    check_call_id: str | None = None  # of the call in which a teacher checked it
    request_id: Annotated[str | None, VOLATILE] = None  # of the served question behind it


@dataclass(frozen=True, slots=True)
class GenerationOutcome:
    """What the teacher made of one chunk, or of one unlabelled text (`generation_log`)."""

    source_id: str  # chunk_id, or hash of the unlabelled text
    status: str  # "ok", or why there is nothing: see `teachers.STATUSES`, "held_out", "not_sampled", "nothing_found"
    detail: str | None
    n_asked: int
    n_made: int
    teacher: str
    call_id: str | None
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far one chunk, or one unlabelled text, is covered by examples, and why not (`coverage`)."""

    source_id: str
    document_id: str | None
    url: str | None
    heading_path: str | None
    n_tokens: int | None
    n_asked: int
    n_made: int
    n_rejected: int
    n_examples: int
    status: str  # "covered", the generation's status, or "all_rejected"
    detail: str | None  # the commonest reason of rejection, or the generation's detail


@dataclass(frozen=True, slots=True)
class TeacherCall:
    """One paid question to a teacher (`teacher_calls`), from the ledger."""

    call_id: str  # hash of model, settings, prompt and schema; the key of the stored reply
    purpose: str  # "generate", "label", "answer", "judge" or "check"
    teacher: str  # "anthropic:claude-..." and the like
    model: str  # as the server named it
    prompt_version: str
    status: str  # "ok", or what went wrong: see `teachers.STATUSES`
    detail: str | None
    n_input_tokens: int
    n_output_tokens: int
    n_cache_write_tokens: int
    n_cache_read_tokens: int
    is_batch: bool
    cost_usd: float
    request_id: Annotated[str | None, VOLATILE]  # the server's
    asked_at: Annotated[datetime, VOLATILE]
    latency_ms: Annotated[float | None, VOLATILE]  # None in a batch


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """The teacher's answer to one test row, with its scores (`teacher_answers`)."""

    example_id: str
    question: str
    reference: str
    prediction: str | None
    status: str
    detail: str | None
    exact_match: float | None
    token_f1: float | None
    rouge_l: float | None
    meteor: float | None
    judge_score: float | None  # 0 to 1
    judge_reason: str | None
    call_id: str | None
    judge_call_id: str | None
    cost_usd: float


@dataclass(frozen=True, slots=True)
class TeacherEvaluation:
    """The verdict on a teacher before it is paid for more (`teacher_evaluation`); one row."""

    teacher: str
    prompt_version: str | None
    n_rows: int
    n_answered: int
    metric: str  # that decides
    value: float | None
    scores: str  # JSON: metric to mean
    thresholds: str  # JSON
    verdict: str  # "proceed", "iterate", "rethink" or "not_evaluated"
    reason: str
    overruled_by: str | None  # why a person lets the run go on all the same
    is_blocking: bool  # whether the run stops here
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Review:
    """One person's judgement of one example (`reviews`)."""

    example_id: str
    decision: str  # "accept", "edit" or "reject"
    question: str  # as edited
    answer: str
    reviewer: str
    comment: str | None
    reviewed_at: datetime


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One row of `training_set`, `validation_set` or `benchmark`: the example in the forms trainers read."""

    example_id: str
    split: str  # "train", "validation" or "test"
    question: str
    answer: str
    answers: list[str]
    answer_start: int | None  # in `context`
    is_answerable: bool
    context: str | None  # the row's own passage
    chunk_id: str | None
    document_id: str | None
    cluster_id: str | None
    origin: str
    kind: str
    context_chunk_ids: list[str]
    instruction: str
    input: str
    output: str
    messages: list[dict[str, str]]
    n_tokens: int  # rendered by the chat template
    n_answer_tokens: int
    request_id: Annotated[str | None, VOLATILE] = None  # of the served question behind it


@dataclass(frozen=True, slots=True)
class FeedbackCandidate:
    """A served question with what people said of its answer, for a person to judge (`feedback_candidates`).

    Personal data is masked. Nothing of it is trained on before somebody accepts or edits it, and what was decided on
    stays as it was then.
    """

    example_id: str  # hash of question and answer
    kind: str  # "liked", "corrected" or "disliked"
    question: str
    answer: str  # that is proposed: as given, or as corrected; empty where nobody proposed one
    given_answer: str | None  # None where the request log keeps no text
    comments: list[str]  # newest first
    n_up: int  # people who liked the given answer to this question, whatever they corrected
    n_down: int
    chunk_ids: list[str]  # what the answer was made from, best first
    request_id: str  # the first of them; training rows are traced by it
    request_ids: list[str]  # every request that it rests on, oldest first
    model_version: str  # that answered first
    given_at: datetime  # the latest feedback
    feedback_id: str  # what was said of the first of them
    key_id: str  # under which that was said; request ids are the clients' own
