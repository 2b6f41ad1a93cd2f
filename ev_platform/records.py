"""The typed rows of every table, one frozen dataclass each.

A table's name is its asset's name. What belongs here: columns, their meaning and their units. What does not: how
rows are computed (the stages) or stored (`storage`).

Columns marked `VOLATILE` describe an observation and not content (when a page was last checked, how long a step took),
so they take no part in a table's fingerprint.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Annotated, Any

import polars as pl

VOLATILE = "volatile"
UTC_MICROSECONDS = pl.Datetime("us", "UTC")
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

_DTYPES: dict[Any, Any] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
    datetime: UTC_MICROSECONDS,
    list[str]: pl.List(pl.String),
    list[int]: pl.List(pl.Int64),
    list[float]: pl.List(pl.Float32),
    list[dict[str, str]]: MESSAGES,
}


@dataclass(frozen=True, slots=True)
class RawBody:
    """One fetched or failed body (`raw_pages`, `raw_pdfs`, `raw_texts`)."""

    url: str  # as linked, without fragment
    final_url: str  # after redirects
    kind: str  # "web", "pdf", or "text" for what the task brings itself
    status: int | None  # HTTP status; None for a local file or when no answer came
    content_type: str | None  # as sniffed from the bytes
    content_sha256: str | None
    n_bytes: int
    path: str | None  # of the bytes, relative to the data folder
    fetched_at: datetime  # when these very bytes were first fetched
    checked_at: Annotated[datetime, VOLATILE]  # when they were last asked for
    etag: Annotated[str | None, VOLATILE]
    last_modified: Annotated[str | None, VOLATILE]
    licence: str
    publisher: str
    depth: int  # links away from a seed; 0 for seeds and files
    referrer: str | None  # url of the page that linked here first
    robots: (
        str  # what robots.txt said: "allowed", "disallowed", "none" (there is no file), "ignored" or "not_applicable"
    )
    charset: str | None  # as the Content-Type header declares
    robots_header: str | None  # the answer's X-Robots-Tag
    drop_reason: str | None  # why there is no usable body
    drop_detail: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """One version of one document (`documents`); with a `drop_reason` where no text could be had."""

    document_id: str  # hash of url and text
    url: str  # canonical where the page declares one
    fetched_url: str
    kind: str
    title: str | None
    author: str | None
    publisher: str
    published_on: str | None  # ISO 8601 date
    modified_on: str | None
    licence: str
    language_declared: str | None  # ISO 639-1
    language: str | None  # ISO 639-1, detected; None without text
    language_score: float | None  # share of the text that is in it, 0 to 1
    robots: str  # as in `raw_pages`
    content_sha256: str | None
    fetched_at: datetime
    text: str  # Markdown, personal data masked
    page_offsets: list[int]  # PDF: start of each page in `text`; empty for web pages
    n_chars: int
    n_masked: int  # personal data replaced by a mark
    drop_reason: str | None
    drop_detail: str | None


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """One document that passed every filter (`clean_documents`)."""

    document_id: str
    url: str
    fetched_url: str
    kind: str
    title: str | None
    author: str | None
    publisher: str
    published_on: str | None
    modified_on: str | None
    licence: str
    language_declared: str | None  # ISO 639-1
    language: str  # ISO 639-1, detected
    language_score: float  # share of the text that is in it, 0 to 1
    robots: str  # as in `raw_pages`
    content_sha256: str | None
    fetched_at: datetime
    text: str  # without the lines that its site repeats
    page_offsets: list[int]
    n_chars: int
    n_masked: int  # personal data replaced by a mark
    n_boilerplate_lines: int  # removed, because the site repeats them
    relevance: float | None  # 0 to 1; 0.5 is even evidence; None where a person chose the text for the task
    cluster_id: str  # documents about the same text share it (near-duplicates)


@dataclass(frozen=True, slots=True)
class DroppedDocument:
    """One document that was set aside, with its reason (`dropped_documents`)."""

    document_id: str
    url: str
    fetched_url: str
    kind: str
    title: str | None
    publisher: str
    licence: str
    language: str | None  # ISO 639-1, detected
    fetched_at: datetime
    text: str
    drop_reason: str
    drop_detail: str | None  # the figure that tripped the filter
    relevance: float | None  # where it was measured
    duplicate_of: str | None  # document_id of the survivor


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage of one clean document (`chunks`)."""

    chunk_id: str  # hash of document_id, span and text
    document_id: str
    cluster_id: str
    ordinal: int
    start: int  # span in the document's text, in characters
    end: int
    heading_path: str  # "Title > Section > Subsection"
    page: int | None  # 1-based, PDF only
    text: str
    n_tokens: int  # in the student's tokens


@dataclass(frozen=True, slots=True)
class ChunkVector:
    """What the sentence embedder makes of one passage (`chunk_vectors`)."""

    passage_id: str  # hash of headings and text, which is what is embedded
    embedder: str
    vector: Annotated[list[float], VOLATILE]  # unit length; its last digits depend on the processor


@dataclass(frozen=True, slots=True)
class CorpusFigure:
    """One bar of the corpus report (`corpus_report`): documents, or chunks, counted by one of their properties."""

    section: str  # "outcome", "language", "source", "publisher", "licence", "kind", "n_chars", "chunk_n_tokens"
    name: str
    n: int  # documents that came in; chunks in the sections whose name begins with "chunk_"
    n_kept: int
    n_chars: int  # of what is kept


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


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """One directory of weights (`base_model`, `adapter`, `merged_model`, `serving_model`)."""

    artifact_id: str  # hash of what it was made from and of its bytes
    kind: str
    path: str  # relative to the data folder
    base_model: str
    recipe: str  # JSON
    inputs: str  # JSON: fingerprints of what it was made from
    sha256: str  # of the weight files' bytes
    n_bytes: int
    metrics: Annotated[str, VOLATILE]  # JSON: losses, times, counts


