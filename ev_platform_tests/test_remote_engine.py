"""Needs no vLLM: a server on loopback that speaks `/v1/completions` as vLLM does, over a tiny model."""

import asyncio
import json
import time
from functools import partial
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from ev_platform.decoding import Prompt
from ev_platform.engine import TransformersEngine
from ev_platform.engine_base import Writer
from ev_platform.errors import UserError
from ev_platform.remote_engine import RemoteEngine
from ev_platform.serving.batching import Batcher
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
from ev_platform.serving.live import load_from_registry, open_release
from ev_platform.serving.replay import served
from ev_platform.storage import Store
from ev_platform_tests.serving import versions
from ev_platform_tests.tiny import write_tiny_model

PROMPTS = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("Which plug?", "Wie lang?")]


def completions(engine, seen):
    """Return an application that completes token ids greedily, a token an event, and notes what it sees."""
    import torch

    app, network = FastAPI(), engine._model

    def next_token(ids):
        with torch.inference_mode():
            return int(network(torch.tensor([ids])).logits[0, -1].argmax())

    async def write(body):
        seen.running += 1
        seen.most_running = max(seen.most_running, seen.running)
        try:
            for index, prompt in enumerate(body["prompt"]):
                ids, reason = list(prompt), None
                while reason is None:
                    await asyncio.sleep(seen.pause_s)
                    ids.append(next_token(ids))
                    seen.n_tokens += 1
                    if ids[-1] in body["stop_token_ids"]:
                        reason = "stop"
                    elif len(ids) - len(prompt) == body["max_tokens"]:
                        reason = "length"
                    choice = {"index": index, "text": "?", "finish_reason": reason}
                    if body.get("return_token_ids") and seen.sends_ids:
                        choice["token_ids"] = ids[-1:]
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            seen.running -= 1

    def logprobs(ids):
        with torch.inference_mode():
            scores = network(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        return [None, *scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]

    @app.get("/v1/models")
    async def models():
        return {"data": [{"id": "tiny@1"}]}

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request):
        body = await request.json()
        seen.bodies.append(body)
        if seen.is_failing:
            return JSONResponse({"error": {"message": f"out of memory at {body['prompt']}"}}, 500)
        if body.get("echo"):
            assert body["max_tokens"] == 0
            scored = [{"index": i, "logprobs": {"token_logprobs": logprobs(p)}} for i, p in enumerate(body["prompt"])]
            return {"choices": scored[::-1]}
        return StreamingResponse(write(body), media_type="text/event-stream")

    return app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("remote") / "model")


@pytest.fixture(scope="module")
def local(folder):
    return TransformersEngine(folder)


@pytest.fixture
def seen():
    return SimpleNamespace(
        bodies=[], running=0, most_running=0, n_tokens=0, pause_s=0.0, sends_ids=True, is_failing=False
    )


@pytest.fixture
def url(local, seen):
    with served(completions(local, seen)) as url:
        yield url


@pytest.fixture
def remote(folder, url):
    return RemoteEngine(folder, url, "tiny@1")


def test_answers_are_those_of_the_same_weights_here(remote, local, seen):
    def made(engine):
        answers = engine.generate(PROMPTS, max_new_tokens=12)
        return [(a.text, a.n_prompt_tokens, a.n_completion_tokens, a.finish_reason) for a in answers]

    assert isinstance(remote, Writer)
    assert remote.window == local.window == 2048
    assert made(remote) == made(local)
    assert {body["temperature"] for body in seen.bodies} == {0.0}
    first = remote.generate(PROMPTS[:1], max_new_tokens=3)[0].first_token_ms
    assert first is not None and first > 0


def test_pieces_and_stop_texts_are_those_of_the_same_weights_here(remote, local):
    (whole,) = local.generate(PROMPTS[:1], max_new_tokens=16)
    stop = whole.text[len(whole.text) // 2 :][:3]

    def followed(engine):
        pieces = []
        (answer,) = engine.write([Prompt(PROMPTS[0], 16, (stop,), pieces.append)])
        assert "".join(pieces) == answer.text
        return answer.text, answer.finish_reason

    assert followed(remote) == followed(local)
    assert followed(remote)[1] == "stop"


def test_answer_that_is_cancelled_ends_on_the_server(remote, seen):
    seen.pause_s = 0.02
    pieces = []
    (answer,) = remote.write([Prompt(PROMPTS[0], 500, on_text=pieces.append, is_cancelled=lambda: bool(pieces))])
    assert answer.finish_reason == "cancelled"
    deadline = time.monotonic() + 5
    while seen.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen.running == 0
    assert seen.n_tokens < 100


def test_questions_of_any_length_are_under_way_at_once(remote, local, seen):
    seen.pause_s = 0.02
    prompts = [f"{PROMPTS[0]}{'and ' * n}" for n in range(8)]

    async def ask_all():
        batcher = Batcher(remote)
        try:
            asked = [batcher.complete(prompt, n_tokens=len(prompt), max_new_tokens=6) for prompt in prompts]
            return await asyncio.gather(*asked)
        finally:
            batcher.retire()

    answers = [made.completion.text for made in asyncio.run(ask_all())]
    assert answers == [local.generate([prompt], max_new_tokens=6)[0].text for prompt in prompts]
    assert seen.most_running == 8


def test_texts_are_as_likely_as_here(remote, local):
    texts = ["A Type 2 plug carries three phases.", "Cables age."]
    for there, here in zip(remote.score(texts), local.score(texts), strict=True):
        assert there.n_tokens == here.n_tokens
        assert there.nll == pytest.approx(here.nll, abs=1e-5)


def test_faults_of_the_server_are_told_without_the_prompt(remote, seen):
    seen.is_failing = True
    with pytest.raises(RuntimeError, match=r"answered with status 500\.$"):
        remote.generate(PROMPTS, max_new_tokens=2)


def test_server_that_sends_text_only_is_refused(remote, seen):
    seen.sends_ids = False
    with pytest.raises(RuntimeError, match="sends no token ids"):
        remote.generate(PROMPTS[:1], max_new_tokens=2)


def test_server_that_is_not_there_or_has_another_model_is_told_at_once(folder, url):
    with pytest.raises(UserError, match=r"has tiny@1, not tiny@2: start vLLM with the file"):
        RemoteEngine(folder, url, "tiny@2")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 does not answer \(ConnectError\)"):
        RemoteEngine(folder, "http://127.0.0.1:9", "tiny@1")


def test_server_with_an_engine_url_answers_by_it_and_refuses_a_version_that_it_has_not(tmp_path, url, seen):
    store, tasks_dir = Store(tmp_path / "data"), versions.write_task(tmp_path / "tasks")
    for number in (1, 2):
        versions.register(store, tmp_path, number)
    load = partial(load_from_registry, engine_url=url)

    async def ask(model):
        live = await open_release(load, store.root, tasks_dir, model, ServingConfig())
        try:
            return await live.worker.answer(Ask("r1", "Which plug?"))
        finally:
            live.close()

    reply = asyncio.run(ask("tiny@1"))
    assert (reply.model_version, reply.n_completion_tokens > 0) == ("tiny@1", True)
    assert seen.bodies[-1]["model"] == "tiny@1"
    with pytest.raises(UserError, match="not tiny@2"):
        asyncio.run(ask("tiny@2"))
