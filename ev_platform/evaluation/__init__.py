"""Answers of every system to the benchmark, their scores, and what follows from them.

A system is a model with or without retrieval. All systems answer with the engine, template and generation settings
that serve, one question at a time and in turn, so that whatever else the machine does hits them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.engine import Engine
from ev_platform.evaluation.metrics import score_rows
from ev_platform.prompting import passage_text
from ev_platform.records import Prediction, to_frame
from ev_platform.retrieval import Retriever
from ev_platform.storage import short_id
from ev_platform.tasks import TaskConfig
from ev_platform.tasks.types import TaskType


def predict(
    benchmark: pl.DataFrame,
    chunks: pl.DataFrame,
    engines: Mapping[str, tuple[str, Engine]],
    task_type: TaskType,
    description: str,
    config: TaskConfig,
    vectors: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Let every system answer every benchmark row.

    Args:
        benchmark: The `benchmark` table.
        chunks: The `chunks` table; all of it is searched, as in serving.
        engines: For `base` and `tuned`: the artifact's id and its engine.
        task_type: Names the systems and makes the prompts.
        description: The task in words.
        config: Retrieval depth, answer length, number of rows.
        vectors: The `chunk_vectors` table.

    Returns:
        The `predictions` table: rows of the benchmark in order, systems in the task type's order.
    """
    rows = list(benchmark.head(config.evaluation.max_rows).iter_rows(named=True))
    questions = [row["question"] for row in rows]
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    retriever = Retriever.build(chunks, config.retrieval.candidates, vectors)
    found = [[hit.chunk_id for hit in hits] for hits in retriever.search(questions, config.retrieval.top_k)]
    answers: list[dict[str, Any]] = []
    for row, ids in tqdm(zip(rows, found, strict=True), total=len(rows), desc="evaluate", unit="row", disable=None):
        for system, model, has_retrieval in task_type.systems():
            model_id, engine = engines[model]
            context_ids = ids if has_retrieval else []
            prompt = engine.render(task_type.prompt(description, row["question"], [passages[i] for i in context_ids]))
            (completion,) = engine.generate([prompt], max_new_tokens=config.evaluation.max_new_tokens)
            answers.append(
                {
                    "prediction_id": short_id("prd", system, model_id, row["example_id"], context_ids),
                    "system": system,
                    "example_id": row["example_id"],
                    "question": row["question"],
                    "reference": row["answer"],
                    "prediction": completion.text,
                    "context_chunk_ids": context_ids,
                    "gold_chunk_id": row["chunk_id"],
                    "model_id": model_id,
                    "n_prompt_tokens": completion.n_prompt_tokens,
                    "n_completion_tokens": completion.n_completion_tokens,
                    "latency_ms": round(completion.latency_ms, 3),
                }
            )
    scores = score_rows([a["prediction"] for a in answers], [a["reference"] for a in answers])
    predictions = [
        Prediction(**answer, **score) for answer, score in zip(answers, scores.iter_rows(named=True), strict=True)
    ]
    return to_frame("predictions", predictions)
