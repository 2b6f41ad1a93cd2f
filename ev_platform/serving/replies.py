"""What the HTTP API answers: the bodies of answers, and how they are made from what a model replied.

What does not belong here: requests and refusals (`schemas`), and how the pieces of a streamed answer travel (`sse`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ev_platform.serving import exchange

_ID = "0d2e5c1a-7f3b-4a58-9d39-6f3f0f6e1c55"
_SOURCE = {
    "chunk_id": "chk_5d1f0c7a9b3e2468",
    "title": "Operations manual",
    "heading": "Operations manual > RCD",
    "url": "https://example.org/operations-manual.pdf",
    "page": 7,
    "licence": "CC-BY-SA-4.0",
    "publisher": "Example Works",
    "fetched_at": "2026-11-03T09:00:00Z",
    "score": 0.71,
    "text": "Test the RCD every three months.",
}
_USAGE = {"prompt_tokens": 231, "completion_tokens": 9, "total_tokens": 240}
_TIMINGS = {"queue_ms": 0.4, "retrieve_ms": 8.1, "first_token_ms": 210.3, "generate_ms": 780.2, "total_ms": 791.5}
_ANSWER = "Every three months."


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Health(BaseModel):
    """Body of `/healthz`."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Body of `/readyz`: the exact version behind each name."""

    model_config = _example(status="ready", models={"ev_charging": "ev_charging@3"})

    status: Literal["ready"] = "ready"
    models: dict[str, str]


class ModelCard(BaseModel):
    """One entry of the model list."""

    id: str = Field(description="Name to ask for it by.", examples=["ev_charging"])
    object: Literal["model"] = "model"
    created: int = Field(description="When this server loaded it, Unix seconds.", examples=[1795251600])
    owned_by: Literal["ev-platform"] = "ev-platform"
    version: str = Field(description="What stands behind the name now.", examples=["ev_charging@3"])
    task: str = Field(examples=["ev_charging"])
    task_type: str = Field(examples=["open_book_qa"])
    labels: list[str] = Field(description="Of a classification task; empty elsewhere.", examples=[[]])


class ModelList(BaseModel):
    """Body of `/v1/models`: what answers now, the one for requests that name none first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Source(BaseModel):
    """One passage that the model was given, and where it comes from."""

    chunk_id: str
    title: str | None
    heading: str = Field(description="Headings that the passage stands under, outermost first.")
    url: str
    page: int | None = Field(description="1-based, for PDF files.")
    licence: str
    publisher: str
    fetched_at: datetime
    score: float = Field(description="Cosine of question and passage, -1 to 1.")
    text: str = Field(description="The passage.")


class Citation(Source):
    """One passage that the model was given, numbered from 1, best first."""

    number: int = Field(ge=1)


class Usage(BaseModel):
    """Tokens of the prompt, passages included, and of the answer; 0 where nothing was generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(BaseModel):
    """Milliseconds."""

    queue_ms: float = Field(description="From arrival until its turn.")
    retrieve_ms: float = Field(description="Finding passages.")
    first_token_ms: float | None = Field(description="From its turn to the first token, where anybody looked.")
    generate_ms: float = Field(description="From its turn to the last token.")
    total_ms: float = Field(description="From the parsed request to the end of the answer.")


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one choice."""

    index: int = 0
    message: AnswerMessage
    finish_reason: str = Field(
        description="`length` where the answer was cut at max_tokens.", json_schema_extra={"enum": ["stop", "length"]}
    )


class ChatResponse(BaseModel):
    """An answer; `sources` is this server's addition to OpenAI's form."""

    model_config = _example(
        id=f"chatcmpl-{_ID}",
        object="chat.completion",
        created=1795251600,
        model="ev_charging@3",
        choices=[{"index": 0, "message": {"role": "assistant", "content": _ANSWER}, "finish_reason": "stop"}],
        usage=_USAGE,
        sources=[_SOURCE],
    )

    id: str = Field(description="`chatcmpl-` and the request id.")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix seconds.")
    model: str = Field(description="The exact version that answered.")
    choices: list[Choice]
    usage: Usage
    sources: list[Source]


class _Told(BaseModel):
    """What the answers of this server's own routes have in common."""

    id: str = Field(description="The request id, to be given with feedback.")
    created: int = Field(description="Unix seconds.")
    model: str = Field(description="The exact version that answered.")
    usage: Usage
    timings: Timings


