"""What becomes of a request that fails in a way that nobody foresaw: it is logged, and told as the server's fault.

What does not belong here: refusals (`schemas.ApiError`) and their form (`gate.error_response`).
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ev_platform.serving import logs
from ev_platform.serving.gate import error_response
from ev_platform.serving.schemas import ApiError, failure

_STOPPING = ApiError(503, "The server is stopping: ask again in some seconds.", "unavailable", retry_after_s=5)


def refusal_of(error: Exception, request_id: str | None = None) -> ApiError:
    """Return what is told of an error, after logging it where it is a fault of the server."""
    if isinstance(error, ApiError):
        return error
    logs.fault("request failed", error, request_id=request_id)
    return failure()


class Faults:
    """ASGI middleware that answers 500 where a request fails in a way that nobody foresaw.

    Starlette's own handler of `Exception` stands outside of all middlewares: its answer would pass unseen by the log
    and by CORS, and the error, with whatever text it quotes, would go on to the log of the server.

    Args:
        app: What may fail.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending if scope["type"] == "http" else send)
        except asyncio.CancelledError as error:
            # The server says why when it stops before the answer is there; who cancels for a client that left does not.
            if scope["type"] == "http" and not has_begun and error.args:
                await error_response(_STOPPING)(scope, receive, send)
            raise
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise
            state = scope.get("state", {})
            refusal = refusal_of(error, state.get("request_id"))
            if "seen" in state:
                state["seen"].error = refusal.code
            await error_response(refusal)(scope, receive, send)
