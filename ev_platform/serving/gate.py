"""What every request must pass before it reaches a route: a key, its scope and limits, a body of bounded size and time.

It stands before FastAPI, which reads and parses a body before any of its dependencies runs. Paths are closed unless
they are named here as open, and those that are not named at all do not exist.

What does not belong here: what keys are (`keys`), what they have used (`limits`), and refusals that need the parsed
body (`schemas`, `api`). A client that sends its headers slowly is the server's matter: the gate sees a request when its
headers are complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from pathlib import Path
from typing import Any, Literal

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ev_platform.errors import UserError
from ev_platform.serving import keys
from ev_platform.serving.journal import tokens_today
from ev_platform.serving.limits import FailedAttempts, Left, Limits
from ev_platform.serving.schemas import REQUEST_ID, ApiError, ErrorDetail, ErrorResponse

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
OPEN_FOLDER = "/static/"
# What a key needs for a path and all below it.
SCOPES: dict[str, keys.Scope] = {
    "/v1/chat/completions": "query",
    "/v1/answers": "query",
    "/v1/classify": "query",
    "/v1/extract": "query",
    "/v1/models": "query",
    "/v1/feedback": "feedback",
    "/metrics": "admin",
}
_ANSWERING = frozenset({"/v1/chat/completions", "/v1/answers", "/v1/classify", "/v1/extract"})
# What the gate itself answers: on an open path, and on one that needs a key.
OPEN_STATUSES = (400, 408, 413, 415)
CLOSED_STATUSES = (400, 401, 403, 408, 413, 415, 429, 503)

# The longest feedback, 18,000 characters, fits with each of them written as an escape of JSON.
MAX_BODY_BYTES = 128 * 1024
# A body of that size at 13 kB/s, a bad mobile connection. A longer wait would let few clients hold many requests open.
BODY_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware that lets a request pass, or answers why not in OpenAI's error form.

    It sets `request_id` and `key` of the request's state, the key as soon as it is verified, and charges the tokens of
    `seen.reply` (see `observe`) to the key when the answer has ended, however it ended.

    Args:
        app: What it protects.
        data_root: Where `keys.json` and the request log lie.
        body_timeout_s: Longest time for a body to arrive.
    """

    def __init__(self, app: ASGIApp, data_root: Path, body_timeout_s: float = BODY_TIMEOUT_S):
        self._app = app
        self._data_root = data_root
        self._body_timeout_s = body_timeout_s
        self._limits = Limits(tokens_today(data_root))
        self._failed = FailedAttempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the refusal, or pass the request on with its body read."""
        if scope["type"] == "http":
            with contextlib.ExitStack() as held:
                await self._handle(scope, receive, send, held)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, held: contextlib.ExitStack) -> None:
        added: dict[str, str] = {}
        send = _watched(send, added, held)
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        try:
            _identify(state, headers, added)
            _check_encoding(headers)
            path = scope["path"]
            if path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
                key = state["key"] = self._check_key(scope, headers)
                is_answering = _check_scope(path, key)
                left = held.enter_context(self._limits.admit(key, spends_tokens=is_answering))
                held.callback(self._charge, state)
                added.update(_ratelimit_headers(key, left))
            messages = await _read_body(headers, receive, self._body_timeout_s)
        except ApiError as error:
            if seen := state.get("seen"):
                seen.error = error.code
            await error_response(error)(scope, receive, send)
            return
        if messages[-1]["type"] == "http.disconnect":
            return  # nobody waits for an answer

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    def _check_key(self, scope: Scope, headers: Headers) -> keys.KeyInfo:
        sent = headers.getlist("authorization")
        if len(sent) > 1:
            raise ApiError(400, "The request has several Authorization headers: send one.", "invalid_header")
        scheme, _, presented = "".join(sent).partition(" ")
        try:
            key = keys.verify(self._data_root, presented.strip()) if scheme.lower() == "bearer" else None
        except UserError as error:
            _log.error("%s", error)
            raise ApiError(503, "The server cannot read its keys: tell whoever runs it.", "keys_unreadable") from None
        if key is not None:
            return key
        wait_s = self._failed.note((scope.get("client") or ("",))[0])
        if wait_s is not None:
            raise ApiError(
                429,
                f"Too many requests without a valid API key came from this address: send one, or wait {wait_s} s.",
                "rate_limit_exceeded",
                retry_after_s=wait_s,
            )
        raise ApiError(
            401,
            "No valid API key: send the header 'Authorization: Bearer ev_...' with a key that is neither expired nor "
            "revoked.",
            "invalid_api_key",
        )

    def _charge(self, state: dict[str, Any]) -> None:
        reply = getattr(state.get("seen"), "reply", None)
        if reply is not None and "key" in state:
            self._limits.charge(state["key"].key_id, reply.n_prompt_tokens + reply.n_completion_tokens)


def _identify(state: dict[str, Any], headers: Headers, added: dict[str, str]) -> None:
    """Set the request's id, which is told with the answer: the one that came with it, or a new one."""
    sent = headers.getlist("x-request-id")
    is_usable = len(sent) == 1 and re.fullmatch(REQUEST_ID, sent[0])
    added["x-request-id"] = state["request_id"] = sent[0] if is_usable else uuid.uuid4().hex
    if sent and not is_usable:
        raise bad_request_id()


