"""The OpenAPI document: what every route answers and refuses, and what is served now.

What does not belong here: the bodies' fields (`schemas`, `replies`), which FastAPI describes by itself.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ev_platform.serving.exchange import Described
from ev_platform.serving.gate import CLOSED_STATUSES, OPEN_STATUSES, error_response
from ev_platform.serving.schemas import ApiError, ErrorResponse

_REFUSALS = {
    400: (
        "The request asks for what this server or this model does not do, or is not JSON.",
        ApiError(400, "n is not supported and would change the answer: leave it out.", "unsupported", "n"),
    ),
    401: (
        "No live key.",
        ApiError(401, "No valid API key: send the header 'Authorization: Bearer ev_...'.", "invalid_api_key"),
    ),
    403: (
        "The key lacks the scope of this path.",
        ApiError(403, "This key lacks the scope query: make one that has it.", "missing_scope"),
    ),
    404: (
        "What it names is not here.",
        ApiError(404, "That model is not served here: ask for ev_charging.", "model_not_found", "model"),
    ),
    405: ("The path has no such method.", ApiError(405, "Method Not Allowed.", "method_not_allowed")),
    408: (
        "The body came too slowly.",
        ApiError(408, "The body did not arrive within 10 s: send it again, at once.", "request_timeout"),
    ),
    413: ("The body is too large.", ApiError(413, "The body is larger than 131072 bytes.", "too_large")),
    415: (
        "The body is compressed.",
        ApiError(415, "A body with a Content-Encoding is not read: send it as it is.", "unsupported_content_encoding"),
    ),
    422: (
        "A field is missing or is not what it must be.",
        ApiError(422, "question: must not be blank", "invalid_value", "question"),
    ),
    429: (
        "The key's limit of requests, of answers at once, or of tokens a day is used up.",
        ApiError(429, "This key may ask 60 times a minute: try again in 4 seconds.", "rate_limit_exceeded"),
    ),
    500: ("A fault of the server.", ApiError(500, "The server failed to answer.", "internal_error")),
    503: (
        "Too many questions wait, or the model does not answer now.",
        ApiError(503, "64 questions are waiting already: try again in a second.", "overloaded"),
    ),
    504: (
        "No answer within the time limit.",
        ApiError(504, "No answer within 120 seconds: try again later.", "timeout"),
    ),
}
_ALWAYS = (405, 500)

_CHAT_EVENTS = """\
data: {"id": "chatcmpl-1", "created": 1795251600, "object": "chat.completion.chunk", "model": "ev_charging@3", \
"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}

data: {"id": "chatcmpl-1", "created": 1795251600, "object": "chat.completion.chunk", "model": "ev_charging@3", \
"choices": [{"index": 0, "delta": {"content": "Every three months."}, "finish_reason": null}]}

data: {"id": "chatcmpl-1", "created": 1795251600, "object": "chat.completion.chunk", "model": "ev_charging@3", \
"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "sources": []}

data: [DONE]

"""
_ANSWER_EVENTS = """\
event: citations
data: {"id":"1","model":"ev_charging@3","citations":[]}

event: delta
data: {"text":"Every three months."}

event: done
data: {"id":"1","created":1795251600,"model":"ev_charging@3","answer":"Every three months.","abstained":false,\
"citations":[],"usage":{"prompt_tokens":231,"completion_tokens":9,"total_tokens":240},"timings":{"queue_ms":0.4,\
"retrieve_ms":8.1,"first_token_ms":210.3,"generate_ms":780.2,"total_ms":791.5}}

"""
_ERROR = {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}
_REQUEST_ID = {
    "description": "Names the request in the server's log and in feedback; the client's own where it sent one.",
    "schema": {"type": "string"},
}
_RETRY_AFTER = {"description": "Seconds after which it is worth asking again.", "schema": {"type": "integer"}}
_ALLOW = {"description": "The methods that the path has.", "schema": {"type": "string"}}
_CHALLENGE = {"description": "`Bearer`.", "schema": {"type": "string"}}


def refusals(*statuses: int, is_open: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a route, as FastAPI takes them.

    Args:
        statuses: Those of the route itself; what any route may answer is added.
        is_open: Whether it needs no key.
    """
    every = sorted({*statuses, *_ALWAYS, *(OPEN_STATUSES if is_open else CLOSED_STATUSES)})
    return {status: {"model": ErrorResponse, "description": _REFUSALS[status][0]} for status in every}


def _stream(example: str) -> dict[int | str, dict[str, Any]]:
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": "The answer: as JSON, or with `stream` as server-sent events.", "content": content}}


CHAT_STREAM = _stream(_CHAT_EVENTS)
ANSWER_STREAM = _stream(_ANSWER_EVENTS)


def describe(app: FastAPI, served: Mapping[str, Described | ApiError]) -> dict[str, Any]:
    """Return the document, which names what is served now."""
    if app.openapi_schema is None:
        app.openapi_schema = _routes(app)
    document = copy.deepcopy(app.openapi_schema)
    document["info"]["description"] += "\n\n" + "\n\n".join(_model(*item) for item in served.items())
    return document


def _routes(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="ev-platform",
        version=version("ev-platform"),
        description="Small models that answer from the passages of their domain. Every route but the open ones takes a "
        "key made with `ev-platform keys create NAME`, sent as `Authorization: Bearer ev_...`. Every refusal, of "
        "unknown paths (404) too, has OpenAI's form `{error: {message, type, code, param}}`.",
        routes=app.routes,
    )
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                headers = answer.setdefault("headers", {})
                headers["x-request-id"] = _REQUEST_ID
                if int(status) in _REFUSALS:
                    # Not before: FastAPI leaves out what is null, and gives refusals the media type of the answer.
                    example = json.loads(bytes(error_response(_REFUSALS[int(status)][1]).body))
                    answer["content"] = {"application/json": {"schema": _ERROR, "example": example}}
                if status in ("429", "503"):
                    headers["Retry-After"] = _RETRY_AFTER
                elif status == "405":
                    headers["Allow"] = _ALLOW
                elif status == "401":
                    headers["WWW-Authenticate"] = _CHALLENGE
    return document


def _model(name: str, served: Described | ApiError) -> str:
    if isinstance(served, ApiError):
        return f"`{name}` does not answer now."
    told = (
        f"`{name}` is {served.model_version} ({served.task_type}). The cap of its "
        f"`max_tokens` is {served.max_new_tokens}, prompt and answer together have room for {served.window} tokens."
    )
    return told + (f" Its labels: {', '.join(served.labels)}." if served.labels else "")
