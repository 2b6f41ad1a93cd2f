"""What serving costs over calling the engine, and what it gains: the bundled model, one configuration, one run.

Overhead: the same prompts one after the other, straight to the engine and over HTTP, whole and streamed; the median of
the differences. Throughput: 16 clients, each of which asks again as soon as it is answered, against the engine's own
batches of the same 16 prompts, and against transformers' `generate` behind a route of a plain FastAPI application under
the same uvicorn.

The engine's own batch of 16 is `engine.generate` of 16 prompts: those of equal length go together, as many batches at
once as it has workers. Of prompts of natural lengths few are equal, so that it is mostly one prompt a worker; the
other workload has prompts that are all of one length.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import polars as pl
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from ev_platform.engine import TransformersEngine, load_engine
from ev_platform.engine_base import Engine
from ev_platform.registry import Release
from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.replay import served
from ev_platform.serving.worker import LocalBackend
from ev_platform.tasks.types import get_task_type
from ev_platform.training.packages import write_ctranslate2

AT_ONCE = 16
N_ASKED = int(os.environ.get("EV_BENCH_REQUESTS", "32"))  # of each workload, a multiple of 16
N_OVERHEAD = int(os.environ.get("EV_BENCH_OVERHEAD", "24"))
NEW_TOKENS = 24
INSTRUCTIONS = "Answer the question about electric vehicle charging stations from the passages, in a sentence."
CONFIG = ServingConfig(request_timeout_s=600)

# Returns answer and tokens of a message.
Ask = Callable[[str], tuple[str, int]]


def release_of(engine: Engine) -> Release:
    task_type = get_task_type("closed_book_qa")  # what is found for a question is part of the message here
    return Release("bench@1", task_type, INSTRUCTIONS, engine, None, {}, 1, NEW_TOKENS)


def load_bench(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load the release in a replica, another process; its weights lie beside the keys."""
    return release_of(load_engine(data_root / "serving_model"))


def natural(rows: pl.DataFrame) -> list[str]:
    messages = [messages[-2]["content"] for messages in rows["messages"].to_list()]
    return list(itertools.islice(itertools.cycle(messages), N_ASKED))


def equal(engine: Engine, messages: Sequence[str]) -> list[str]:
    """Return as many messages of one length, made by cutting words off and filling up with full stops."""
    made = []
    length = 200
    for message in messages:
        words = (message + " " + message * 3).split()
        while engine.count_tokens(" ".join(words)) > length - 8:
            words.pop()
        text = " ".join(words)
        while engine.count_tokens(text) < length:
            text += " a"
        made.append(text)
    assert {engine.count_tokens(render(engine, text)) for text in made} == {length + overhead_of(engine)}
    return made


def overhead_of(engine: Engine) -> int:
    return engine.count_tokens(render(engine, "a a")) - engine.count_tokens("a a")


def render(engine: Engine, message: str) -> str:
    return release_of(engine).render(message, [])


@contextlib.contextmanager
def asking(url: str, key: str = "none", *, is_streamed: bool = False) -> Iterator[Ask]:
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600, trust_env=False, limits=limits
    ) as client:

        def whole(message: str) -> tuple[str, int]:
            body = {"messages": [{"role": "user", "content": message}]}
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["message"]["content"], reply.json()["usage"]["completion_tokens"]

        def streamed(message: str) -> tuple[str, int]:
            body = {"messages": [{"role": "user", "content": message}], "stream": True}
            text = ""
            with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                assert reply.status_code == 200
                for line in reply.iter_lines():
                    if line.startswith("data: {"):
                        for choice in json.loads(line[6:])["choices"]:
                            text += choice["delta"].get("content") or ""
            return text, 0

        yield streamed if is_streamed else whole


@contextlib.contextmanager
def in_process(engine: Engine, folder: Path) -> Iterator[tuple[str, str]]:
    """Serve in this process: uvicorn, the whole application, no Ray."""
    key = create_key(folder, "bench", scopes=("query",), limits=UNLIMITED)
    backend = LocalBackend({"bench": LiveRelease(release_of(engine), config=CONFIG)})
    with served(create_api(backend, folder, CONFIG), backend) as url:
        yield url, key


@contextlib.contextmanager
def over_ray(folder: Path) -> Iterator[tuple[str, str]]:
    from ev_platform.serving.endpoint import Endpoint
    from ev_platform.serving.run import serving

    key = create_key(folder, "bench", scopes=("query",), limits=UNLIMITED)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    endpoint = Endpoint("127.0.0.1", port)
    options = {"data_root": folder, "tasks_dir": folder, "endpoint": endpoint, "config": CONFIG}
    with serving(["bench"], load=load_bench, **options) as url:
        yield url, key


class Question(BaseModel):
    messages: list[dict[str, str]]


@contextlib.contextmanager
def plain_fastapi(base: Path) -> Iterator[str]:
    """Serve as a first try would: a route that calls transformers."""
    engine = TransformersEngine(base)
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def answer(question: Question) -> dict:
        prompt = render(engine, question.messages[-1]["content"])
        (made,) = engine.generate([prompt], max_new_tokens=NEW_TOKENS)
        return {
            "choices": [{"message": {"content": made.text}}],
            "usage": {"completion_tokens": made.n_completion_tokens},
        }

    with served(app) as url:
        yield url


