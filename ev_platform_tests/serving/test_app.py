"""The gateway's calls to replicas, without Ray's processes: what is asked again, and how often."""

import asyncio
import contextlib
import dataclasses
import time
from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from ev_platform.engine import CTranslate2Engine
from ev_platform.serving import app
from ev_platform.serving.app import RayBackend
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
from ev_platform.serving.preparing import prepare
from ev_platform.serving.schemas import ApiError
from ev_platform.serving.worker import Worker
from ev_platform_tests.serving.fakes import FakeEngine, fake_release

pytestmark = pytest.mark.anyio

ASK = Ask("req-1", "Which plug?", version="fake_task@4")
GONE = ApiError(404, "That model is not served here.", "model_not_found", "model")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(app, "PAUSES_S", (0.01,) * 4)


class Method:
    """A method of a deployment's handle, which does in turn what it is told; the last thing for ever."""

    def __init__(self, turns, seconds=0.0):
        self.turns, self.seconds, self.n_calls, self.is_cancelled = turns, seconds, 0, False

    def _next(self):
        turn = self.turns[min(self.n_calls, len(self.turns)) - 1]
        if isinstance(turn, BaseException) and not isinstance(turn, ApiError):
            raise turn
        return turn

    async def _answer(self):
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        return self._next()

    def remote(self, *_):
        self.n_calls += 1
        return asyncio.ensure_future(self._answer())


class Pieces:
    """What a streaming call gives: a piece, and a way to stop it."""

    def __init__(self, method):
        self._method, self._is_over = method, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._is_over:
            raise StopAsyncIteration
        self._is_over = True
        return await self._method._answer()

    def cancel(self):
        self._method.is_cancelled = True


class StreamingMethod(Method):
    def remote(self, *_):
        self.n_calls += 1
        return Pieces(self)


class Handle:
    def __init__(self, describe=(), answer=(), seconds=0.0):
        self.describe, self.answer = Method(describe, seconds), Method(answer, seconds)
        self.stream = StreamingMethod(answer, seconds)

    def options(self, **_):
        return self


def backend_of(handle):
    return RayBackend({"fake_task": handle}, ServingConfig(request_timeout_s=5))


def described(version="fake_task@3"):
    worker = Worker(fake_release(), ServingConfig())
    worker.close()
    return dataclasses.replace(worker.describe("fake_task"), model_version=version)


def failed(code):
    return AioRpcError(code, Metadata(), Metadata(), "gone")


async def test_slow_description_serves_all_who_wait_for_it():
    handle = Handle([described()], seconds=0.15)
    backend = backend_of(handle)
    await asyncio.gather(*(backend.describe("fake_task") for _ in range(8)))
    assert handle.describe.n_calls == 1


async def test_nobody_waits_for_a_description_unless_the_last_one_is_too_old(monkeypatch):
    monkeypatch.setattr(app, "DESCRIBED_FOR_S", 0.05)
    monkeypatch.setattr(app, "OLDEST_DESCRIPTION_S", 0.5)
    handle = Handle([described("fake_task@3"), described("fake_task@4"), described("fake_task@5")], seconds=0.1)
    backend = backend_of(handle)
    versions = []

    async def look():
        started = time.monotonic()
        versions.append((await backend.describe("fake_task")).model_version)
        return time.monotonic() - started

    assert await look() >= 0.1
    await asyncio.sleep(0.06)
    assert await look() < 0.05  # what is known, while it is asked for anew
    await asyncio.sleep(0.15)
    assert await look() < 0.05
    await asyncio.sleep(0.6)
    await look()
    assert versions == ["fake_task@3", "fake_task@3", "fake_task@4", "fake_task@5"]


async def test_description_that_nobody_gives_is_refused_and_asked_for_again_by_the_next():
    handle = Handle([failed(grpc.StatusCode.UNAVAILABLE)] * 4 + [described()])
    backend = backend_of(handle)
    with pytest.raises(ApiError, match="being started anew"):
        await backend.describe("fake_task")
    assert (await backend.describe("fake_task")).model_version == "fake_task@3"


