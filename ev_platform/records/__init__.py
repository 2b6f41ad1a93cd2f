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
from functools import cache
from typing import Any

import polars as pl

from ev_platform.records.columns import DTYPES, VOLATILE
from ev_platform.records.corpus import (
    Chunk,
    ChunkVector,
    CleanDocument,
    CorpusFigure,
    Document,
    DroppedDocument,
    RawBody,
)
from ev_platform.records.dataset import (
    Coverage,
    DatasetRow,
    Example,
    FeedbackCandidate,
    GenerationOutcome,
    RejectedExample,
    Review,
    TeacherAnswer,
    TeacherCall,
    TeacherEvaluation,
)
from ev_platform.records.models import (
    GateCheck,
    ModelArtifact,
    Promotion,
    Publication,
    RegisteredModel,
    SweepTrial,
    TrainingStep,
)
from ev_platform.records.scores import (
    AbstentionScore,
    AbstentionShare,
    BenchmarkVersion,
    GeneralAnswer,
    InferenceFigure,
    Metric,
    PairJudgement,
    Prediction,
    QuestionDrift,
    RetrievalScore,
    SeedScore,
)
from ev_platform.records.serving import Feedback, ServedRequest
from ev_platform.records.takedown import Takedown

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
    "feedback_candidates": FeedbackCandidate,
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
    "benchmark_versions": BenchmarkVersion,
    "predictions": Prediction,
    "eval_report": Metric,
    "pair_judgements": PairJudgement,
    "seed_scores": SeedScore,
    "retrieval_report": RetrievalScore,
    "abstention_calibration": AbstentionShare,
    "abstention_scores": AbstentionScore,
    "general_answers": GeneralAnswer,
    "inference_benchmark": InferenceFigure,
    "registered_model": RegisteredModel,
    "promotion_gate": GateCheck,
    "promotions": Promotion,
    "exports": ModelArtifact,
    "published_models": Publication,
    "question_drift": QuestionDrift,
    "takedowns": Takedown,
}
# Not materialized by the graph but appended while serving (`serving.journal`).
SERVED: dict[str, type] = {"requests": ServedRequest, "feedback": Feedback}


def _row_class(table: str) -> type:
    return SERVED[table] if table in SERVED else TABLES[table]


@cache
def schema_of(table: str) -> pl.Schema:
    """Return the polars schema of a table.

    Raises:
        KeyError: If no such table is declared in `TABLES` or `SERVED`.
        TypeError: If a column's annotation has no polars type.
    """
    columns = {}
    hints = typing.get_type_hints(_row_class(table))
    for name, hint in hints.items():
        if isinstance(hint, types.UnionType):
            (hint,) = [part for part in hint.__args__ if part is not type(None)]
        if hint not in DTYPES:
            raise TypeError(f"{table}.{name}: no polars type for {hint}")
        columns[name] = DTYPES[hint]
    return pl.Schema(columns)


def stable_columns(table: str) -> list[str]:
    """Return the columns of a table that its fingerprint covers."""
    hints = typing.get_type_hints(_row_class(table), include_extras=True)
    return [name for name, hint in hints.items() if VOLATILE not in getattr(hint, "__metadata__", ())]


def to_frame(table: str, rows: typing.Iterable[Any]) -> pl.DataFrame:
    """Build a table's frame from its row objects; an empty iterable gives the empty frame of that schema."""
    columns = [f.name for f in dataclasses.fields(_row_class(table))]
    data = [[getattr(row, name) for name in columns] for row in rows]
    return pl.DataFrame(data, schema=schema_of(table), orient="row")
