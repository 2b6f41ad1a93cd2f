"""What stands before Ray Serve's proxies, in their processes, so that they too speak OpenAI's error form.

It is for clusters (`deploy/kuberay`): on one machine the gateway listens by itself. The environment of the cluster's
head names it, by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ev_platform.serving.front.middlewares`.

By itself the proxy tells the application's name at `/-/routes` and its state at `/-/healthz`, answers in plain text
where no gateway can be reached, and lets a client set its timeout and keep an answer going that nobody waits for.

What does not belong here: what a request must pass before it reaches a route; that is the gateway's (`gate`).
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ev_platform.serving import logs
from ev_platform.serving.faults import refusal_of
from ev_platform.serving.gate import bad_request_id, error_response
from ev_platform.serving.schemas import REQUEST_ID, ApiError

if TYPE_CHECKING:
    from starlette.middleware import Middleware

# By these, Serve lets a client steer the proxy and its choice of a replica; it takes `_` for `-`.
_STEERING = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)


class Front:
    """ASGI middleware around Serve's proxy.

    Args:
        app: The proxy.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is not the gateway's, and pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = is_hidden = False

        async def send_own_form(message: Message) -> None:
            nonlocal has_begun, is_hidden
            if message["type"] == "http.response.start":
                # The proxy adds the id that it gave the request to the same one from the gateway.
                ids = [header for header in message["headers"] if header[0].lower() == b"x-request-id"]
                others = [header for header in message["headers"] if header not in ids]
                message = {**message, "headers": [*others, *ids[:1]]}
                # The gateway refuses in JSON only: a refusal in plain text is the proxy's.
                is_plain = Headers(scope=message).get("content-type", "").startswith("text/plain")
                is_hidden = message["status"] >= 400 and is_plain
                has_begun = not is_hidden
            if not is_hidden:
                await send(message)

        refusal = _refuse(scope)
        if refusal is None:
            headers = [(name, value) for name, value in scope["headers"] if _plain(name) not in _STEERING]
            try:
                await self._app({**scope, "headers": headers}, receive, send_own_form)
            except Exception as error:
                if has_begun:
                    raise
                refusal = refusal_of(error)
            if has_begun:
                return
            refusal = refusal or ApiError(
                503, "The server is being started: try again.", "unavailable", retry_after_s=5
            )
        response = error_response(refusal)
        response.headers["x-request-id"] = str(uuid.uuid4())
        await response(scope, receive, send)


def _plain(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _refuse(scope: Scope) -> ApiError | None:
    if scope["path"].startswith("/-/"):
        return ApiError(404, "Not Found.", "not_found")
    if not all(re.fullmatch(REQUEST_ID, request_id) for request_id in Headers(scope=scope).getlist("x-request-id")):
        return bad_request_id()  # the proxy would stumble over some of them
    return None


def middlewares() -> list[Middleware]:
    """Return what Serve's proxy is to be wrapped in; Serve calls it by its name."""
    from starlette.middleware import Middleware

    logs.keep(Path(os.environ[logs.DATA_VARIABLE]))
    return [Middleware(Front)]
