"""The HTTP application: every served model behind one address, with OpenAI's chat completions among its routes.

What belongs here: putting the application together, and the routes about the server itself. What does not: the routes
that answer (`chat`, `tasks`), what a request must pass before (`gate`), answering (`worker`), Ray (`app`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from ev_platform.serving import feedback, metrics
from ev_platform.serving.chat import add_chat
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.described import describe, refusals
from ev_platform.serving.exchange import Backend
from ev_platform.serving.faults import Faults
from ev_platform.serving.gate import Gate, error_response
from ev_platform.serving.models import Models, seen_of
from ev_platform.serving.observe import Observe
from ev_platform.serving.page import add_page
from ev_platform.serving.replies import FeedbackResponse, Health, ModelCard, ModelList, Ready, card
from ev_platform.serving.schemas import MAX_MODEL_CHARS, ApiError, FeedbackRequest
from ev_platform.serving.tasks import add_tasks

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_api(backend: Backend, data_root: Path, config: ServingConfig) -> FastAPI:
    """Build the application.

    Args:
        backend: What answers.
        data_root: Data folder, which holds the keys and the log of requests.
        config: Limits.
    """
    # The interactive pages load scripts from other hosts; the description itself is a route below.
    # A path with a slash too many is not found: a redirect would name the host and scheme that the client claims.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    # The last one added is the outermost.
    app.add_middleware(Gate, data_root=data_root)
    app.add_middleware(Faults)
    app.add_middleware(Observe, data_root=data_root, config=config)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=[
                "X-Request-Id",
                "Retry-After",
                *(f"X-RateLimit-{what}-{of}" for what in ("Limit", "Remaining") for of in ("Requests", "Tokens")),
            ],
        )
    _add_error_handlers(app)
    models = Models(backend)
    # `Gate` checks the key; this tells clients of it.
    keyed = [Security(HTTPBearer(auto_error=False, description="A key made with `ev-platform keys create NAME`."))]
    add_chat(app, models, keyed)
    add_tasks(app, models, keyed)
    _add_server_routes(app, models, keyed)
    _add_feedback(app, data_root, keyed)
    add_page(app)
    return app


def _add_server_routes(app: FastAPI, models: Models, keyed: list[Any]) -> None:
    @app.get("/healthz", tags=["Server"], summary="Whether it lives", responses=refusals(is_open=True))
    async def healthz() -> Health:
        """Tell that this process answers; needs no key."""
        return Health()

    @app.get("/readyz", tags=["Server"], summary="Whether it can answer", responses=refusals(503, is_open=True))
    async def readyz() -> Ready:
        """Tell that every model answers, and which version each is; needs no key."""
        answers = await models.describe()
        missing = [name for name, answer in answers.items() if isinstance(answer, ApiError)]
        if missing:
            raise ApiError(503, f"{', '.join(missing)} cannot answer yet.", "not_ready", retry_after_s=1)
        return Ready(models={m.model: m.model_version for m in answers.values() if not isinstance(m, ApiError)})

    @app.get("/v1/models", tags=["OpenAI"], summary="What is served", dependencies=keyed, responses=refusals())
    async def list_models() -> ModelList:
        """List the models that answer now, the one for requests that name none first."""
        served = (await models.describe()).values()
        return ModelList(data=[card(model) for model in served if not isinstance(model, ApiError)])

    @app.get(
        "/v1/models/{model}",
        tags=["OpenAI"],
        summary="One of what is served",
        dependencies=keyed,
        responses=refusals(404, 422),
    )
    async def one_model(model: Annotated[str, UrlPath(max_length=MAX_MODEL_CHARS)]) -> ModelCard:
        """Describe a model by a name that requests may ask for it by, the exact version among them."""
        return card(await models.find(model))

    @app.get(
        "/metrics",
        tags=["Server"],
        summary="Figures for Prometheus",
        dependencies=keyed,
        response_class=PlainTextResponse,
        responses=refusals(),
    )
    async def figures() -> Response:
        """Tell Prometheus what has been counted; needs a key with the scope admin."""
        served = await models.describe()
        metrics.set_models({name: None if isinstance(now, ApiError) else now for name, now in served.items()})
        body, content_type = metrics.render()
        return Response(body, media_type=content_type)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(describe, app, await models.describe()))


def _add_feedback(app: FastAPI, data_root: Path, keyed: list[Any]) -> None:
    @app.post(
        "/v1/feedback",
        tags=["Tasks"],
        summary="Rate an answer",
        status_code=201,
        dependencies=keyed,
        responses=refusals(404, 422),
    )
    def give_feedback(body: FeedbackRequest, request: Request) -> FeedbackResponse:
        """Keep what somebody says of an answer that was given to the same key; a later word replaces an earlier one."""
        return FeedbackResponse(id=feedback.give(data_root, request.state.key, body).feedback_id)


def _add_error_handlers(app: FastAPI) -> None:
    def told(request: Request, error: ApiError) -> JSONResponse:
        seen_of(request).error = error.code
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return told(request, _invalid(error))

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "bad_request")
        response = told(request, ApiError(error.status_code, f"{error.detail}.", code))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return told(request, error)


def _invalid(error: RequestValidationError) -> ApiError:
    """Return what is told of a body; never what it said."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", "invalid_json")
    if first["loc"] == ("body",):
        message = "body: must be a JSON object, sent with the header Content-Type: application/json."
        return ApiError(422, message, "invalid_value", "body")
    if first["type"] == "extra_forbidden":
        return ApiError(422, "body: there is a field that this route does not have.", "unknown_field", "body")
    param = ".".join(map(str, first["loc"][1:]))
    return ApiError(422, f"{param}: {first['msg'].removeprefix('Value error, ')}", "invalid_value", param)
