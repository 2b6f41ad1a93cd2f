"""What a task type is; each lives in a file of its own and is named here once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.tasks.open_book_qa import OpenBookQA


class TaskType(Protocol):
    """What the stages ask of a task type, so that none of them branches on its name."""

    name: str

    def prompt(self, description: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question."""
        ...

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages."""
        ...


TASK_TYPES: dict[str, TaskType] = {task_type.name: task_type for task_type in (OpenBookQA(),)}


def get_task_type(name: str) -> TaskType:
    """Return a task type by its name.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in TASK_TYPES:
        raise UserError(f"config.yaml: type {name!r} is not one of {', '.join(TASK_TYPES)}.")
    return TASK_TYPES[name]
