"""What is evaluated: models with and without retrieval, the champion, the teacher, and which of them take part.

What belongs here: who answers, from which passages. What does not: the floors (`floors`), scores of the answers
(`metrics`), the order in which systems are asked (`evaluation.predict`), and training (`training`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from ev_platform.decoding import Completion
from ev_platform.engine_base import Engine
from ev_platform.evaluation.answering import Answer, Passage, Row, Search, System
from ev_platform.evaluation.floors import FirstSentence, LinearProbe, Majority
from ev_platform.retrieval import Retriever
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.types import TaskType

if TYPE_CHECKING:
    from ev_platform.registry import Release

CHAMPION = "champion"


@dataclass
class ModelSystem:
    """A model, with the engine, the template and the settings that serve it.

    Attributes:
        name: Of the system.
        model_id: Of the model.
        engine: Generates.
        task_type: Makes the prompts.
        instructions: The system message.
        max_new_tokens: Longest answer.
        search: Brings passages, and says which rows they are too far from; None where it answers without.
        no_answer: What it says where none is near enough.
    """

    name: str
    model_id: str
    engine: Engine
    task_type: TaskType
    instructions: str
    max_new_tokens: int
    search: Search | None
    no_answer: str
    takes_turns = True

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Generate an answer to each row, but for those without a passage near enough."""
        given = [self.search(row) if self.search else () for row in batch]
        refused = [self.search is not None and self.search.is_too_far(row) for row in batch]
        prompts = [
            self.engine.render(
                self.task_type.prompt(self.instructions, row["question"], [passage.shown for passage in passages])
            )
            for row, passages, is_refused in zip(batch, given, refused, strict=True)
            if not is_refused
        ]
        made = iter(self.engine.generate(prompts, max_new_tokens=self.max_new_tokens) if prompts else ())
        return [
            Answer(self.no_answer, passages, 0, 0, 0.0, is_refusal=True)
            if is_refused
            else _generated(next(made), passages)
            for passages, is_refused in zip(given, refused, strict=True)
        ]


def _generated(made: Completion, passages: tuple[Passage, ...]) -> Answer:
    return Answer(made.text, passages, made.n_prompt_tokens, made.n_completion_tokens, round(made.latency_ms, 3))


class Teacher:
    """Repeats what the teacher answered when it was examined (`teacher_answers`); what it took is not known here."""

    name = model_id = "teacher"
    takes_turns = False

    def __init__(self, teacher_answers: pl.DataFrame):
        self._answers: dict[str, str] = dict(teacher_answers.select("example_id", "prediction").iter_rows())

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Return the stored answers."""
        return [Answer(self._answers[row["example_id"]]) for row in batch]


def answers_by_teacher(rows: Sequence[Row], teacher_answers: pl.DataFrame) -> pl.DataFrame:
    """Return the teacher's answers to the rows; none at all where it has not answered every one of them."""
    wanted = [row["example_id"] for row in rows]
    answered = teacher_answers.filter(
        (pl.col("status") == "ok") & pl.col("prediction").is_not_null() & pl.col("example_id").is_in(wanted)
    )
    return answered if answered["example_id"].n_unique() == len(set(wanted)) else answered.clear()


def open_systems(
    rows: Sequence[Row],
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
) -> list[System]:
    """Return the systems that answer a benchmark: floors, the task type's, the champion, the teacher.

    Args:
        rows: Of the benchmark.
        chunks: The `chunks` table; all of it is searched, as in serving. May be empty where nothing is retrieved.
        engines: For `base` and `tuned`, or one of them: the artifact's id and its engine.
        task_type: Names the systems and makes the prompts.
        instructions: The system message.
        config: Retrieval depth and answer length.
        vectors: The `chunk_vectors` table.
        training_set: The table; with it, the floors take part that suit the task type.
        teacher_answers: The table; the teacher takes part if it answered every row.
        champion: The version to compare with, which answers with its own passages and settings.
        min_score: Cosine of a question and the nearest retrieved passage below which the models with retrieval abstain;
            None: they never do so by score.

    Raises:
        UserError: If passages are to be found for a row, and there are none to search.
    """
    kinds = [kind for kind in task_type.systems() if kind[1] in engines]
    if chunks.is_empty() and not task_type.trains_with_passages and not all(row["context"] for row in rows):
        kinds = [kind for kind in kinds if not kind[2]]  # there is nothing to search, and no need to
    search = None
    if any(retrieves for _, _, retrieves in kinds):
        is_searched = not all(row["context"] for row in rows)
        retriever = Retriever.build(chunks, config.retrieval.candidates, vectors) if is_searched else None
        texts = chunks.select("chunk_id", "heading_path", "text").iter_rows()
        passages = {chunk_id: Passage.of(chunk_id, heading, text) for chunk_id, heading, text in texts}
        search = Search(retriever, passages, config.retrieval.top_k, rows, min_score)
    systems: list[System] = []
    if training_set is not None:
        if task_type.has_classes and training_set.height:
            systems.append(Majority(training_set))
            if training_set["answer"].n_unique() > 1:
                systems.append(LinearProbe(training_set))
        if search is not None:
            systems.append(FirstSentence(search))
    for name, model, retrieves in kinds:
        model_id, engine = engines[model]
        max_new_tokens = config.evaluation.max_new_tokens
        found = search if retrieves else None
        systems.append(
            ModelSystem(name, model_id, engine, task_type, instructions, max_new_tokens, found, config.no_answer)
        )
    if champion is not None:
        systems.append(_champion(champion, rows))
    if teacher_answers is not None:
        answered = answers_by_teacher(rows, teacher_answers)
        if answered.height:
            systems.append(Teacher(answered))
    return systems


def _champion(release: Release, rows: Sequence[Row]) -> ModelSystem:
    search = None
    if release.has_retrieval:
        chunks = release.chunks.items()
        passages = {chunk_id: Passage.of(chunk_id, chunk.heading_path, chunk.text) for chunk_id, chunk in chunks}
        search = Search(release.retriever, passages, release.top_k, rows, release.min_score)
    return ModelSystem(
        CHAMPION,
        release.model_version,
        release.engine,
        release.task_type,
        release.instructions,
        release.max_new_tokens,
        search,
        release.no_answer,
    )
