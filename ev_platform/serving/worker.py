"""From a question to an answer with its passages: one loaded release, asked one question at a time.

What does not belong here: HTTP (`api`), and which release is the one to ask (`live`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ev_platform.engine import Completion
from ev_platform.errors import UserError
from ev_platform.retrieval import Hit
from ev_platform.serving.schemas import ApiError, failure

if TYPE_CHECKING:
    from ev_platform.registry import Release

# One question is answered at a time and the others wait; at about a second each, the last of 16 waits a quarter of a
# minute, and nobody gains from waiting longer than that.
MAX_PENDING = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion and the passages it was made from."""

    completion: Completion
    hits: list[Hit]


def answer_question(release: Release, question: str, max_tokens: int, temperature: float, seed: int) -> Answer:
    """Retrieve if the model answers from passages, build the prompt and generate. Blocks.

    Raises:
        ApiError: If prompt and answer do not fit the model's window.
    """
    hits = release.retrieve(question)
    prompt = release.render(question, hits)
    n_tokens, window = release.engine.count_tokens(prompt), release.engine.window
    if n_tokens + max_tokens > window:
        raise ApiError(
            400,
            f"The prompt takes {n_tokens} tokens and the answer up to {max_tokens}, which exceeds the model's window "
            f"of {window}: ask a shorter question.",
            "context_length_exceeded",
            "messages",
        )
    try:
        (completion,) = release.engine.generate([prompt], max_new_tokens=max_tokens, temperature=temperature, seed=seed)
    except UserError as error:  # such as a question that leaves an encoder no room for its passages
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from error
    return Answer(completion, hits)


class Worker:
    """Runs answers one after the other in a thread of its own, and refuses what would wait too long.

    The engine is not asked twice at once even if a client goes away meanwhile: its thread finishes the answer first.

    Attributes:
        release: What answers.
        loaded_at: Unix seconds.
    """

    def __init__(self, release: Release):
        self.release = release
        self.loaded_at = int(time.time())
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._slots = threading.BoundedSemaphore(MAX_PENDING)

    async def answer(self, question: str, max_tokens: int, temperature: float, seed: int) -> Answer:
        """Answer when it is this question's turn.

        Raises:
            ApiError: 503 if `MAX_PENDING` questions are being answered or waiting, 500 if the engine failed.
        """
        if not self._slots.acquire(blocking=False):
            raise ApiError(503, f"{MAX_PENDING} questions are waiting already: try again in a second.", "overloaded")
        future = self._thread.submit(answer_question, self.release, question, max_tokens, temperature, seed)
        future.add_done_callback(lambda _: self._slots.release())
        try:
            return await asyncio.wrap_future(future)
        except ApiError:
            raise
        except Exception as error:
            # Where and what kind, but not the error's own words: those may quote the question.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("An answer failed with %s:\n%s", type(error).__name__, where)
            raise failure() from None
        finally:
            # An error's frames hold it, and it holds the error: a failed answer would keep the weights after a swap.
            del future

    def retire(self) -> None:
        """Take no more questions; those that were taken are answered."""
        self._thread.shutdown(wait=False)

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)
