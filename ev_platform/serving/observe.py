"""Sees every request from outside: how it ended and how long it took; tells the request log, the metrics and the logs.

`Observe` is the outermost of our middlewares. What only a route can know (the question, the reply) the route writes
into `Seen`, which lies in the request's state.

What does not belong here: how rows are kept (`journal`), what is counted (`metrics`), refusing (`gate`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ev_platform.records import ServedRequest
from ev_platform.serving import logs, metrics
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Reply
from ev_platform.serving.journal import Journal, text_hash
from ev_platform.storage import now

CLIENT_LEFT = 499  # nginx's number for it; HTTP has none, since nobody reads it
UNLOGGED = frozenset({"/metrics"})  # asked for by a machine every few seconds; it is counted like all others
# What the log takes over from a reply as it is; null where there is none.
_OF_REPLY = (
    "model_version",
    "is_abstention",
    "similarity",
    "n_prompt_tokens",
    "n_completion_tokens",
    "finish_reason",
    "batch_size",
    "queue_ms",
    "retrieve_ms",
    "first_token_ms",
    "generate_ms",
)


@dataclass(slots=True)
class Seen:
    """What a route has learned about its request, for the log.

    Attributes:
        task: Of the served model it is for; never a text of the client's, since it becomes a label.
        model: As the client asked for it; only what is the name of a served one, since it is kept as text.
        question: As the client asked it.
        is_streamed: Whether the answer is sent piece by piece.
        reply: The whole answer.
        error: Code of the refusal or failure.
    """

    task: str | None = None
    model: str | None = None
    question: str | None = None
    is_streamed: bool = False
    reply: Reply | None = None
    error: str | None = None


@dataclass(slots=True)
class _Course:
    """One request on its way."""

    seen: Seen
    asked_at: datetime
    started: float
    status: int | None = None
    is_over: bool = False
    is_left: bool = False
    state: dict[str, Any] = field(default_factory=dict)


class Observe:
    """ASGI middleware that writes down every request.

    The row is written before the last byte is handed over: a client that has its whole answer can rate it, and a
    process that dies then has it in the log.

    Args:
        app: What it observes.
        data_root: Where the request log lies.
        config: Whether texts are kept, and for how long.
    """

    def __init__(self, app: ASGIApp, data_root: Path, config: ServingConfig):
        self._app, self._data_root, self._config = app, data_root, config
        self._journal: Journal | None = None
        self._is_losing = False
        self._routes: frozenset[str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and write down what came of it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            await self._observe(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._open()  # what a dead server left is rolled now, and not with the first request
            elif message["type"].startswith("lifespan.shutdown") and self._journal is not None:
                journal, self._journal = self._journal, None
                await asyncio.to_thread(journal.close)
            await send(message)

        await self._app(scope, receive, closing)

    def _open(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(
                self._data_root,
                "requests",
                retention_days=self._config.retention_days,
                on_fault=lambda _: metrics.journal_fault("requests"),
            )
        return self._journal

    async def _observe(self, scope: Scope, receive: Receive, send: Send) -> None:
        course = _Course(Seen(), now(), time.perf_counter())
        course.state = scope["state"] = {**scope.get("state", {}), "seen": course.seen}
        metrics.begun()

        async def listening() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                course.is_left = True
            elif not message.get("more_body", False):
                course.started = time.perf_counter()  # a slow upload is the client's time
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                course.status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                self._write(scope, course)
            try:
                await send(message)
            except OSError:  # so the server refuses to send to a client that has left
                course.is_left = True
                raise

        try:
            await self._app(scope, listening, sending)
        except (asyncio.CancelledError, ClientDisconnect):  # so it stops what is done for one
            course.is_left = True
            raise
        except Exception as error:
            if not course.is_left:
                course.seen.error = course.seen.error or "internal_error"
                logs.fault("request failed", error, request_id=course.state.get("request_id"))
            raise
        finally:
            self._write(scope, course)

    def _write(self, scope: Scope, course: _Course) -> None:
        if course.is_over:
            return
        course.is_over = True
        seen, seconds = course.seen, time.perf_counter() - course.started
        status = CLIENT_LEFT if course.is_left else course.status or 500
        error = "client_left" if course.is_left else seen.error
        if error is None and status >= 400:
            error = f"http_{status}"
        route = self._route(scope)
        key, request_id = course.state.get("key"), course.state.get("request_id")
        metrics.answered(route, status, seen.task, seconds, error, seen.reply)
        if key is not None and route not in UNLOGGED:
            self._log(lambda: self._row(course, key.key_id, request_id or "", route, status, error, seconds))
        logs.request(
            request_id=request_id,
            key=key.key_id if key is not None else None,
            route=route,
            status=status,
            error=error,
            model=seen.reply.model_version if seen.reply else None,
            ms=round(seconds * 1000, 1),
            n_prompt_tokens=seen.reply.n_prompt_tokens if seen.reply else None,
            n_completion_tokens=seen.reply.n_completion_tokens if seen.reply else None,
        )

    def _row(
        self, course: _Course, key_id: str, request_id: str, route: str, status: int, error: str | None, seconds: float
    ) -> ServedRequest:
        seen, reply = course.seen, course.seen.reply
        question, question_hash = self._kept(seen.question)
        answer, answer_hash = self._kept(getattr(reply, "text", None))
        citations = reply.citations if reply else ()
        return ServedRequest(
            request_id=request_id,
            asked_at=course.asked_at,
            key_id=key_id,
            route=route,
            status=status,
            error=error,
            is_streamed=seen.is_streamed,
            task=seen.task,
            model=seen.model,
            question=question,
            question_hash=question_hash,
            answer=answer,
            answer_hash=answer_hash,
            chunk_ids=[citation.chunk.chunk_id for citation in citations],
            scores=[citation.score for citation in citations],
            total_ms=seconds * 1000,
            **{name: getattr(reply, name, None) for name in _OF_REPLY},
        )

    def _kept(self, text: str | None) -> tuple[str | None, str | None]:
        """Return what the log holds of a text: itself, if it is to be kept, and its hash."""
        if text is None:
            return None, None
        return text if self._config.request_text == "keep" else None, text_hash(self._data_root, text)

    def _log(self, row: Callable[[], ServedRequest]) -> None:
        try:
            self._open().add(row())
            self._is_losing = False
        except (OSError, ValueError) as error:
            # An answer is worth more than its row; a full disk would say so with every request.
            metrics.journal_lost("requests")
            if not self._is_losing:
                self._is_losing = True
                logs.fault("request log not written, rows are lost until it can be", error)

    def _route(self, scope: Scope) -> str:
        routes = scope["app"].routes if "app" in scope else ()
        if self._routes is None:
            self._routes = frozenset(r.path for r in routes if hasattr(r, "path") and not isinstance(r, Mount))
        path = scope["path"]
        if path in self._routes:
            return path
        if isinstance(matched := scope.get("route"), Route):  # of a path with a parameter, whose value is no label
            return matched.path
        return next((r.path for r in routes if isinstance(r, Mount) and path.startswith(f"{r.path}/")), "other")
