"""The Ray Serve application: one gateway that speaks HTTP, and one deployment for each served model.

Only it and `run` import ray. What does not belong here: routes (`api`), what a request must pass (`gate`), answering
(`worker`), loading and swapping (`live`), the cluster (`run`), the answers of a cluster's proxies (`front`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from grpc import StatusCode
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from ev_platform.serving import logs
from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.endpoint import Endpoint, server_of
from ev_platform.serving.exchange import Ask, Delta, Described, Found, Reply
from ev_platform.serving.live import LiveRelease, Loader, open_release
from ev_platform.serving.schemas import ApiError
from ev_platform.serving.worker import too_late

if TYPE_CHECKING:
    from ev_platform.registry import Release

# How long a description holds. An older one is still told while a newer one is fetched, so that hardly any question
# waits for it; one that is too old is not, since a promotion must be seen.
DESCRIBED_FOR_S = 1.0
OLDEST_DESCRIPTION_S = 3.0
# A replica that dies takes its questions along, but nothing of their answers has been told yet: they are put to another
# one. Where there is no other, the call itself waits until the dead one is back; the pauses are for the moment in which
# nobody has noticed yet that it is dead, or in which only some replicas have swapped to the version asked for.
PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)

# Calls go over gRPC (`run`): Serve tells a connection that is lost as the first, and anything else of it as the second.
_FAILED = (RayActorError, AioRpcError)
_LOST = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)

_log = logging.getLogger(__name__)


@serve.deployment(
    max_constructor_retry_count=1,  # what cannot be loaded now cannot be loaded in a second either
    health_check_period_s=2,  # how long it takes at most until a dead replica is replaced
    health_check_timeout_s=60,  # a machine that is busy loading is no dead replica
)
class ModelServer:
    """One replica of one served model: a release in memory, which follows its alias by itself.

    A refusal is a return value, not an exception: Serve would log that with a traceback.
    """

    async def __init__(self, load: Loader, data_root: Path, tasks_dir: Path, model: str, config: ServingConfig) -> None:
        logs.keep(data_root)
        self._model = model
        self._live: LiveRelease = await open_release(sparing(load), data_root, tasks_dir, model, config)
        self._following = asyncio.create_task(self._live.follow())

    async def describe(self) -> Described:
        """Say what it serves now."""
        return self._live.worker.describe(self._model)

    async def answer(self, ask: Ask) -> Reply | ApiError:
        """Answer."""
        try:
            return await self._live.worker.answer(ask)
        except ApiError as error:
            return error.with_traceback(None)

    async def stream(self, ask: Ask) -> AsyncGenerator[Found | Delta | Reply | ApiError]:
        """Answer piece by piece; a refusal is the last piece."""
        async with contextlib.aclosing(self._live.worker.stream(ask)) as events:
            try:
                async for event in events:
                    yield event
            except ApiError as error:
                yield error.with_traceback(None)


class RayBackend:
    """An `exchange.Backend` over deployments.

    Args:
        handles: Name under which a model is asked for, to its deployment.
        config: Limits.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle], config: ServingConfig):
        self.models: Sequence[str] = tuple(handles)
        self._config = config
        self._handles = dict(handles)
        # Ray's types do not tell a call that streams from one that does not.
        self._streams: dict[str, Any] = {model: handle.options(stream=True) for model, handle in handles.items()}
        self._described: dict[str, tuple[float, Described]] = {}
        self._describing: dict[str, asyncio.Task[None]] = {}

    async def describe(self, model: str) -> Described:
        """Say what stands behind a name, or stood at most `OLDEST_DESCRIPTION_S` ago.

        Raises:
            ApiError: 503 or 504 where no replica tells.
        """
        described_at, known = self._described.get(model, (-math.inf, None))
        age_s = time.monotonic() - described_at
        if age_s > DESCRIBED_FOR_S and model not in self._describing:
            task = self._describing[model] = asyncio.create_task(self._describe(model))
            task.add_done_callback(partial(self._end_describing, model))
        if known is None or age_s > OLDEST_DESCRIPTION_S:
            await asyncio.shield(self._describing[model])  # it is for all who wait: none of them takes it along
            _, known = self._described[model]
        return known

    async def _describe(self, model: str) -> None:
        described = await self._whole(model, None, lambda: self._handles[model].describe.remote())
        # From its end on: a call that takes longer than it holds would else be made by each who waits.
        self._described[model] = time.monotonic(), described

    def _end_describing(self, model: str, task: asyncio.Task[None]) -> None:
        del self._describing[model]
        if not task.cancelled():
            task.exception()  # where nobody waited, asyncio would tell of it: who has to know it asks again

    async def answer(self, model: str, ask: Ask) -> Reply:
        """Answer; if the replica dies meanwhile, another one is asked.

        Raises:
            ApiError: What the replica refused with, 503 where no replica can be reached, 504 after `request_timeout_s`.
        """
        return await self._whole(model, ask, lambda: self._handles[model].answer.remote(ask))

    async def stream(self, model: str, ask: Ask) -> AsyncGenerator[Found | Delta | Reply]:
        """Answer piece by piece; if the replica dies before the first piece, another one is asked.

        Raises:
            ApiError: As `answer`; 503 (`interrupted`) where the replica died after the first piece.
        """
        async with contextlib.aclosing(
            self._pieces(model, ask, lambda: _streamed(self._streams[model].stream.remote(ask)))
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def _whole(self, model: str, ask: Ask | None, call: Callable[[], Any]) -> Any:
        async with contextlib.aclosing(self._pieces(model, ask, lambda: _awaited(call()))) as pieces:
            return await anext(pieces)

    async def _pieces(
        self, model: str, ask: Ask | None, begin: Callable[[], AsyncGenerator[Any]]
    ) -> AsyncGenerator[Any]:
        """Yield what a call gives; it is made again as long as another replica may give what this one could not."""
        deadline = asyncio.get_running_loop().time() + self._config.request_timeout_s
        refusal = _unreachable()
        for pause_s in PAUSES_S:
            has_begun = False
            try:
                async with contextlib.aclosing(begin()) as pieces:
                    while True:
                        async with asyncio.timeout_at(deadline):
                            piece = await anext(pieces, None)
                        if piece is None:
                            return
                        if isinstance(piece, ApiError):
                            raise piece
                        has_begun = True
                        yield piece
            except ApiError as error:
                if not await self._is_held_elsewhere(model, ask, error):
                    raise
                refusal = error
            except _FAILED as error:
                if not _has_died(error):
                    raise
                if has_begun:
                    raise ApiError(503, "The answer was interrupted: ask again.", "interrupted", None, 1) from None
                _log.warning("A replica of %s died; another one is asked.", model)
                refusal = _unreachable()
            except BackPressureError:
                raise _overloaded() from None
            except TimeoutError:
                raise too_late(self._config) from None
            await asyncio.sleep(pause_s)
        raise refusal

    async def _is_held_elsewhere(self, model: str, ask: Ask | None, refusal: ApiError) -> bool:
        """Return whether another replica holds the version that one was refused for: they swap one after the other."""
        if ask is None or ask.version is None or refusal.code != "model_not_found":
            return False
        return (await self.describe(model)).model_version == ask.version


async def _awaited(response: Any) -> AsyncGenerator[Any]:
    """Yield the one thing that a call gives; the call ends with who waits for it."""
    try:
        result = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    yield result


async def _streamed(events: Any) -> AsyncGenerator[Any]:
    """Yield what a streaming call gives; the call ends with who reads it."""
    try:
        async for event in events:
            yield event
    except (asyncio.CancelledError, GeneratorExit):
        events.cancel()
        raise


# The gate bounds what each key may do at once; here nothing waits that could be refused in OpenAI's form.
_GATEWAY: dict[str, Any] = {
    "max_ongoing_requests": 10_000,
    "max_constructor_retry_count": 1,
    "health_check_period_s": 2,
    "health_check_timeout_s": 60,
    "ray_actor_options": {"num_cpus": 0},
}


@serve.deployment(**_GATEWAY)
@serve.ingress()
class Gateway:
    """Speaks HTTP behind Serve's proxies, counts what keys use and writes the request log: for clusters."""

    def __init__(self, handles: Mapping[str, DeploymentHandle], data_root: Path, config: ServingConfig) -> None:
        logs.keep(data_root, rotates=True)
        self._api = create_api(RayBackend(handles, config), data_root, config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api


@serve.deployment(**_GATEWAY)
class ListeningGateway:
    """Does the same on a port of its own: on one machine, the way through Serve's proxy took 15 ms more."""

    async def __init__(
        self, handles: Mapping[str, DeploymentHandle], data_root: Path, config: ServingConfig, endpoint: Endpoint
    ) -> None:
        logs.keep(data_root, rotates=True)
        self._server = server_of(create_api(RayBackend(handles, config), data_root, config), endpoint)
        self._serving = asyncio.create_task(self._server.serve(sockets=[endpoint.listen()]))

    async def check_health(self) -> None:
        """Raise where nothing listens any more: Serve then starts another gateway."""
        if self._serving.done():
            raise RuntimeError("The gateway has stopped listening.")

    async def __del__(self) -> None:
        """Take no more requests, and answer those under way; Serve awaits it."""
        self._server.should_exit = True
        await self._serving


def sparing(load: Loader) -> Loader:
    """Return a loader that lets torch embed questions with one thread where another library writes the answers.

    With two threads on two cores, a question took 350 ms of CPU beside other work instead of 16: they wait by spinning.
    """
    usual: int | None = None  # not known, and torch not imported, until there is something to change

    def load_sparing(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
        nonlocal usual
        from ev_platform.engine import CTranslate2Engine

        release = load(data_root, tasks_dir, task_name, name)
        is_other = isinstance(release.engine, CTranslate2Engine)
        if is_other or usual is not None:
            import torch

            usual = usual or torch.get_num_threads()
            torch.set_num_threads(1 if is_other else usual)
        return release

    return load_sparing


def _has_died(error: Exception) -> bool:
    return isinstance(error, RayActorError) or (isinstance(error, AioRpcError) and error.code() in _LOST)


def _overloaded() -> ApiError:
    return ApiError(503, "Too many questions are waiting: try again in a second.", "overloaded", retry_after_s=1)


def _unreachable() -> ApiError:
    return ApiError(503, "The model is being started anew: try again in some seconds.", "unavailable", retry_after_s=5)
