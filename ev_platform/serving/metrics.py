"""The gateway's figures for Prometheus, in a registry of their own.

Labels take few values, whatever clients send: routes are those of the application (else `other`), tasks and versions
those that are served, codes those that this server gives. `model` is a name that is served, `model_version` what
answered. The figures are of this process: replicas tell theirs with every reply.

What does not belong here: when a request is counted (`observe`), HTTP (`api`), what to do about a figure (`deploy`).
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ev_platform.serving.exchange import Described, Reply

disable_created_metrics()  # a series more for each of the others, which nothing asks for
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

# From what HTTP alone takes to the longest time for an answer that is allowed by default, doubling or so: a quantile is
# then off by half at most.
_WHOLE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
# Below 50 ms nobody sees a difference; after 10 s most people have left.
_FIRST_TOKEN_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_QUEUE_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)  # the first is an idle replica's
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # the last is the largest that may be set
# Cosines of related texts lie anywhere in between, and thresholds are set to two digits.
_COSINE = tuple(round(0.05 * step, 2) for step in range(20))
_MODEL = ("task", "model_version")
_MOST_VALUES = 64  # of a label whose values come from elsewhere in this server; the rest are `other`

_requests = Counter(
    "ev_requests", "Requests answered, refused or left.", ("route", "status", "task"), registry=REGISTRY
)
_errors = Counter("ev_errors", "Refusals and failures by their code.", ("code",), registry=REGISTRY)
_in_progress = Gauge("ev_requests_in_progress", "Requests that are being dealt with.", registry=REGISTRY)
_seconds = Histogram(
    "ev_request_seconds", "From the body read to the last byte.", ("route",), buckets=_WHOLE_S, registry=REGISTRY
)
_first_token = Histogram(
    "ev_first_token_seconds",
    "From arrival at the replica to the first token: waiting, retrieval, prompt.",
    _MODEL,
    buckets=_FIRST_TOKEN_S,
    registry=REGISTRY,
)
_queue = Histogram(
    "ev_queue_seconds", "From arrival at the replica to its turn.", _MODEL, buckets=_QUEUE_S, registry=REGISTRY
)
_retrieve = Histogram("ev_retrieve_seconds", "Finding passages.", _MODEL, buckets=_QUEUE_S, registry=REGISTRY)
_batch = Histogram("ev_batch_size", "Prompts completed together, by prompt.", _MODEL, buckets=_BATCH, registry=REGISTRY)
_tokens = Counter("ev_tokens", "Tokens of prompts and of answers.", (*_MODEL, "kind"), registry=REGISTRY)
_answers = Counter("ev_answers", "Whole answers, abstentions included.", _MODEL, registry=REGISTRY)
_abstentions = Counter("ev_abstentions", "Answers that say that the passages hold none.", _MODEL, registry=REGISTRY)
_top_score = Histogram(
    "ev_retrieval_top_score",
    "Cosine of the question and its best passage.",
    _MODEL,
    buckets=_COSINE,
    registry=REGISTRY,
)
_similarity = Histogram(
    "ev_question_similarity",
    "Cosine of the question and the nearest one trained on.",
    _MODEL,
    buckets=_COSINE,
    registry=REGISTRY,
)
_model_info = Gauge(
    "ev_model_info", "What stands behind a served name: always 1.", ("model", *_MODEL, "task_type"), registry=REGISTRY
)
_model_up = Gauge("ev_model_up", "Whether a served name answers.", ("model",), registry=REGISTRY)
_loaded = Gauge(
    "ev_model_loaded_timestamp_seconds", "When the version was loaded, Unix time.", ("model",), registry=REGISTRY
)
_waiting = Gauge("ev_waiting", "Questions that wait for their turn.", ("model",), registry=REGISTRY)
_lost = Counter("ev_journal_lost_rows", "Rows that the disk did not take.", ("table",), registry=REGISTRY)
_faults = Counter("ev_journal_faults", "Failures to roll, compact or delete.", ("table",), registry=REGISTRY)
for _table in ("requests", "feedback"):
    _lost.labels(_table)  # at 0 from the start: an increase from nothing is none to Prometheus
    _faults.labels(_table)
_errors.labels("internal_error")
_codes: set[str] = set()
_tasks: set[str] = set()


def begun() -> None:
    """Count a request that has come."""
    _in_progress.inc()


def answered(
    route: str, status: int, task: str | None, seconds: float, error: str | None = None, reply: Reply | None = None
) -> None:
    """Count a request that was `begun`.

    Args:
        route: Template of the path.
        status: Of HTTP; 499 where the client went away.
        task: Of the served model that it was for.
        seconds: In the gateway.
        error: Code of the refusal or failure.
        reply: What was answered.
    """
    _in_progress.dec()
    _requests.labels(route, str(status), _bounded(_tasks, task or "")).inc()
    _seconds.labels(route).observe(seconds)
    if error is not None:
        _errors.labels(_bounded(_codes, error)).inc()
    if reply is not None:
        _observe(reply)


def _observe(reply: Reply) -> None:
    model = (reply.model_version.rpartition("@")[0], reply.model_version)
    _tokens.labels(*model, "prompt").inc(reply.n_prompt_tokens)
    _tokens.labels(*model, "completion").inc(reply.n_completion_tokens)
    if reply.finish_reason == "cancelled":
        return  # it was generated, and is no answer
    _answers.labels(*model).inc()
    _abstentions.labels(*model).inc(int(reply.is_abstention))
    if reply.batch_size:
        _batch.labels(*model).observe(reply.batch_size)
        _queue.labels(*model).observe(reply.queue_ms / 1000)
    if reply.first_token_ms is not None:
        waited = reply.queue_ms + reply.retrieve_ms + reply.first_token_ms
        _first_token.labels(*model).observe(waited / 1000)
    if reply.citations:
        _retrieve.labels(*model).observe(reply.retrieve_ms / 1000)
        _top_score.labels(*model).observe(max(citation.score for citation in reply.citations))
    if reply.similarity is not None:
        _similarity.labels(*model).observe(reply.similarity)


def _bounded(known: set[str], value: str) -> str:
    if len(known) < _MOST_VALUES:
        known.add(value)
    return value if value in known else "other"


def set_models(described: Mapping[str, Described | None]) -> None:
    """Set what stands behind each served name now; called before `render`.

    Args:
        described: By name; None where the model does not answer.
    """
    _model_info.clear()
    for model, now in described.items():
        _model_up.labels(model).set(now is not None)
        if now is not None:
            _model_info.labels(model, now.task, now.model_version, now.task_type).set(1)
            _loaded.labels(model).set(now.loaded_at)
            _waiting.labels(model).set(now.waiting)


def journal_lost(table: str) -> None:
    """Count a row that could not be written."""
    _lost.labels(table).inc()


def journal_fault(table: str) -> None:
    """Count a failure of the journal's upkeep; no row is lost by it."""
    _faults.labels(table).inc()


def render() -> tuple[bytes, str]:
    """Return the body of `/metrics` and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
