"""OpenAI's chat completions: one question, whole or in chunks.

What does not belong here: which model answers and for how long (`models`), the bodies' fields (`schemas`, `replies`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, Response

from ev_platform.serving.described import CHAT_STREAM, refusals
from ev_platform.serving.exchange import Delta, Found, Reply
from ev_platform.serving.models import Models, Piece
from ev_platform.serving.replies import AnswerMessage, ChatResponse, Choice, source, usage
from ev_platform.serving.schemas import ChatRequest
from ev_platform.serving.sse import EventStream, event

CHAT_DOC = """Answers the one user message: a question, or a text to label.

The prompt is exactly the one the model was evaluated with: the task's instructions, the passages found for the
question if the model answers from passages (they are the answer's `sources`), the message. So a request holds one
message of the role `user`; system messages and earlier turns are refused with 400 rather than ignored, and so is every
option that would change the answer and is not supported.
`max_tokens` is the evaluated length by default; more than that is refused with 400. Fields that cannot change the
answer (`user`, `metadata`) are ignored.

With `stream` the answer comes as OpenAI's chunks; the last one with a choice holds `finish_reason` and `sources`. A
fault after the first chunk comes as data with `error`, and ends the stream without `[DONE]`."""


def add_chat(app: FastAPI, models: Models, keyed: list[Any]) -> None:
    """Add the route of chat completions.

    Args:
        app: The application.
        models: What is asked.
        keyed: Tells clients that a key is needed.
    """

    @app.post(
        "/v1/chat/completions",
        tags=["OpenAI"],
        summary="Answer in OpenAI's form",
        dependencies=keyed,
        description=CHAT_DOC,
        response_model=ChatResponse,
        responses=CHAT_STREAM | refusals(400, 404, 422, 504),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> ChatResponse | Response:
        body.check()
        chosen = await models.choose(request, body.model)
        ask = chosen.ask(body.messages[0].content, **body.options())
        head = {"id": f"chatcmpl-{ask.request_id}", "created": int(time.time())}
        if body.stream:
            found, pieces = await models.stream(request, chosen, ask)
            is_usage_asked = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(request, found, pieces, _Chunks(head, found.model_version, is_usage_asked))
        reply = await models.answer(request, chosen, ask)
        return ChatResponse(
            **head,
            model=reply.model_version,
            choices=[Choice(message=AnswerMessage(content=reply.text), finish_reason=reply.finish_reason)],
            usage=usage(reply),
            sources=[source(citation) for citation in reply.citations],
        )


class _Chunks:
    """Makes the chunks of an answer, piece by piece."""

    def __init__(self, head: dict[str, Any], model_version: str, is_usage_asked: bool):
        self._head = {**head, "object": "chat.completion.chunk", "model": model_version}
        if is_usage_asked:
            self._head["usage"] = None  # until the last chunk
        self._is_usage_asked = is_usage_asked

    def __call__(self, piece: Piece) -> Iterator[bytes]:
        if isinstance(piece, Found):
            yield self._chunk({"role": "assistant", "content": ""})
        elif isinstance(piece, Delta):
            yield self._chunk({"content": piece.text})
        else:
            yield from self._end(piece)

    def _end(self, reply: Reply) -> Iterator[bytes]:
        sources = [source(citation).model_dump(mode="json") for citation in reply.citations]
        yield self._chunk({}, reply.finish_reason, sources=sources)
        if self._is_usage_asked:
            yield _data({**self._head, "choices": [], "usage": usage(reply).model_dump()})
        yield event("[DONE]")

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _data({**self._head, "choices": [choice], **more})


def _data(chunk: dict[str, Any]) -> bytes:
    return event(json.dumps(chunk, ensure_ascii=False))
