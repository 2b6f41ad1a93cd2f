"""What all commands share: the console, the option that names a task, errors in one sentence, quiet libraries.

What does not belong here: the commands (`cli`, `cli_dataset`).
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ev_platform.errors import UserError

console = Console()
TaskOption = Annotated[str, typer.Option("--task", help="Name of the task.")]


def say(text: str) -> None:
    """Print a sentence as it is, however long; a terminal breaks it where it likes."""
    console.print(escape(text), soft_wrap=True, highlight=False)


def plain_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Print a `UserError` as its sentence and exit with 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            _let_go(error)
            raise typer.Exit(1) from None

    return run


def _let_go(error: BaseException | None) -> None:
    """Let go of what tracebacks hold: of a connection that is held to the end DuckDB prints forty lines of leaks."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def quiet() -> None:
    """Keep what a person reads: progress bars and our own lines, not the chatter of a dozen libraries."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL") == "CRITICAL":
        # There is nothing to send, and Prefect would wait 5 s until it is sent.
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("bitsandbytes", "bm25s", "httpx", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
