"""The models behind the application, as its routes ask them: chosen by name, within a time limit, for who still waits.

What does not belong here: HTTP's forms (`chat`, `tasks`, `sse`), and what answers (`exchange.Backend`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.types import Receive

from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask, Backend, Delta, Described, Found, Reply
from ev_platform.serving.observe import Seen
from ev_platform.serving.schemas import ApiError, failure

T = TypeVar("T")
Piece = Found | Delta | Reply

# Which types a name stands for does not change from one version to the next, and the rest is told by the way: asking
# a replica before each question would cost as much as the rest of the path.
_FRESH_S = 1.0
# A model keeps to the limit by itself; this is for one that does not answer at all.
_GRACE_S = 5.0
_ROUTES = {
    "open_book_qa": "/v1/answers",
    "closed_book_qa": "/v1/answers",
    "classification": "/v1/classify",
    "extractive_qa": "/v1/extract",
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a request asks.

    Attributes:
        request_id: Names the request.
        served: What stands behind the name, as of a second ago at most.
        version: The version that it asked for by number; None where any will do.
    """

    request_id: str
    served: Described
    version: str | None

    def ask(self, question: str, **options: Any) -> Ask:
        """Return the question as the model gets it."""
        return Ask(self.request_id, question, version=self.version, **options)


class Models:
    """Every served model, by the names that a request may use.

    Args:
        backend: What answers.
        config: Limits.
    """

    def __init__(self, backend: Backend, config: ServingConfig):
        self._backend = backend
        self._limit_s = config.request_timeout_s + _GRACE_S
        self._known: dict[str, tuple[float, Described]] = {}

    async def describe(self) -> dict[str, Described | ApiError]:
        """Ask each model what it is now; a refusal stands for one that does not answer."""

        async def ask(name: str) -> Described | ApiError:
            try:
                async with asyncio.timeout(_GRACE_S):
                    return await self._backend.describe(name)
            except ApiError as error:
                return error
            except TimeoutError:
                return ApiError(503, f"{name} does not answer: try again in a moment.", "not_ready", retry_after_s=1)

        names = list(self._backend.models)
        return dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))

    async def choose(self, request: Request, asked: str | None, route: str | None = None) -> Chosen:
        """Return what a request's `model` stands for.

        Args:
            request: The request.
            asked: The field.
            route: The route that was asked; None where any task type will do.

        Raises:
            ApiError: 404 if it stands for none, 400 if its type is asked by another route.
        """
        seen = seen_of(request)
        seen.model = asked
        name, version = await self._resolve(asked)
        served = await self._describe(name)
        seen.task = served.task
        right = _ROUTES[served.task_type]
        if route not in (None, right):
            raise ApiError(
                400, f"{name} is of the type {served.task_type}: ask it by {right}.", "wrong_task_type", "model"
            )
        return Chosen(request.state.request_id, served, version)

    async def _resolve(self, asked: str | None) -> tuple[str, str | None]:
        names = self._backend.models
        if asked is None:
            return names[0], None
        if asked in names:
            return asked, None
        task, _, number = asked.rpartition("@")
        if number.isdecimal():
            for name in names:
                if name.partition("@")[0] == task and (await self._describe(name)).model_version == asked:
                    return name, asked
        elif len(names) == 1 and asked == (names[0].partition("@")[2] or "champion"):
            return names[0], None
        raise ApiError(404, f"That model is not served here: ask for {' or '.join(names)}.", "model_not_found", "model")

    async def _describe(self, name: str) -> Described:
        known = self._known.get(name)
        if known is None or time.monotonic() - known[0] > _FRESH_S:
            known = self._known[name] = time.monotonic(), await self._backend.describe(name)
        return known[1]

    async def answer(self, request: Request, chosen: Chosen, ask: Ask) -> Reply:
        """Answer, unless the client goes away before.

        Raises:
            ApiError: As the model refuses; 504 after the limit, 499 where nobody waits any more.
        """
        seen_of(request).question = ask.question
        answering = asyncio.ensure_future(self._backend.answer(chosen.served.model, ask))
        reply = await _unless_gone(request.receive, answering, self._limit_s)
        seen_of(request).reply = reply
        return reply

    async def stream(self, request: Request, chosen: Chosen, ask: Ask) -> tuple[Found, Pieces]:
        """Begin an answer that comes piece by piece; return what it is made from, and the pieces that follow.

        Raises:
            ApiError: As `answer`, as long as nothing has come.
        """
        seen = seen_of(request)
        seen.question, seen.is_streamed = ask.question, True
        pieces = Pieces(self._backend.stream(chosen.served.model, ask), self._limit_s)
        try:
            first = await _unless_gone(request.receive, asyncio.ensure_future(pieces.next()), self._limit_s)
            if not isinstance(first, Found):
                raise TypeError(f"A stream began with {type(first).__name__}.")
        except BaseException:
            pieces.close()
            raise
        return first, pieces


def seen_of(request: Request) -> Seen:
    """Return what a route tells the log of its request."""
    return request.state.seen


class Pieces:
    """A streamed answer under way. It is read by a task of its own, which alone waits for the model.

    Args:
        stream: Where the pieces come from.
        limit_s: Longest time for all of them.
    """

    def __init__(self, stream: object, limit_s: float):
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._deadline = asyncio.get_running_loop().time() + limit_s
        self._reading = asyncio.create_task(self._read(cast("AsyncGenerator[Piece]", stream)))

    async def _read(self, stream: AsyncGenerator[Piece]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    self._arrived.put_nowait(piece)
        except Exception as error:
            self._arrived.put_nowait(error)
        else:
            self._arrived.put_nowait(failure())  # for a stream that ends without its reply; else nobody reads it

    async def next(self, patience_s: float | None = None) -> Piece | None:
        """Return the next piece; None where none has come for so many seconds.

        Raises:
            ApiError: 504 after the limit.
            Exception: Whatever ended the stream.
        """
        loop = asyncio.get_running_loop()
        until = self._deadline if patience_s is None else min(self._deadline, loop.time() + patience_s)
        try:
            async with asyncio.timeout_at(until):
                piece = await self._arrived.get()
        except TimeoutError:
            if loop.time() < self._deadline:
                return None
            raise _too_late() from None
        if isinstance(piece, Exception):
            try:
                raise piece
            finally:
                del piece  # this frame is in its traceback: they would hold each other
        return piece

    def close(self) -> None:
        """Stop the generation, if it is not at its end."""
        self._reading.cancel()


async def _unless_gone(receive: Receive, answering: asyncio.Future[T], limit_s: float) -> T:
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answering, leaving}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        # Nobody reads it; the log of requests tells it apart from a fault by its status.
        raise ApiError(499, "The client went away.", "client_gone") if leaving.done() else _too_late()
    finally:
        answering.cancel()
        leaving.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_late() -> ApiError:
    return ApiError(504, "No answer within the time limit: try again later.", "timeout")
