"""The HTTP application: one released model, with its retriever if it has one, as OpenAI's chat completions API.

What belongs here: routes, and the path from a question to an answer with its sources. What does not: Ray (`app`),
keys (`keys`), bodies and their limits (`schemas`, `gate`).

Every answer and every refusal carries `x-request-id`, which Ray Serve's proxy sets, on its own refusals too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ev_platform.engine import Completion
from ev_platform.errors import UserError
from ev_platform.retrieval import Hit
from ev_platform.serving.gate import Gate, error_response
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
)

if TYPE_CHECKING:
    from ev_platform.registry import Release

# One question is answered at a time and the others wait; at about a second each, the last of 16 waits a quarter of a
# minute, and nobody gains from waiting longer than that.
MAX_PENDING = 16

# What happened is in the server's log; it is no business of the client.
_FAILED = ApiError(500, "The server failed to answer; the fault is not yours.", "internal_error")
_log = logging.getLogger(__name__)

ANSWER_DOC = """Answers the one user message: a question, or a text to label.

The prompt is exactly the one the model was evaluated with: the task's instructions, the passages found for the
question if the model answers from passages (they are the answer's `sources`), the message. So a request holds one
message of the role `user`; system messages and earlier turns are refused with 400 rather than ignored, and so is every
option that would change the answer and is not supported.
`max_tokens` is the evaluated length by default; more than that is refused with 400. Fields that cannot change the
answer (`user`, `metadata`) are ignored."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion and the passages it was made from."""

    completion: Completion
    hits: list[Hit]


def answer_question(release: Release, question: str, max_tokens: int, temperature: float, seed: int) -> Answer:
    """Retrieve if the model answers from passages, build the prompt and generate. Blocks.

    Raises:
        ApiError: If prompt and answer do not fit the model's window.
    """
    hits = release.retrieve(question)
    prompt = release.render(question, hits)
    n_tokens, window = release.engine.count_tokens(prompt), release.engine.window
    if n_tokens + max_tokens > window:
        raise ApiError(
            400,
            f"The prompt takes {n_tokens} tokens and the answer up to {max_tokens}, which exceeds the model's window "
            f"of {window}: ask a shorter question.",
            "context_length_exceeded",
            "messages",
        )
    try:
        (completion,) = release.engine.generate([prompt], max_new_tokens=max_tokens, temperature=temperature, seed=seed)
    except UserError as error:  # such as a question that leaves an encoder no room for its passages
        raise ApiError(400, str(error), "context_length_exceeded", "messages") from error
    return Answer(completion, hits)


class Worker:
    """Runs answers one after the other in a thread of its own, and refuses what would wait too long.

    The engine is not asked twice at once even if a client goes away meanwhile: its thread finishes the answer first.
    """

    def __init__(self, release: Release):
        self._release = release
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer")
        self._slots = threading.BoundedSemaphore(MAX_PENDING)

    async def answer(self, question: str, max_tokens: int, temperature: float, seed: int) -> Answer:
        """Answer when it is this question's turn.

        Raises:
            ApiError: 503 if `MAX_PENDING` questions are being answered or waiting, 500 if the engine failed.
        """
        if not self._slots.acquire(blocking=False):
            raise ApiError(503, f"{MAX_PENDING} questions are waiting already: try again in a second.", "overloaded")
        future = self._thread.submit(answer_question, self._release, question, max_tokens, temperature, seed)
        future.add_done_callback(lambda _: self._slots.release())
        try:
            return await asyncio.wrap_future(future)
        except ApiError:
            raise
        except Exception as error:
            # Where and what kind, but not the error's own words: those may quote the question.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("An answer failed with %s:\n%s", type(error).__name__, where)
            raise _FAILED from None

    def close(self) -> None:
        """Drop what waits."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def create_api(release: Release, data_root: Path) -> FastAPI:
    """Build the application that serves one release.

    Args:
        release: What to serve.
        data_root: Where `keys.json` lies.
    """
    task = release.model_version.rpartition("@")[0]
    loaded_at = int(time.time())
    worker = Worker(release)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    # The interactive pages load scripts from other hosts; the description itself stays.
    app = FastAPI(
        title=f"ev-platform: {release.model_version}",
        description=release.instructions,
        version=release.model_version,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, data_root=data_root)
    _add_error_handlers(app)
    # `Gate` checks the key; this tells clients of it.
    keyed = [Security(HTTPBearer(auto_error=False, description="A key made with `ev-platform keys create NAME`."))]

    @app.get("/healthz")
    async def healthz() -> Health:
        """Tell that the model is loaded, and which; needs no key."""
        return Health(status="ok", model=release.model_version)

    @app.get("/v1/models", dependencies=keyed, responses=_errors(401))
    async def models() -> ModelList:
        """List the one served model."""
        return ModelList(data=[ModelCard(id=release.model_version, created=loaded_at)])

    @app.post(
        "/v1/chat/completions",
        dependencies=keyed,
        description=f"{ANSWER_DOC}\n\nThe cap of `max_tokens` is {release.max_new_tokens}.",
        responses=_errors(400, 401, 404, 413, 422, 503),
    )
    async def chat_completions(body: ChatRequest, request: Request) -> ChatResponse:
        body.check()
        if body.model not in (None, task, release.model_version):
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
        return error_response(_FAILED)