def bad_request_id() -> ApiError:
    """Return what is told of a request id that cannot be one."""
    message = "The header x-request-id must be 1 to 64 of A-Z, a-z, 0-9, _, . and -: change it or leave it out."
    return ApiError(400, message, "invalid_value", "x-request-id")


def _check_encoding(headers: Headers) -> None:
    # A compressed body could be a thousand times larger than it looks.
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(
            415, "A body with a Content-Encoding is not read: send it as it is.", "unsupported_content_encoding"
        )


def _check_scope(path: str, key: keys.KeyInfo) -> bool:
    """Check that a path is there and open to a key; return whether it answers with a model."""
    known = next((name for name in SCOPES if path == name or path.startswith(f"{name}/")), None)
    if known is None:
        raise ApiError(404, "There is no such path: GET /openapi.json lists them.", "not_found")
    if not key.may(SCOPES[known]):
        raise ApiError(
            403,
            f"This key lacks the scope {SCOPES[known]!r} for {known}: use a key that was made with it.",
            "missing_scope",
        )
    return known in _ANSWERING


async def _read_body(headers: Headers, receive: Receive, timeout_s: float) -> list[Message]:
    """Return the messages of the body; the last one is a disconnect where the client went away."""
    too_large = ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes: send less text.", "too_large")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    messages: list[Message] = []
    n_bytes, is_complete = 0, False
    try:
        async with asyncio.timeout(timeout_s):
            while not is_complete:
                message = await receive()
                messages.append(message)
                n_bytes += len(message.get("body", b""))
                if n_bytes > MAX_BODY_BYTES:
                    raise too_large
                is_complete = message["type"] != "http.request" or not message.get("more_body", False)
    except TimeoutError:
        raise ApiError(
            408, f"The body did not arrive within {timeout_s:g} s: send it again, at once.", "request_timeout"
        ) from None
    return messages


def _ratelimit_headers(key: keys.KeyInfo, left: Left) -> dict[str, str]:
    """Return OpenAI's headers; its `tokens` are those of a minute, and these are of a day."""
    figures = {
        "limit-requests": key.limits.requests_per_minute,
        "remaining-requests": left.requests,
        "limit-tokens": key.limits.tokens_per_day,
        "remaining-tokens": left.tokens,
    }
    return {f"x-ratelimit-{name}": str(figure) for name, figure in figures.items() if figure is not None}


def _watched(send: Send, headers: dict[str, str], held: contextlib.ExitStack) -> Send:
    """Return a `send` that adds these headers, as they are by then, and lets go of what is held with the last byte."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            # Before it: who has the whole answer may ask again at once, and must find its place free.
            held.close()
        await send(message)

    return watched


def error_response(error: ApiError) -> JSONResponse:
    """Return a refusal in OpenAI's error form."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    wait_s = error.retry_after_s or (1 if error.status == 503 else None)
    if wait_s is not None:
        headers["Retry-After"] = str(wait_s)
    detail = ErrorDetail(message=error.message, type=_error_type(error.status), code=error.code, param=error.param)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status, headers)


def _error_type(
    status: int,
) -> Literal["invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"]:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
