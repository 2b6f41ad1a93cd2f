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
from ev_platform.evaluation.metrics import score_answers, score_labels
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
    instructions: str,
    config: TaskConfig,
    vectors: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Let every system answer every benchmark row.

    A system with retrieval is given the passages found for the question, except where the row brings its own: then it
    is given that, and whether the right passage was found is no question (`gold_chunk_id` is empty). An answer counts
    by whichever accepted answer gives the most; a row that cannot be answered accepts the sentence that says so.

    Args:
        benchmark: The `benchmark` table; of more than `evaluation.max_rows` rows, so many spread evenly are taken.
        chunks: The `chunks` table; all of it is searched, as in serving. May be empty where nothing is retrieved.
        engines: For `base` and `tuned`: the artifact's id and its engine.
        task_type: Names the systems and makes the prompts.
        instructions: The system message.
        config: Retrieval depth, answer length, number of rows.
        vectors: The `chunk_vectors` table.

    Returns:
        The `predictions` table: rows of the benchmark in order, systems in the task type's order.

    Raises:
        UserError: If a question needs passages and there is nothing to search; a type that is trained without passages
            is then asked without.
    """
    rows = _spread(list(benchmark.iter_rows(named=True)), config.evaluation.max_rows)
    passages = {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}
    systems = task_type.systems()
    if chunks.is_empty() and not task_type.trains_with_passages and not all(row["context"] for row in rows):
        systems = tuple(system for system in systems if not system[2])  # there is nothing to search, and no need to
    has_retrieval = any(retrieves for _, _, retrieves in systems)
    asked = [row["question"] for row in rows if has_retrieval and not row["context"]]
    found: dict[str, list[str]] = {}
    if asked:
        retriever = Retriever.build(chunks, config.retrieval.candidates, vectors)
        hits = retriever.search(asked, config.retrieval.top_k)
        found = {question: [hit.chunk_id for hit in best] for question, best in zip(asked, hits, strict=True)}
    answers: list[dict[str, Any]] = []
    for row in tqdm(rows, desc="evaluate", unit="row", disable=None):
        for system, model, retrieves in systems:
            model_id, engine = engines[model]
            is_own = retrieves and bool(row["context"])
            context_ids = found[row["question"]] if retrieves and not is_own else []
            contexts = [row["context"]] if is_own else [passages[i] for i in context_ids]
            prompt = engine.render(task_type.prompt(instructions, row["question"], contexts))
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
                    "gold_chunk_id": None if row["context"] else row["chunk_id"],
                    "model_id": model_id,
                    "n_prompt_tokens": completion.n_prompt_tokens,
                    "n_completion_tokens": completion.n_completion_tokens,
                    "latency_ms": round(completion.latency_ms, 3),
                }
            )
    given = [a["prediction"] for a in answers]
    if task_type.has_corpus:
        accepted = {row["example_id"]: _accepted(row) for row in rows}
        scores = score_answers(given, [accepted[a["example_id"]] for a in answers])
    else:
        scores = score_labels(given, [a["reference"] for a in answers])
    predictions = [
        Prediction(**answer, **score) for answer, score in zip(answers, scores.iter_rows(named=True), strict=True)
    ]
    return to_frame("predictions", predictions)


def _spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    # Files are often sorted by label or document: their first rows speak for a few of them only.
    return [rows[n * len(rows) // most] for n in range(most)] if len(rows) > most else rows


def _accepted(row: Mapping[str, Any]) -> list[str]:
    # Benchmarks of earlier releases have no `answers`.
    return [row["answer"], *(row["answers"] or [])] if row["is_answerable"] is not False else [row["answer"]]
