"""What a task type is; each lives in a file of its own and is named here once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.tasks.classification import Classification
from ev_platform.tasks.closed_book_qa import ClosedBookQA
from ev_platform.tasks.extractive_qa import ExtractiveQA
from ev_platform.tasks.open_book_qa import OpenBookQA


class TaskType(Protocol):
    """What the stages ask of a task type, so that none of them branches on its name.

    Attributes:
        name: As config.yaml has it.
        has_corpus: Whether questions are written about chunks; else unlabelled texts are labelled.
        has_classes: Whether every answer is one of few labels (`Task.classes`).
        trains_with_passages: Whether training prompts hold passages.
        allows_unanswerable: Whether a question whose passage does not hold the answer can be an example.
        answer_rule: What form an answer has, in one sentence that a teacher is told.
        primary_metric: Column of `predictions` that decides between systems.
        heads: What a recipe may train for it (`Recipe.head`).
    """

    name: str
    has_corpus: bool
    has_classes: bool
    trains_with_passages: bool
    allows_unanswerable: bool
    answer_rule: str
    primary_metric: str
    heads: tuple[str, ...]

    def instructions(self, description: str, classes: Mapping[str, str]) -> str:
        """Return the system message: the task in words, with its classes where it has any."""
        ...

    def prompt(self, instructions: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question."""
        ...

    def flaw(self, example: Mapping[str, Any], passage: str | None, classes: Mapping[str, str]) -> str | None:
        """Return why a row of `qa_candidates` cannot be an example of this type, such as a label that is no class.

        Args:
            example: The row.
            passage: The text that it rests on, where it is known.
            classes: Label to its description; empty where the task has none.

        Returns:
            `reason: detail`, the reason in snake_case; None where nothing is wrong.
        """
        ...

    def fits(self, *, has_descriptions: bool, has_spans: bool) -> bool:
        """Return whether a folder's files show by themselves that it is of this type.

        Args:
            has_descriptions: Whether the job description says what labels mean.
            has_spans: Whether rows say where their answers begin in their context.
        """
        ...

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages.

        A system with retrieval gets a row's own context instead of retrieved passages; one without gets neither.
        """
        ...


_TYPES: tuple[TaskType, ...] = (OpenBookQA(), ClosedBookQA(), Classification(), ExtractiveQA())
TASK_TYPES = {task_type.name: task_type for task_type in _TYPES}


def get_task_type(name: str) -> TaskType:
    """Return a task type by its name.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in TASK_TYPES:
        raise UserError(f"config.yaml: type {name!r} is not one of {', '.join(TASK_TYPES)}.")
    return TASK_TYPES[name]