async def test_description_that_its_reader_gave_up_is_there_for_the_others():
    handle = Handle([described()], seconds=0.1)
    backend = backend_of(handle)
    left, stays = (asyncio.ensure_future(backend.describe("fake_task")) for _ in range(2))
    await asyncio.sleep(0.02)
    left.cancel()
    assert (await stays).model_version == "fake_task@3"
    assert handle.describe.n_calls == 1


async def one_way(backend, way):
    if way == "answer":
        return await backend.answer("fake_task", ASK)
    (event,) = [event async for event in backend.stream("fake_task", ASK)]
    return event


@pytest.mark.parametrize("way", ["answer", "stream"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_question_of_a_replica_that_died_is_put_to_another_one(way, code):
    handle = Handle(answer=[failed(code), "fine"])
    assert await one_way(backend_of(handle), way) == "fine"


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_question_that_is_given_up_ends_its_call(way):
    handle = Handle(answer=["too late"], seconds=5)
    asked = asyncio.ensure_future(one_way(backend_of(handle), way))
    await asyncio.sleep(0.05)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert handle.answer.is_cancelled or handle.stream.is_cancelled


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_question_that_takes_too_long_is_refused_and_its_call_ended(way):
    handle = Handle(answer=["too late"], seconds=5)
    backend = RayBackend({"fake_task": handle}, ServingConfig(request_timeout_s=0.05))
    with pytest.raises(ApiError) as refused:
        await one_way(backend, way)
    assert refused.value.status == 504
    assert handle.answer.is_cancelled or handle.stream.is_cancelled


async def test_stream_whose_reader_leaves_ends_its_call():
    handle = Handle(answer=["one", "two"])
    stream = backend_of(handle).stream("fake_task", ASK)
    assert await anext(stream) == "one"
    await stream.aclose()
    assert handle.stream.is_cancelled


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_call_that_failed_for_another_reason_is_not_made_again(way):
    handle = Handle(answer=[failed(grpc.StatusCode.RESOURCE_EXHAUSTED), "fine"])
    with pytest.raises(AioRpcError):
        await one_way(backend_of(handle), way)
    assert handle.answer.n_calls + handle.stream.n_calls == 1


@pytest.mark.parametrize("way", ["answer", "stream"])
async def test_version_that_only_some_replicas_have_yet_is_asked_of_another_one(way):
    handle = Handle([described("fake_task@4")], [GONE, GONE, "fine"])
    assert await one_way(backend_of(handle), way) == "fine"


@pytest.mark.parametrize("way", ["answer", "stream"])
@pytest.mark.parametrize(("known", "n_calls"), [("fake_task@3", 1), ("fake_task@4", 4)])
async def test_version_that_no_replica_has_is_refused(way, known, n_calls):
    handle = Handle([described(known)], [GONE])
    with pytest.raises(ApiError, match="not served here"):
        await one_way(backend_of(handle), way)
    assert handle.answer.n_calls + handle.stream.n_calls == n_calls


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [({"temperature": 1.0}, False), ({"seed": 1}, False), ({"temperature": 1.0, "seed": 0}, True)],
)
async def test_seed_that_the_engine_cannot_follow_is_refused(fields, is_refused):
    engine = CTranslate2Engine.__new__(CTranslate2Engine)
    engine.window, engine.render, engine.count_tokens = 100, lambda _: "prompt", len
    with pytest.raises(ApiError, match="cannot repeat a sample") if is_refused else contextlib.nullcontext():
        prepare(fake_release(engine=engine), Ask("req-1", "Which plug?", **fields), 5, 0.0)


async def test_torch_has_one_thread_beside_ctranslate2_after_every_load():
    import torch

    usual = torch.get_num_threads()
    engines = iter([FakeEngine(), CTranslate2Engine.__new__(CTranslate2Engine), FakeEngine()])
    load = app.sparing(lambda *_: fake_release(engine=next(engines)))
    try:
        torch.set_num_threads(2)
        found = []
        for _ in range(3):
            load(Path("data"), Path("tasks"), "fake_task", "champion")
            found.append(torch.get_num_threads())
        assert found == [2, 1, 2]
    finally:
        torch.set_num_threads(usual)
