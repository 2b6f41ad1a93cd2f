"""Asking every system every row of the benchmark, and scoring what it answers.

What belongs here: which rows are asked, in which order, and the rows of `predictions` that come of it. What does not:
who answers (`systems`), scores (`metrics`), intervals (`statistics`), and how they are shown (`report`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from tqdm import tqdm

from ev_platform.engine_base import Engine
from ev_platform.errors import UserError
from ev_platform.evaluation.answering import Answer, System
from ev_platform.evaluation.metrics import groundedness, is_abstention, score_answers, score_labels
from ev_platform.evaluation.systems import CHAMPION, open_systems
from ev_platform.identity import short_id
from ev_platform.records import Prediction, to_frame
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.tasks.types import TaskType

if TYPE_CHECKING:
    from ev_platform.registry import Release

_log = logging.getLogger(__name__)


def predict(
    benchmark: pl.DataFrame,
    chunks: pl.DataFrame,
    engines: Mapping[str, tuple[str, Engine]],
    task_type: TaskType,
    instructions: str,
    config: TaskConfig,
    *,
    vectors: pl.DataFrame | None = None,
    training_set: pl.DataFrame | None = None,
    teacher_answers: pl.DataFrame | None = None,
    champion: Release | None = None,
    min_score: float | None = None,
) -> pl.DataFrame:
    """Let every system answer every benchmark row.

    A system with retrieval is given the passages found for the question, except where the row brings its own: then it
    is given that, and whether the right passage was found is no question (`gold_chunk_id` is empty, as it is where no
    passage holds an answer, and for the champion where it answers from other passages). An answer counts by whichever
    accepted answer gives the most; a row that cannot be answered accepts the sentence that says so.

    Args:
        benchmark: The `benchmark` table; of more than `evaluation.max_rows` rows, so many spread evenly are taken.
        chunks: The `chunks` table; all of it is searched, as in serving. May be empty where nothing is retrieved.
        engines: For `base` and `tuned`, or one of them: the artifact's id and its engine.
        task_type: Names the systems and makes the prompts.
        instructions: The system message.
        config: Retrieval depth, answer length, number of rows.
        vectors: The `chunk_vectors` table.
        training_set: The table; with it, floors take part.
        teacher_answers: The table; the teacher takes part if it answered every row.
        champion: The version that the model is compared with; it answers with its own passages and settings. It takes
            no part if it refuses a row, such as one that is longer than its window.
        min_score: Cosine of a question and the nearest retrieved passage below which the models with retrieval say
            `no_answer` and generate nothing; None: they always generate. The champion has its own.

    Returns:
        The `predictions` table: rows of the benchmark in order, for each the systems in the order of `open_systems`.

    Raises:
        UserError: If passages are to be found for a row, and there are none to search.
    """
    rows = evaluated_rows(benchmark, config.evaluation.max_rows)
    systems = open_systems(
        rows,
        chunks,
        engines,
        task_type,
        instructions,
        config,
        vectors=vectors,
        training_set=training_set,
        teacher_answers=teacher_answers,
        champion=champion,
        min_score=min_score,
    )
    answers = _ask(systems, rows)
    given = [answer.text for _, _, answer in answers]
    if task_type.has_corpus:
        scores = score_answers(given, [_accepted(row) for row, _, _ in answers])
    else:
        scores = score_labels(given, [row["answer"] for row, _, _ in answers])
    return to_frame(
        "predictions",
        [
            _prediction(row, system, answer, task_type, config.no_answer, score, _gold(row, system, champion))
            for (row, system, answer), score in zip(answers, scores.iter_rows(named=True), strict=True)
        ],
    )


def evaluated_rows(benchmark: pl.DataFrame, max_rows: int) -> list[dict[str, Any]]:
    """Return the rows of a benchmark that are asked: at most `max_rows`, spread evenly over the file.

    Files are often sorted by label or document: their first rows speak for a few of them only.
    """
    return spread_evenly(benchmark.to_dicts(), max_rows)


def _ask(systems: Sequence[System], rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], System, Answer]]:
    # Those whose speed is compared answer one question at a time, as they are served, and in turn: whatever else the
    # machine does hits them alike. The others answer all questions at once.
    at_once = {system.name: system.answer(rows) for system in systems if not system.takes_turns}
    answers, asked = [], list(systems)
    for number, row in enumerate(tqdm(rows, desc="evaluate", unit="row", disable=None)):
        for system in tuple(asked):
            try:
                answer = system.answer([row])[0] if system.takes_turns else at_once[system.name][number]
            except UserError as error:
                if system.name != CHAMPION:
                    raise
                # What is already in place must not keep its successor from being evaluated.
                _log.warning("The champion takes no part, since it refuses a row: %s", error)
                asked.remove(system)
                continue
            answers.append((row, system, answer))
    return [one for one in answers if one[1] in asked]


def _prediction(
    row: Mapping[str, Any],
    system: System,
    answer: Answer,
    task_type: TaskType,
    no_answer: str,
    scores: Mapping[str, float],
    gold_chunk_id: str | None,
) -> Prediction:
    context_ids = [passage.chunk_id for passage in answer.passages if passage.chunk_id is not None]
    passages = [passage.shown for passage in answer.passages]
    return Prediction(
        prediction_id=short_id("prd", system.name, system.model_id, row["example_id"], context_ids),
        system=system.name,
        example_id=row["example_id"],
        question=row["question"],
        reference=row["answer"],
        prediction=answer.text,
        context_chunk_ids=context_ids,
        gold_chunk_id=gold_chunk_id,
        model_id=system.model_id,
        n_prompt_tokens=answer.n_prompt_tokens,
        n_completion_tokens=answer.n_completion_tokens,
        latency_ms=answer.latency_ms,
        groundedness=groundedness(answer.text, passages) if passages else None,
        is_abstention=None if task_type.has_classes else answer.is_refusal or is_abstention(answer.text, no_answer),
        is_answerable=row["is_answerable"] is not False,
        **scores,
    )


def _gold(row: Mapping[str, Any], system: System, champion: Release | None) -> str | None:
    """Return the passage that supports the answer, where there is one among those that are searched."""
    if row["context"] or row["is_answerable"] is False:
        return None
    # One edited word gives the passages of a page other ids than those that the champion has.
    if system.name == CHAMPION and champion is not None and row["chunk_id"] not in champion.chunks:
        return None
    return row["chunk_id"]


def _accepted(row: Mapping[str, Any]) -> list[str]:
    # Benchmarks of earlier releases have no `answers`.
    return [row["answer"], *(row["answers"] or [])] if row["is_answerable"] is not False else [row["answer"]]
