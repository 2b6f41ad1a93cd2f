"""Who is answered when, and together with whom.

Only prompts of equally many tokens are completed together: where text is written, others would change each other's
answers (`engine`); where it is chosen, as by encoders, the short would wait for the long. The oldest goes first, and
its equals join it. No one waits for company by default: a worker that gets free takes what is there. Only where one of
the last batches had company does it linger for a moment, as those who were just answered together are likely to ask
again together; they come back one after the other, some 10 ms apart, since the way to them and back is one process.

What belongs here: the queue between the event loop and the threads that generate. What does not: what is asked and
what becomes of it (`worker`), and how tokens are made (`engine`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

from ev_platform.decoding import Completion, Prompt, cut_at
from ev_platform.engine_base import BatchWriter, Engine
from ev_platform.errors import UserError
from ev_platform.serving import logs
from ev_platform.serving.schemas import ApiError, failure

# Of the time that the last batch with company took: to split a batch of eight costs more. And no more than a person
# hardly notices, whose company may have left for good.
_LINGER_SHARE = 0.1
_LONGEST_LINGER_S = 0.15

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer, and how it came to be.

    Attributes:
        completion: The answer; its times count from its turn on.
        queue_ms: From its arrival until its turn.
        first_token_ms: From its turn to its first token; None where answers come whole.
        batch_size: Prompts that were completed together with it, itself counted.
    """

    completion: Completion
    queue_ms: float
    first_token_ms: float | None
    batch_size: int


@dataclass(eq=False, slots=True)
class _Request:
    prompt: str
    max_new_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...]
    tell: Callable[[str], None] | None
    settle: Callable[[Generated | Exception], None]
    company: tuple[Any, ...]  # equal for those that may be completed together
    arrived: float = field(default_factory=time.perf_counter)
    is_cancelled: bool = False
    is_settled: bool = False
    queue_ms: float = 0.0
    batch_size: int = 0


