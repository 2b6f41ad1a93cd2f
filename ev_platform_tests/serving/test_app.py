"""The gateway's calls to replicas, without Ray's processes: what is asked again, and how often."""

import asyncio
import dataclasses
from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from ev_platform.engine import CTranslate2Engine
from ev_platform.serving import app
from ev_platform.serving.app import RayBackend
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
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
        self.turns, self.seconds, self.n_calls = turns, seconds, 0

    def _next(self):
        turn = self.turns[min(self.n_calls, len(self.turns)) - 1]
        if isinstance(turn, BaseException) and not isinstance(turn, ApiError):
            raise turn
        return turn

    async def _answer(self):
        await asyncio.sleep(self.seconds)
        return self._next()

    def remote(self, *_):
        self.n_calls += 1
        return asyncio.ensure_future(self._answer())


class Pieces:
    """What a streaming call gives: pieces, and a way to stop them."""

    def __init__(self, make):
        self._make, self._is_over = make, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._is_over:
            raise StopAsyncIteration
        self._is_over = True
        return self._make()

    def cancel(self):
        self._is_over = True


class StreamingMethod(Method):
    def remote(self, *_):
        self.n_calls += 1
        return Pieces(self._next)


class Handle:
    def __init__(self, describe=(), answer=(), seconds=0.0):
        self.describe, self.answer = Method(describe, seconds), Method(answer)
        self.stream = StreamingMethod(answer)

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


async def test_slow_description_serves_all_who_wait_for_it(monkeypatch):
    monkeypatch.setattr(app, "DESCRIBED_FOR_S", 0.1)
    handle = Handle([described()], seconds=0.15)
    backend = backend_of(handle)
    await asyncio.gather(*(backend.describe("fake_task") for _ in range(8)))
    assert handle.describe.n_calls == 1
    await asyncio.sleep(0.11)
    await backend.describe("fake_task")
    assert handle.describe.n_calls == 2


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