def overhead_ms(direct: Ask, ask: Ask, messages: Sequence[str]) -> float:
    """Return the median of what one way takes longer than the other; who begins changes each time."""
    differences = []
    for one in (direct, ask):
        one(messages[0])
    for number, message in enumerate(messages):
        spent = {}
        for one in (direct, ask) if number % 2 else (ask, direct):
            started = time.perf_counter()
            text, _ = one(message)
            spent[one] = time.perf_counter() - started, text
        assert spent[direct][1] == spent[ask][1]
        differences.append((spent[ask][0] - spent[direct][0]) * 1000)
    return statistics.median(differences)


def at_once(ask: Ask, messages: Sequence[str]) -> tuple[float, list[str]]:
    """Return tokens per second of 16 clients that ask again as soon as they are answered, and the answers."""
    with ThreadPoolExecutor(AT_ONCE) as clients:
        list(clients.map(ask, messages[:2]))
        started = time.perf_counter()
        answers = list(clients.map(ask, messages))
        spent_s = time.perf_counter() - started
    return sum(n for _, n in answers) / spent_s, [text for text, _ in answers]


def own_batches(engine: Engine, messages: Sequence[str]) -> tuple[float, list[str]]:
    prompts = [render(engine, message) for message in messages]
    engine.generate(prompts[:2], max_new_tokens=NEW_TOKENS)
    started = time.perf_counter()
    made = []
    for first in range(0, len(prompts), AT_ONCE):
        made += engine.generate(prompts[first : first + AT_ONCE], max_new_tokens=NEW_TOKENS)
    spent_s = time.perf_counter() - started
    return sum(one.n_completion_tokens for one in made) / spent_s, [one.text for one in made]


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "serving_model").mkdir()
    write_ctranslate2(base, folder / "serving_model")
    return folder


def test_overhead_of_http(folder: Path, rows: pl.DataFrame) -> None:
    engine = load_engine(folder / "serving_model")
    messages = natural(rows)[:N_OVERHEAD]

    def direct(message: str) -> tuple[str, int]:
        (made,) = engine.generate([render(engine, message)], max_new_tokens=NEW_TOKENS)
        return made.text, made.n_completion_tokens

    figures = {}
    servers = {"uvicorn, one process": in_process(engine, folder), "Ray Serve": over_ray(folder)}
    for name, server in servers.items():
        with server as (url, key):
            # Not counted: for half a minute after its start Ray's own processes take what the answers then lack.
            with asking(url, key, is_streamed=True) as ask:
                overhead_ms(direct, ask, messages)
            for is_streamed in (False, True):
                with asking(url, key, is_streamed=is_streamed) as ask:
                    label = f"{name}, {'streamed' if is_streamed else 'whole'}"
                    figures[label] = overhead_ms(direct, ask, messages)
    print(f"\n{'overhead of HTTP over the engine, one client':<48} {'median ms':>10} (target: at most 10)")
    for name, value in figures.items():
        print(f"{name:<48} {value:10.1f}")


def test_throughput_at_16(base: Path, folder: Path, rows: pl.DataFrame) -> None:
    engine = load_engine(folder / "serving_model")
    workloads = {"natural lengths": natural(rows), "equal lengths": equal(engine, natural(rows))}
    speeds: dict[str, dict[str, float]] = {}
    answers: dict[str, dict[str, list[str]]] = {}

    def note(way: str, run: Callable[[Sequence[str]], tuple[float, list[str]]]) -> None:
        for workload, messages in workloads.items():
            speed, texts = run(messages)
            speeds.setdefault(workload, {})[way] = speed
            answers.setdefault(workload, {})[way] = texts

    note("engine's own batch of 16", lambda messages: own_batches(engine, messages))
    with in_process(engine, folder) as (url, key), asking(url, key) as ask:
        note("served, uvicorn, one process", lambda messages: at_once(ask, messages))
    with over_ray(folder) as (url, key), asking(url, key) as ask:
        note("served, Ray Serve", lambda messages: at_once(ask, messages))
    with plain_fastapi(base) as url, asking(url) as ask:
        note("transformers behind plain FastAPI", lambda messages: at_once(ask, messages[:AT_ONCE]))
    for workload, found in speeds.items():
        own, plain = found["engine's own batch of 16"], found["transformers behind plain FastAPI"]
        print(f"\n{f'{AT_ONCE} clients, {workload}':<36} {'tokens/s':>10} {'of own':>8} {'of plain':>9} {'same':>8}")
        for way, speed in found.items():
            texts, expected = answers[workload][way], answers[workload]["engine's own batch of 16"]
            n_same = sum(a == b for a, b in zip(texts, expected, strict=False))
            same = "" if "transformers" in way else f"{n_same}/{len(texts)}"
            print(f"{way:<36} {speed:10.1f} {speed / own:8.2f} {speed / plain:9.2f} {same:>8}")
    print("targets of what is served: 0.85 of own, 2.5 of plain; `same`: answers equal to those of the own batch")