class AnswerResponse(_Told):
    """An answer with the passages that it was made from."""

    model_config = _example(
        id=_ID,
        created=1795251600,
        model="ev_charging@3",
        answer=_ANSWER,
        abstained=False,
        citations=[{"number": 1, **_SOURCE}],
        usage=_USAGE,
        timings=_TIMINGS,
    )

    answer: str
    abstained: bool = Field(description="Whether it says that the passages do not hold the answer.")
    citations: list[Citation] = Field(description="Also where it abstains.")


class ClassifyResponse(_Told):
    """A label."""

    model_config = _example(
        id=_ID,
        created=1795251600,
        model="banking77@2",
        label="card_arrival",
        text="card_arrival",
        usage={"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12},
        timings=_TIMINGS,
    )

    label: str | None = Field(description="One of the model's labels; null where what it wrote is none of them.")
    text: str = Field(description="What it wrote.")


class ExtractResponse(_Told):
    """A span of the passage."""

    model_config = _example(
        id=_ID,
        created=1795251600,
        model="squad@1",
        answer="every three months",
        abstained=False,
        start=43,
        end=61,
        occurrences=1,
        usage={"prompt_tokens": 31, "completion_tokens": 0, "total_tokens": 31},
        timings=_TIMINGS,
    )

    answer: str
    abstained: bool = Field(description="Whether it says that the passage does not hold the answer.")
    start: int | None = Field(
        description="Where the answer first stands in the context, in characters; null where it does not stand there."
    )
    end: int | None = Field(description="Where it ends: context[start:end] is the answer.")
    occurrences: int = Field(
        description="How often the answer stands in the context: the model may have read a later one."
    )


class FeedbackResponse(BaseModel):
    """Under which id the feedback is kept."""

    id: str = Field(examples=["fdb_3f0c9d1e2a4b5c6d"])


def card(served: exchange.Described) -> ModelCard:
    """Return a served model as it is listed."""
    return ModelCard(
        id=served.model,
        created=served.loaded_at,
        version=served.model_version,
        task=served.task,
        task_type=served.task_type,
        labels=list(served.labels),
    )


def usage(reply: exchange.Reply) -> Usage:
    """Return the tokens of a reply."""
    return Usage(
        prompt_tokens=reply.n_prompt_tokens,
        completion_tokens=reply.n_completion_tokens,
        total_tokens=reply.n_prompt_tokens + reply.n_completion_tokens,
    )


def timings(reply: exchange.Reply, total_ms: float) -> Timings:
    """Return where the time of a reply went, to the microsecond."""
    first = reply.first_token_ms
    return Timings(
        queue_ms=round(reply.queue_ms, 3),
        retrieve_ms=round(reply.retrieve_ms, 3),
        first_token_ms=None if first is None else round(first, 3),
        generate_ms=round(reply.generate_ms, 3),
        total_ms=round(total_ms, 3),
    )


def source(citation: exchange.Citation) -> Source:
    """Return a passage as it is told."""
    chunk = citation.chunk
    return Source(
        chunk_id=chunk.chunk_id,
        title=chunk.title,
        heading=chunk.heading_path,
        url=chunk.url,
        page=chunk.page,
        licence=chunk.licence,
        publisher=chunk.publisher,
        fetched_at=chunk.fetched_at,
        score=citation.score,
        text=chunk.text,
    )


def numbered(citations: tuple[exchange.Citation, ...]) -> list[Citation]:
    """Return the passages of an answer as they are told."""
    return [Citation(number=n, **source(citation).model_dump()) for n, citation in enumerate(citations, 1)]
