"""Opening the teacher that a task's `config.yaml` names.

What does not belong here: what teachers do (`offline`, `language_model`) and how a provider is spoken to (the clients).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import SecretStr

from ev_platform.dataset.locate import plain
from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import Task
from ev_platform.tasks.rows import read_rows, row_files
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers import Shot, Teacher
from ev_platform.teachers.ask import Budget, Ledger
from ev_platform.teachers.calls import Client
from ev_platform.teachers.language_model import LanguageModelTeacher
from ev_platform.teachers.ledger import ledger_path
from ev_platform.teachers.prices import price_of


def open_teacher(task: Task, data_root: Path, run_id: str | None = None) -> Teacher:
    """Open a task's teacher, with the cap of one run and the ledger that all tasks of a data folder share.

    Args:
        task: Its configuration names the teacher.
        data_root: The data folder.
        run_id: All that one run of the graph opens shares one cap; None: a cap of its own.

    Raises:
        UserError: If the configuration lacks something, or the environment lacks the provider's key.
    """
    config = task.config.teacher
    if config.provider == "offline":
        from ev_platform.teachers.offline import OfflineTeacher

        return OfflineTeacher(_labelled(task), task.config.dataset.seed)
    client, price = open_client(task), price_of(config)
    budget = Budget(config.max_cost_usd) if run_id is None else _budget_of_run(run_id, config.max_cost_usd)
    return LanguageModelTeacher(client, Ledger(ledger_path(data_root)), config, price, budget)


@cache
def _budget_of_run(run_id: str, cap_usd: float) -> Budget:
    # The graph runs in one process, so the assets that ask a teacher meet here.
    return Budget(cap_usd)


def open_client(task: Task) -> Client:
    """Open what reaches the model of a task's teacher.

    Raises:
        UserError: If the teacher asks no model, or something that its client needs is missing.
    """
    provider = task.config.teacher.provider
    if provider not in _CLIENTS:
        known = ", ".join(_CLIENTS)
        raise UserError(
            f"{_file(task)}: the teacher {provider!r} asks no model: set teacher.provider to one of {known}."
        )
    return _CLIENTS[provider](task)


def _anthropic(task: Task) -> Client:
    from ev_platform.teachers.anthropic_client import AnthropicClient

    _require_model(task)
    settings = get_settings()
    key = _require_key(task, settings.anthropic_api_key, "ANTHROPIC_API_KEY")
    return AnthropicClient(task.config.teacher, key, settings.anthropic_base_url)


def _openai_compatible(task: Task) -> Client:
    from ev_platform.teachers.openai_client import OpenAIClient

    _require_model(task)
    settings, address = get_settings(), task.config.teacher.base_url
    if address is None or str(address).rstrip("/") == (settings.openai_base_url or "").rstrip("/"):
        key = _require_key(task, settings.openai_api_key, "OPENAI_API_KEY")
        return OpenAIClient(task.config.teacher, key, settings.openai_base_url)
    # A task folder may come from anyone: the key goes to no address but the one that stands beside it in the
    # environment. Servers that people run themselves mostly ask for none, and the SDK insists on a word.
    return OpenAIClient(task.config.teacher, "none")


def _recorded(task: Task) -> Client:
    from ev_platform.teachers.recorded_client import RecordedClient

    recording = task.config.teacher.recording
    if recording is None:
        raise UserError(f"{_file(task)}: teacher.recording is missing: name the JSONL file to replay.")
    _require_model(task)  # it is part of what a recorded call is found by
    return RecordedClient(task.folder / recording)


_CLIENTS: dict[str, Callable[[Task], Client]] = {
    "anthropic": _anthropic,
    "openai_compatible": _openai_compatible,
    "recorded": _recorded,
}


def _labelled(task: Task) -> list[Shot]:
    """Return the train rows of a task with classes, from which the offline teacher learns to label.

    Rows that ask what a test row asks are left out, or the teacher's examination would say nothing.
    """
    if not get_task_type(task.config.type).has_classes or not row_files(task, "train"):
        return []
    tested = {plain(row.question) for row in read_rows(task, "test")} if row_files(task, "test") else set()
    rows = [row for row in read_rows(task, "train") if plain(row.question) not in tested]
    return [Shot(row.question, row.answer, row.context) for row in rows]


def _require_model(task: Task) -> None:
    if not task.config.teacher.model:
        provider = task.config.teacher.provider
        raise UserError(f"{_file(task)}: teacher.model is missing: name the model that {provider} is to use.")


def _require_key(task: Task, key: SecretStr | None, variable: str) -> SecretStr:
    if key is None or not key.get_secret_value():
        provider = task.config.teacher.provider
        raise UserError(
            f"The teacher {provider!r} of {_file(task)} needs a key: set {variable} in the environment or in .env."
        )
    return key


def _file(task: Task) -> Path:
    return task.folder / "config.yaml"