@dataclass(frozen=True, slots=True)
class SweepTrial:
    """What came of one recipe that was tried (`sweep_trials`)."""

    trial: int  # from 1 on, in the order of the grid
    overrides: str  # JSON: dotted key of the recipe to its value
    validation_loss: float | None
    n_steps: int | None
    train_seconds: Annotated[float | None, VOLATILE]
    status: str  # "finished" or "failed"
    reason: str | None  # why it failed
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One logged optimiser step (`training_log`)."""

    adapter_id: str
    step: int
    epoch: float
    loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_seen: int | None
    elapsed_s: Annotated[float, VOLATILE]
    tokens_per_second: Annotated[float | None, VOLATILE] = None
    peak_memory_bytes: Annotated[int | None, VOLATILE] = None  # of the GPU, else of the process


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of one system to one benchmark row (`predictions`)."""

    prediction_id: str
    system: str
    example_id: str
    question: str
    reference: str
    prediction: str
    context_chunk_ids: list[str]
    gold_chunk_id: str | None
    model_id: str  # artifact_id of the serving model
    n_prompt_tokens: int
    n_completion_tokens: int
    latency_ms: Annotated[float, VOLATILE]
    exact_match: float
    token_f1: float
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One score, or one paired difference of two systems, with its 95 % interval (`eval_report`)."""

    system: str
    compared_to: str | None  # None: the score itself; else value is system minus compared_to
    metric: str
    value: float
    low: float | None  # None where an interval has no meaning (a percentile, a corpus-level rate)
    high: float | None
    n_rows: int


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One immutable version of a task's model (`registered_model`)."""

    model_version: str  # "ev_charging@3"
    number: int
    registered_at: Annotated[datetime, VOLATILE]
    serving_model_id: str
    adapter_id: str
    training_set_version: str  # reopen with Store.read(..., version=)
    training_set_fingerprint: str
    chunks_version: str
    chunks_fingerprint: str
    serving: str  # JSON: task_type, instructions, has_retrieval, top_k, candidates, max_new_tokens, as evaluated
    benchmark_fingerprint: str
    template_fingerprint: str
    recipe: str
    verdict: str
    reason: str
    scores: str  # JSON
    alias: str | None  # "champion" if this registration promoted it


@dataclass(frozen=True, slots=True)
class Publication:
    """A model that was sent to the Hugging Face Hub, or would have been (`published_models`)."""

    repo_id: str
    merged_model_id: str
    is_private: bool
    is_dry_run: bool
    url: str | None  # of the commit; None after a dry run
    commit: str | None
    n_files: int
    n_bytes: int
    published_at: Annotated[datetime, VOLATILE]


TABLES: dict[str, type] = {
    "raw_pages": RawBody,
    "raw_pdfs": RawBody,
    "raw_texts": RawBody,
    "documents": Document,
    "clean_documents": CleanDocument,
    "dropped_documents": DroppedDocument,
    "chunks": Chunk,
    "chunk_vectors": ChunkVector,
    "corpus_report": CorpusFigure,
    "qa_candidates": Example,
    "examples": Example,
    "rejected_examples": RejectedExample,
    "generation_log": GenerationOutcome,
    "coverage": Coverage,
    "teacher_answers": TeacherAnswer,
    "teacher_evaluation": TeacherEvaluation,
    "teacher_calls": TeacherCall,
    "reviews": Review,
    "training_set": DatasetRow,
    "validation_set": DatasetRow,
    "benchmark": DatasetRow,
    "base_model": ModelArtifact,
    "sweep_trials": SweepTrial,
    "adapter": ModelArtifact,
    "training_log": TrainingStep,
    "merged_model": ModelArtifact,
    "serving_model": ModelArtifact,
    "base_serving_model": ModelArtifact,
    "predictions": Prediction,
    "eval_report": Metric,
    "registered_model": RegisteredModel,
    "exports": ModelArtifact,
    "published_models": Publication,
}


@cache
def schema_of(table: str) -> pl.Schema:
    """Return the polars schema of a table.

    Raises:
        KeyError: If no such table is declared in `TABLES`.
        TypeError: If a column's annotation has no polars type.
    """
    columns = {}
    hints = typing.get_type_hints(TABLES[table])
    for name, hint in hints.items():
        if isinstance(hint, types.UnionType):
            (hint,) = [part for part in hint.__args__ if part is not type(None)]
        if hint not in _DTYPES:
            raise TypeError(f"{table}.{name}: no polars type for {hint}")
        columns[name] = _DTYPES[hint]
    return pl.Schema(columns)


def stable_columns(table: str) -> list[str]:
    """Return the columns of a table that its fingerprint covers."""
    hints = typing.get_type_hints(TABLES[table], include_extras=True)
    return [name for name, hint in hints.items() if VOLATILE not in getattr(hint, "__metadata__", ())]


def to_frame(table: str, rows: typing.Iterable[Any]) -> pl.DataFrame:
    """Build a table's frame from its row objects; an empty iterable gives the empty frame of that schema."""
    columns = [f.name for f in dataclasses.fields(TABLES[table])]
    data = [[getattr(row, name) for name in columns] for row in rows]
    return pl.DataFrame(data, schema=schema_of(table), orient="row")
