"""The HTTP application: one released model, with its retriever if it has one, as OpenAI's chat completions API.

What belongs here: routes, and the bodies that answers are sent in. What does not: Ray (`app`), keys (`keys`), bodies
and their limits (`schemas`, `gate`), answering (`worker`), the swap of one version for another (`live`).

Every answer and every refusal carries `x-request-id`, which Ray Serve's proxy sets, on its own refusals too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ev_platform.retrieval import Hit
from ev_platform.serving.gate import Gate, error_response
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.schemas import (
    AnswerMessage,
    ApiError,
    ChatRequest,
    ChatResponse,
    Choice,
    ErrorResponse,
    Health,
    ModelCard,
    ModelList,
    Source,
    Usage,
    failure,
)
from ev_platform.serving.worker import Answer

if TYPE_CHECKING:
    from ev_platform.registry import Release

_CHAT = "/v1/chat/completions"
ANSWER_DOC = """Answers the one user message: a question, or a text to label.

The prompt is exactly the one the model was evaluated with: the task's instructions, the passages found for the
question if the model answers from passages (they are the answer's `sources`), the message. So a request holds one
message of the role `user`; system messages and earlier turns are refused with 400 rather than ignored, and so is every
option that would change the answer and is not supported.
`max_tokens` is the evaluated length by default; more than that is refused with 400. Fields that cannot change the
answer (`user`, `metadata`) are ignored."""


def create_api(served: Release | LiveRelease, data_root: Path) -> FastAPI:
    """Build the application that serves one release at a time.

    Args:
        served: What to serve; a bare release stays for good.
        data_root: Where `keys.json` lies.
    """
    live = served if isinstance(served, LiveRelease) else LiveRelease(served)
    task = live.worker.release.model_version.rpartition("@")[0]
    # What a request may ask for beside the version.
    names = {None, task} | ({live.alias.name} if live.alias else set())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(live.follow())
        yield
        following.cancel()
        live.close()

    # The interactive pages load scripts from other hosts; the description itself stays.
    app = FastAPI(docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Gate, data_root=data_root)
    app.openapi = lambda: _describe(app, live.worker.release)
    _add_error_handlers(app)
    # `Gate` checks the key; this tells clients of it.
    keyed = [Security(HTTPBearer(auto_error=False, description="A key made with `ev-platform keys create NAME`."))]

    @app.get("/healthz")
    async def healthz() -> Health:
        """Tell that the model is loaded, and which; needs no key."""
        return Health(status="ok", model=live.worker.release.model_version)

    @app.get("/v1/models", dependencies=keyed, responses=_errors(401))
    async def models() -> ModelList:
        """List the one served model."""
        worker = live.worker
        return ModelList(data=[ModelCard(id=worker.release.model_version, created=worker.loaded_at)])

    @app.post(
        _CHAT,
        dependencies=keyed,
        description=ANSWER_DOC,
        responses=_errors(400, 401, 404, 413, 422, 503),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> ChatResponse:
        body.check()
        worker = live.worker  # nothing is awaited before it has the question, so it cannot be swapped out meanwhile
        release = worker.release
        if body.model not in names | {release.model_version}:
            raise ApiError(
                404, f"That model is not served here: ask for {release.model_version}.", "model_not_found", "model"
            )
        max_tokens = body.max_tokens or body.max_completion_tokens or release.max_new_tokens
        if max_tokens > release.max_new_tokens:
            raise ApiError(
                400,
                f"max_tokens is {max_tokens} but the cap is {release.max_new_tokens}, the length that was evaluated.",
                "invalid_value",
                "max_tokens",
            )
        temperature = 0.0 if body.temperature is None else body.temperature
        answer = await worker.answer(body.messages[0].content, max_tokens, temperature, body.seed or 0)
        return _to_response(release, answer, request.headers.get("x-request-id") or uuid.uuid4().hex)

    return app


def _describe(app: FastAPI, release: Release) -> dict[str, Any]:
    """Return the OpenAPI description, which names the version that is served now."""
    if app.openapi_schema is None or app.openapi_schema["info"]["version"] != release.model_version:
        described = get_openapi(
            title=f"ev-platform: {release.model_version}",
            version=release.model_version,
            description=release.instructions,
            routes=app.routes,
        )
        described["paths"][_CHAT]["post"]["description"] += f"\n\nThe cap of `max_tokens` is {release.max_new_tokens}."
        app.openapi_schema = described
    return app.openapi_schema


def _to_response(release: Release, answer: Answer, request_id: str) -> ChatResponse:
    completion = answer.completion
    return ChatResponse(
        id=f"chatcmpl-{request_id}",
        created=int(time.time()),
        model=release.model_version,
        choices=[Choice(message=AnswerMessage(content=completion.text), finish_reason=completion.finish_reason)],
        usage=Usage(
            prompt_tokens=completion.n_prompt_tokens,
            completion_tokens=completion.n_completion_tokens,
            total_tokens=completion.n_prompt_tokens + completion.n_completion_tokens,
        ),
        sources=[_to_source(release, hit) for hit in answer.hits],
    )


def _to_source(release: Release, hit: Hit) -> Source:
    chunk = release.chunks[hit.chunk_id]
    return Source(
        chunk_id=chunk.chunk_id,
        title=chunk.title,
        heading=chunk.heading_path,
        url=chunk.url,
        page=chunk.page,
        licence=chunk.licence,
        publisher=chunk.publisher,
        fetched_at=chunk.fetched_at,
        score=hit.score,
        text=chunk.text,
    )


def _errors(*statuses: int) -> dict[int | str, dict[str, type]]:
    return {status: {"model": ErrorResponse} for status in statuses}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(ApiError(400, "The body is not valid JSON.", "invalid_json"))
        param = ".".join(map(str, first["loc"][1:])) or "body"
        message = first["msg"].removeprefix("Value error, ")
        return error_response(ApiError(422, f"{param}: {message}", "invalid_value", param))

    @app.exception_handler(HTTPException)
    async def not_routed(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(ApiError(error.status_code, f"{error.detail}.", "bad_request"))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return error_response(failure())
