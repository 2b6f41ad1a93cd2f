"""Rows of the stage `evaluation`: answers, scores, measurements."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from ev_platform.records.columns import VOLATILE


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
    n_prompt_tokens: int | None  # None: nothing was generated, or it is not known
    n_completion_tokens: int | None
    latency_ms: Annotated[float | None, VOLATILE]
    exact_match: float
    token_f1: float
    rouge_l: float
    rouge_1: float | None = None
    rouge_2: float | None = None
    chrf: float | None = None  # 0 to 100
    meteor: float | None = None
    groundedness: float | None = None  # share of the answer's content words in its passages; None without passages
    is_abstention: bool | None = None  # whether the answer says that there is none; None for labels
    is_answerable: bool | None = None  # whether the row has an answer


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
    p_value: float | None = None  # of a paired difference: two-sided permutation test


@dataclass(frozen=True, slots=True)
class BenchmarkVersion:
    """One version of a task's test rows (`benchmark_versions`), oldest first."""

    benchmark: str  # "ev_charging-bench@2"
    number: int
    announced_at: Annotated[datetime, VOLATILE]
    benchmark_version: str  # reopen with Store.read("benchmark", ..., version=)
    benchmark_fingerprint: str
    n_rows: int
    n_documents: int  # held-out documents behind the rows
    n_added: int  # rows that the version before did not have
    n_removed: int
    note: str  # what is new, in one sentence
    card: str  # Markdown


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """A judge's choice between two systems' answers to one row, asked in both orders (`pair_judgements`)."""

    example_id: str
    system: str
    compared_to: str
    verdict: str | None  # "better", "worse", "tie"; "inconsistent" if it changed with the order; None: no judgement
    reason: str | None
    status: str  # "ok", or why there is no judgement, as the teacher's outcomes say it
    human: str | None  # "better", "worse" or "tie" where a person judged the pair
    call_ids: list[str]
    cost_usd: float


@dataclass(frozen=True, slots=True)
class SeedScore:
    """Score of a tuned system trained with another seed (`seed_scores`)."""

    seed: int
    system: str
    metric: str
    value: float
    n_rows: int


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """How often a search finds what the test rows rest on (`retrieval_report`)."""

    method: str  # "lexical", "embedding" or "hybrid"
    level: str  # what has to be found: the "chunk" that supports the answer, or any of its "document"
    metric: str  # "recall@1", "recall@5", "recall@10", "mrr" (of the first 10)
    value: float
    low: float | None
    high: float | None
    n_rows: int


@dataclass(frozen=True, slots=True)
class AbstentionShare:
    """How many questions of a group are refused, since nothing near enough is found (`abstention_calibration`)."""

    group: str  # see `evaluation.calibration.GROUPS`
    n: int
    n_refused: int
    value: float | None  # None where the group is empty
    low: float | None
    high: float | None
    min_score: float | None  # the same in every row: cosine below which it abstains; None: it never does so by score
    reason: str  # the same in every row: why this score, or why there is none


@dataclass(frozen=True, slots=True)
class AbstentionScore:
    """How near the nearest passage is that is found for a question (`abstention_scores`)."""

    group: str
    source: str  # topic of a question outside the task; of others their origin
    question: str
    score: float  # cosine
    is_refused: bool


@dataclass(frozen=True, slots=True)
class GeneralAnswer:
    """What a model makes of one item of the general set, which has nothing to do with the task (`general_answers`)."""

    model: str  # "base" or "tuned"
    model_id: str
    item_id: str
    kind: str  # "question" or "text"
    text: str
    reference: str | None  # accepted answer of a question
    answer: str | None
    score: float  # question: 1.0 if right, else 0.0; text: mean negative log-likelihood of a token, nats
    n_tokens: int


@dataclass(frozen=True, slots=True)
class InferenceFigure:
    """Speed and cost of a model at one concurrency (`inference_benchmark`)."""

    model: str  # "base" or "tuned"
    model_id: str
    concurrency: int
    n_requests: int
    latency_ms_p50: Annotated[float, VOLATILE]
    latency_ms_p95: Annotated[float, VOLATILE]
    latency_ms_p99: Annotated[float, VOLATILE]
    first_token_ms_p50: Annotated[float | None, VOLATILE]  # None where nothing is generated token by token
    tokens_per_second: Annotated[float | None, VOLATILE]
    memory_bytes: Annotated[int, VOLATILE]  # peak of the process
    usd_per_1000_answers: Annotated[float, VOLATILE]


@dataclass(frozen=True, slots=True)
class QuestionDrift:
    """How far the questions put to one served version are from those it was trained on (`question_drift`).

    Questions are distinct ones. Similarity is the cosine of a question and the nearest one trained on; the served
    questions' is compared with that of the benchmark's and the validation rows' questions.
    """

    model_version: str
    first_at: datetime  # of the requests that are looked at
    last_at: datetime
    n_requests: int
    n_questions: int
    n_abstained: int  # requests that were answered with the task's sentence for "no answer"
    abstention_share: float  # of the requests
    n_reference: int  # questions that the served ones are compared with
    similarity_p50: float | None  # None where the version has no questions to compare with
    reference_p50: float | None
    ks: float | None  # Kolmogorov-Smirnov: how far the served ones' distribution function exceeds the other at most
    p_value: float | None  # one-sided: of no less familiar questions
    cliffs_delta: float | None  # -1 to 1; below 0 the served questions are the less familiar ones
    unfamiliar_share: float | None  # served questions below the reference's 5th percentile; 0.05 is to be expected
    percentiles: list[float]  # of the served questions' similarity, 0th to 100th
    reference_percentiles: list[float]
