"""The models behind the application, as its routes ask them: chosen by name, and for as long as somebody waits.

What does not belong here: HTTP's forms (`chat`, `tasks`, `sse`), and what answers, and in which time
(`exchange.Backend`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.types import Receive

from ev_platform.serving.exchange import Ask, Backend, Delta, Described, Found, Reply
from ev_platform.serving.observe import Seen
from ev_platform.serving.schemas import ApiError, failure

T = TypeVar("T")
Piece = Found | Delta | Reply

# Longest time for a model to say what it is; one that answers at all does so within milliseconds.
_DESCRIBE_S = 5.0
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
        served: What stands behind the name.
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
    """

    def __init__(self, backend: Backend):
        self._backend = backend

    async def describe(self) -> dict[str, Described | ApiError]:
        """Ask each model what it is now; a refusal stands for one that does not answer soon."""
        names = list(self._backend.models)
        return dict(zip(names, await asyncio.gather(*map(self._describe, names)), strict=True))

    async def _describe(self, name: str) -> Described | ApiError:
        try:
            async with asyncio.timeout(_DESCRIBE_S):
                return await self._backend.describe(name)
        except ApiError as error:
            return error
        except TimeoutError:
            return ApiError(503, f"{name} does not answer: try again in a moment.", "unavailable", retry_after_s=5)

    async def find(self, asked: str) -> Described:
        """Return what stands behind a name that a request may use.

        Raises:
            ApiError: 404 if nothing does, 503 if it does not answer.
        """
        name, _ = await self._resolve(asked)
        return await self._backend.describe(name)

    async def choose(self, request: Request, asked: str | None, route: str | None = None) -> Chosen:
        """Return what a request's `model` stands for.

        Args:
            request: The request.
            asked: The field.
            route: The route that was asked; None where any task type will do.

        Raises:
            ApiError: 404 if it stands for none, 400 if its type is asked by another route, 503 if it does not answer.
        """
        seen = seen_of(request)
        name, version = await self._resolve(asked)
        seen.model = asked  # not before: of a name that is none, the log would keep whatever it says
        served = await self._backend.describe(name)  # which waits where a replica is being replaced
        seen.task = served.task
        right = _ROUTES[served.task_type]
        if route not in (None, right):
            raise ApiError(
                400, f"{name} is of the type {served.task_type}: ask it by {right}.", "wrong_task_type", "model"
            )
        return Chosen(request.state.request_id, served, version)

    async def _resolve(self, asked: str | None) -> tuple[str, str | None]:
        """Return the served name of a request's `model`, and the version if it names one."""
        names = self._backend.models
        if asked is None:
            return names[0], None
        if asked in names:
            return asked, None
        task, _, number = asked.rpartition("@")
        if number.isdecimal():
            for name in names:
                if name.partition("@")[0] == task and (await self._backend.describe(name)).model_version == asked:
                    return name, asked
        elif len(names) == 1 and asked == (names[0].partition("@")[2] or "champion"):
            return names[0], None
        raise ApiError(404, f"That model is not served here: ask for {' or '.join(names)}.", "model_not_found", "model")

    async def answer(self, request: Request, chosen: Chosen, ask: Ask) -> Reply:
        """Answer, unless the client goes away before.

        Raises:
            ApiError: As the model refuses; 499 where nobody waits any more.
        """
        seen = seen_of(request)
        seen.question = ask.question
        answering = asyncio.ensure_future(self._backend.answer(chosen.served.model, ask))
        seen.reply = await _unless_gone(request.receive, answering)
        return seen.reply

    async def stream(self, request: Request, chosen: Chosen, ask: Ask) -> tuple[Found, Pieces]:
        """Begin an answer that comes piece by piece; return what it is made from, and the pieces that follow.

        Raises:
            ApiError: As `answer`, as long as nothing has come.
        """
        seen = seen_of(request)
        seen.question, seen.is_streamed = ask.question, True
        pieces = Pieces(self._backend.stream(chosen.served.model, ask))
        try:
            first = await _unless_gone(request.receive, asyncio.ensure_future(pieces.next()))
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
    """

    def __init__(self, stream: object):
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read(cast("AsyncGenerator[Piece]", stream)))

    async def _read(self, stream: AsyncGenerator[Piece]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    self._arrived.put_nowait(piece)
        except asyncio.CancelledError:
            self._arrived.put_nowait(failure())  # by whom else than `close`, after which nobody reads it, is not known
            raise
        except Exception as error:
            self._arrived.put_nowait(error)
        else:
            self._arrived.put_nowait(failure())  # for a stream that ends without its reply; else nobody reads it

    async def next(self, patience_s: float | None = None) -> Piece | None:
        """Return the next piece; None where none has come for so many seconds.

        Raises:
            Exception: Whatever ended the stream.
        """
        try:
            async with asyncio.timeout(patience_s):
                piece = await self._arrived.get()
        except TimeoutError:
            return None
        if isinstance(piece, Exception):
            try:
                raise piece
            finally:
                del piece  # this frame is in its traceback: they would hold each other
        return piece

    def close(self) -> None:
        """Stop the generation, if it is not at its end."""
        self._reading.cancel()


async def _unless_gone(receive: Receive, answering: asyncio.Future[T]) -> T:
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        # Nobody reads it; the log of requests tells it apart from a fault by its status.
        raise ApiError(499, "The client went away.", "client_left")
    finally:
        answering.cancel()
        leaving.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