class Batcher:
    """Completes prompts for one event loop, with as many threads as the engine has workers.

    The threads keep the engine alive until `retire` or `close`, and end with the last answer after it.

    Args:
        engine: Completes.
        max_batch: Prompts that are completed together at most.
        max_waiting: Prompts that may wait for their turn.
    """

    def __init__(self, engine: Engine, *, max_batch: int = 16, max_waiting: int = 64):
        self._engine = engine
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._queue: list[_Request] = []
        self._running: set[_Request] = set()
        self._n_workers = engine.n_workers if isinstance(engine, BatchWriter) else 1
        self._is_retired = False
        # Size and seconds of the last batch of each worker: one that was left over must not hide the others' company.
        self._last = deque([(1, 0.0)], maxlen=self._n_workers)
        for number in range(self._n_workers):
            threading.Thread(target=self._work, name=f"answer-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Prompts that wait for their turn."""
        return len(self._queue)

    async def complete(
        self,
        prompt: str,
        *,
        n_tokens: int,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Generated:
        """Complete a rendered prompt when it is its turn; a task that is cancelled ends its generation.

        Args:
            prompt: Rendered.
            n_tokens: Its length, by the engine's count: counting takes too long for an event loop.
            max_new_tokens: Longest answer.
            temperature: 0 is greedy.
            seed: For a temperature above 0.
            stop: Texts that end the answer, and are not part of it.
            on_text: Called on the event loop with each new piece of the answer.

        Raises:
            ApiError: 503 (`overloaded`) where `max_waiting` prompts wait, or it takes no more; 500 where the engine
                failed, which the log tells of.
            UserError: If the prompt is too long for the engine.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Generated] = loop.create_future()
        request = _Request(
            prompt,
            max_new_tokens,
            temperature,
            seed,
            stop,
            partial(_call, loop, on_text) if on_text else None,
            partial(_call, loop, partial(_settle, future)),
            self._company(n_tokens, max_new_tokens, temperature, seed),
        )
        with self._changed:
            if self._is_retired:
                raise ApiError(503, "This version takes no more questions: try again.", "overloaded", None, 1)
            if len(self._queue) >= self._max_waiting:
                message = f"{len(self._queue)} questions are waiting already: try again in a second."
                raise ApiError(503, message, "overloaded", None, 1)
            self._queue.append(request)
            self._changed.notify()
        try:
            return await future
        finally:
            request.is_cancelled = True
            with self._changed:
                if request in self._queue:
                    self._queue.remove(request)
            # An error's frames hold it, and it holds the error.
            del future, request

    def retire(self) -> None:
        """Take no more; what was taken is answered."""
        with self._changed:
            self._is_retired = True
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more, drop what waits, and end what is being answered at its next token."""
        with self._changed:
            dropped, self._queue = self._queue, []
            running = list(self._running)
            self._is_retired = True
            self._changed.notify_all()
        for request in [*dropped, *running]:
            request.is_cancelled = True
            _finish(request, ApiError(503, "The server is stopping: try again.", "overloaded", None, 1))

    def _company(self, n_tokens: int, max_new_tokens: int, temperature: float, seed: int) -> tuple[Any, ...]:
        whole = () if isinstance(self._engine, BatchWriter) else (max_new_tokens,)
        return (n_tokens, temperature, seed if temperature > 0 else 0, *whole)

    def _work(self) -> None:
        while batch := self._take():
            started = time.perf_counter()
            self._answer(batch)
            with self._changed:
                self._running.difference_update(batch)
                self._last.append((len(batch), time.perf_counter() - started))
            # What was asked must not be held until the next batch.
            del batch

    def _take(self) -> list[_Request]:
        """Wait for the next batch; empty where no more will come."""
        with self._changed:
            while not self._queue:
                if self._is_retired:
                    return []
                self._changed.wait()
            self._linger()
            if not self._queue:
                return self._take()
            batch = self._equals()
            for request in batch:
                self._queue.remove(request)
            self._running.update(batch)
        now = time.perf_counter()
        for request in batch:
            request.queue_ms, request.batch_size = (now - request.arrived) * 1000, len(batch)
        return batch

    def _equals(self) -> list[_Request]:
        """Return the oldest and those that may join it, but no more than a worker's share of all."""
        share = ceil((len(self._queue) + len(self._running)) / self._n_workers)
        size = min(self._max_batch, share)
        return [request for request in self._queue if request.company == self._queue[0].company][:size]

    def _linger(self) -> None:
        size, seconds = max(self._last)
        until = time.perf_counter() + min(_LONGEST_LINGER_S, seconds * _LINGER_SHARE)
        while self._queue and len(self._equals()) < min(size, self._max_batch) and not self._is_retired:
            left = until - time.perf_counter()
            if left <= 0:
                break
            self._changed.wait(left)

    def _answer(self, batch: list[_Request]) -> None:
        try:
            self._complete(batch)
            return
        except Exception as error:
            if len(batch) == 1 or not isinstance(error, UserError):
                _fail(batch, error)
                return
        for request in batch:  # one of them is refused: which one, each learns alone
            if not request.is_cancelled:
                request.batch_size = 1
                self._answer([request])

    def _complete(self, batch: list[_Request]) -> None:
        if isinstance(self._engine, BatchWriter):
            self._engine.write([_prompt(it) for it in batch], temperature=batch[0].temperature, seed=batch[0].seed)
            return
        first = batch[0]
        completions = self._engine.generate(
            [request.prompt for request in batch],
            max_new_tokens=first.max_new_tokens,
            temperature=first.temperature,
            seed=first.seed,
        )
        for request, made in zip(batch, completions, strict=True):
            text, is_cut = cut_at(made.text, request.stop)
            text, reason = text.strip(), "stop" if is_cut else made.finish_reason
            whole = Completion(text, made.n_prompt_tokens, made.n_completion_tokens, made.latency_ms, reason)
            if request.tell and text:
                request.tell(text)
            _end(request, whole)


def _prompt(request: _Request) -> Prompt:
    return Prompt(
        request.prompt,
        request.max_new_tokens,
        request.stop,
        request.tell,
        partial(_end, request),
        lambda: request.is_cancelled,
    )


def _end(request: _Request, completion: Completion) -> None:
    _finish(request, Generated(completion, request.queue_ms, completion.first_token_ms, request.batch_size))


def _fail(batch: list[_Request], error: Exception) -> None:
    """Tell a batch of what happened, without the frames that it happened in, which hold the engine."""
    if not isinstance(error, UserError):
        logs.failure(_log, f"A batch of {len(batch)} answers", error)
    for request in batch:
        _finish(request, UserError(str(error)) if isinstance(error, UserError) else failure())


def _finish(request: _Request, outcome: Generated | Exception) -> None:
    if not request.is_settled:
        request.is_settled = True
        request.settle(outcome)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], value: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, value)
    except RuntimeError:  # the loop is closed: nobody waits any more
        _log.debug("An answer came after its event loop was closed.")


def _settle(future: asyncio.Future[Generated], outcome: Generated | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
