"""Answers that are sent piece by piece, as server-sent events (WHATWG HTML, section 9.2).

What does not belong here: what an event says (`chat`, `tasks`), and where the pieces come from (`models`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ev_platform.serving.exchange import Delta, Found, Reply
from ev_platform.serving.faults import refusal_of
from ev_platform.serving.gate import error_response
from ev_platform.serving.models import Piece, Pieces, seen_of

# Proxies close a line on which nothing comes for a minute or so.
SILENCE_S = 10.0
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is nginx's
_STILL_HERE = format_sse_event(comment="still at it")


def event(data: BaseModel | str, name: str | None = None) -> bytes:
    """Return an event as it is sent."""
    text = data if isinstance(data, str) else data.model_dump_json()
    return format_sse_event(data_str=text, event=name)


class EventStream(StreamingResponse):
    """An answer on its way. When it has ended, or the client is gone, so is the generation.

    Args:
        request: What it answers.
        first: What has come already.
        pieces: What follows.
        write: Makes the events of a piece.
        error_event: Name of the event that tells of a fault; None for data without a name.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        first: Found,
        pieces: Pieces,
        write: Callable[[Piece], Iterable[bytes]],
        error_event: str | None = None,
    ):
        super().__init__(self._events(first, write), headers=_HEADERS)
        self._request, self._pieces, self._error_event = request, pieces, error_event
        self._found, self._written = first, [""]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()
            self._tell_what_it_has()

    def _tell_what_it_has(self) -> None:
        """Let what a client has had of an answer that was cut be logged, and count for its quota."""
        seen = seen_of(self._request)
        if seen.reply is None:
            does_abstain = self._found.n_prompt_tokens == 0
            seen.reply = Reply(
                text="".join(self._written),
                finish_reason="cancelled",
                model_version=self._found.model_version,
                citations=self._found.citations,
                n_prompt_tokens=self._found.n_prompt_tokens,
                # A piece is a token, or a few that make a character.
                n_completion_tokens=0 if does_abstain else len(self._written) - 1,
                is_abstention=does_abstain,
            )

    async def _events(self, first: Found, write: Callable[[Piece], Iterable[bytes]]) -> AsyncIterator[bytes]:
        seen = seen_of(self._request)
        piece: Piece | None = first
        try:
            while True:
                if piece is None:
                    yield _STILL_HERE
                else:
                    if isinstance(piece, Reply):
                        seen.reply = piece
                    elif isinstance(piece, Delta):
                        self._written.append(piece.text)
                    for data in write(piece):
                        yield data
                    if isinstance(piece, Reply):
                        return
                piece = await self._pieces.next(SILENCE_S)
        except Exception as error:
            refusal = refusal_of(error, self._request.state.request_id)
            seen.error = refusal.code
            self._tell_what_it_has()  # with the last event the request is over
            yield event(bytes(error_response(refusal).body).decode(), self._error_event)
