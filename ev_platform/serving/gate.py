"""What every request must pass before it reaches a route: a live key, and a body of bounded size.

It stands before FastAPI, which reads and parses a body before any of its dependencies runs. Paths are closed unless
they are named here as open.

What does not belong here: what keys are (`keys`), and refusals that need the parsed body (`schemas`, `api`).
"""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ev_platform.serving import keys
from ev_platform.serving.schemas import ApiError, ErrorDetail, ErrorResponse

OPEN_PATHS = frozenset({"/healthz", "/openapi.json"})
# Eight times the longest question: room for JSON's escapes and any field a client adds.
MAX_BODY_BYTES = 64 * 1024


class Gate:
    """ASGI middleware that answers 401 without a live key and 413 where the body is too large.

    Args:
        app: What it protects.
        data_root: Where `keys.json` lies.
    """

    def __init__(self, app: ASGIApp, data_root: Path):
        self._app = app
        self._data_root = data_root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the refusal, or pass the request on with its body read."""
        if scope["type"] == "http":
            try:
                if scope["path"] not in OPEN_PATHS:
                    self._check_key(Headers(scope=scope))
                receive = await _read_body(Headers(scope=scope), receive)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or keys.verify(self._data_root, presented.strip()) is None:
            raise ApiError(401, "No valid API key: send the header 'Authorization: Bearer ev_...'.", "invalid_api_key")


async def _read_body(headers: Headers, receive: Receive) -> Receive:
    """Read the body, and return a `receive` that gives it again, then whatever follows (a disconnect)."""
    too_large = ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes: ask a shorter question.", "too_large")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    messages: list[Message] = []
    n_bytes, is_complete = 0, False
    while not is_complete:
        message = await receive()
        messages.append(message)
        n_bytes += len(message.get("body", b""))
        if n_bytes > MAX_BODY_BYTES:
            raise too_large
        is_complete = message["type"] != "http.request" or not message.get("more_body", False)

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay


def error_response(error: ApiError) -> JSONResponse:
    """Return a refusal in OpenAI's error form."""
    kind = "authentication_error" if error.status == 401 else "invalid_request_error"
    kind = "server_error" if error.status >= 500 else kind
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
    detail = ErrorDetail(message=error.message, type=kind, code=error.code, param=error.param)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status, headers)
