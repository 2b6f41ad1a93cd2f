"""The routes of the task types: answers with citations, labels, spans of a passage.

What does not belong here: which model answers and for how long (`models`), the bodies' fields (`schemas`, `replies`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from ev_platform.serving.described import ANSWER_STREAM, refusals
from ev_platform.serving.exchange import Delta, Found, Reply
from ev_platform.serving.models import Chosen, Models, Piece
from ev_platform.serving.replies import (
    AnswerResponse,
    Citation,
    ClassifyResponse,
    ExtractResponse,
    numbered,
    timings,
    usage,
)
from ev_platform.serving.schemas import AnswerRequest, ClassifyRequest, ExtractRequest
from ev_platform.serving.sse import EventStream, event

ANSWERS_DOC = """Answers a question from the passages found for it, and names them.

Where no passage is near enough to the question, it says so (`abstained`) and generates nothing.

With `stream` the answer comes as events: `citations` with `{id, model, citations}` as soon as they are found, `delta`
with `{text}` for each piece, `done` with the whole answer as below; after a fault `error` with `{error}` instead of it.
The pieces joined are the answer, but for white space at its ends."""
EXTRACT_DOC = """Answers a question in the words of the passage that it brings.

`start` and `end` are where those words first stand in the passage. Where they stand there more than once
(`occurrences`), the model may have read them at a later place."""


class _Begin(BaseModel):
    id: str
    model: str
    citations: list[Citation]


class _Text(BaseModel):
    text: str


def add_tasks(app: FastAPI, models: Models, keyed: list[Any]) -> None:
    """Add the routes of the task types.

    Args:
        app: The application.
        models: What is asked.
        keyed: Tells clients that a key is needed.
    """

    @app.post(
        "/v1/answers",
        tags=["Tasks"],
        summary="Answer with citations",
        dependencies=keyed,
        description=ANSWERS_DOC,
        response_model=AnswerResponse,
        responses=ANSWER_STREAM | refusals(400, 404, 422, 504),
    )
    async def answers(body: AnswerRequest, request: Request) -> AnswerResponse | Response:
        started = time.perf_counter()
        chosen = await models.choose(request, body.model, "/v1/answers")
        ask = chosen.ask(body.question, **body.options())

        def whole(reply: Reply) -> AnswerResponse:
            return AnswerResponse(
                **_head(chosen, reply, started),
                answer=reply.text,
                abstained=reply.is_abstention,
                citations=numbered(reply.citations),
            )

        def events(piece: Piece) -> Iterator[bytes]:
            if isinstance(piece, Found):
                begin = _Begin(id=ask.request_id, model=piece.model_version, citations=numbered(piece.citations))
                yield event(begin, "citations")
            elif isinstance(piece, Delta):
                yield event(_Text(text=piece.text), "delta")
            else:
                yield event(whole(piece), "done")

        if body.stream:
            found, pieces = await models.stream(request, chosen, ask)
            return EventStream(request, found, pieces, events, "error")
        return whole(await models.answer(request, chosen, ask))

    @app.post(
        "/v1/classify",
        tags=["Tasks"],
        summary="Label a text",
        dependencies=keyed,
        responses=refusals(400, 404, 422, 504),
    )
    async def classify(body: ClassifyRequest, request: Request) -> ClassifyResponse:
        """Give a text one of the model's labels."""
        started = time.perf_counter()
        chosen = await models.choose(request, body.model, "/v1/classify")
        reply = await models.answer(request, chosen, chosen.ask(body.text))
        return ClassifyResponse(**_head(chosen, reply, started), label=reply.label, text=reply.text)

    @app.post(
        "/v1/extract",
        tags=["Tasks"],
        summary="Find the answer in a passage",
        dependencies=keyed,
        description=EXTRACT_DOC,
        responses=refusals(400, 404, 422, 504),
    )
    async def extract(body: ExtractRequest, request: Request) -> ExtractResponse:
        started = time.perf_counter()
        chosen = await models.choose(request, body.model, "/v1/extract")
        reply = await models.answer(request, chosen, chosen.ask(body.question, context=body.context))
        n_places = 0 if reply.is_abstention or not reply.text else body.context.count(reply.text)
        start = body.context.find(reply.text) if n_places else None
        return ExtractResponse(
            **_head(chosen, reply, started),
            answer=reply.text,
            abstained=reply.is_abstention,
            start=start,
            end=None if start is None else start + len(reply.text),
            occurrences=n_places,
        )


def _head(chosen: Chosen, reply: Reply, started: float) -> dict[str, Any]:
    return {
        "id": chosen.request_id,
        "created": int(time.time()),
        "model": reply.model_version,
        "usage": usage(reply),
        "timings": timings(reply, (time.perf_counter() - started) * 1000),
    }
