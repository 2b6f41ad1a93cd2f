"""Answers piece by piece, over real connections: what comes when, what a fault looks like, and who stops the engine."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from typing import cast

import httpx
import pytest
from fastapi import Request

from ev_platform.decoding import Completion
from ev_platform.serving import sse
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Found
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import KeyLimits, create_key
from ev_platform.serving.models import Pieces
from ev_platform.serving.observe import Seen
from ev_platform_tests.serving.fakes import FakeEngine, fake_release
from ev_platform_tests.serving.server import QUESTION, Server, error_of

WORDS = ["Every ", "three ", "months."]
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
ANSWERS = {"question": QUESTION, "stream": True}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/answers", ANSWERS)]


class WritingEngine(FakeEngine):
    """Writes word by word when it may, and says when it was told to stop."""

    n_workers = 1

    def __init__(self, words=WORDS, explodes=False):
        super().__init__()
        self.words, self.explodes = words, explodes
        self.has_begun, self.was_stopped = threading.Event(), threading.Event()
        self.prompts = []

    def score(self, texts):
        raise NotImplementedError

    def write(self, batch, *, temperature=0.0, seed=0):
        return [self._write(prompt) for prompt in batch]

    def _write(self, prompt):
        self.prompts.append(prompt.text)
        written = ""
        for word in self.words:
            self.has_begun.set()
            while not self.may_answer.wait(0.005) or prompt.is_cancelled():
                if prompt.is_cancelled():
                    self.was_stopped.set()
                    return self._end(prompt, written, "cancelled")
            if self.explodes and written:
                raise RuntimeError(f"the engine failed at {prompt.text!r}")
            written += word
            if prompt.on_text:
                prompt.on_text(word)
        return self._end(prompt, written, "stop")

    def _end(self, prompt, written, reason):
        done = Completion(written.strip(), self.count_tokens(prompt.text), len(self.words), 1.0, reason, 0.5)
        prompt.on_end(done)
        return done


@pytest.fixture
def engine():
    return WritingEngine()


@pytest.fixture
def server(tmp_path, engine):
    with Server(tmp_path, fake_release(engine=engine)) as server:
        yield server
        engine.may_answer.set()


def events_of(lines):
    """Yield (name, data) of each event as it comes; a comment is (None, its text)."""
    name, data = None, []
    for line in lines:
        if line.startswith(":"):
            yield None, line
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield name, "\n".join(data)
            name, data = None, []


@contextlib.contextmanager
def opened(server, path, body):
    with server.client.stream("POST", path, json=body) as answer:
        yield answer, events_of(answer.iter_lines())


@contextlib.contextmanager
def asked(server, path, body):
    """Ask, and go away at the end of the block without having read anything."""
    url = httpx.URL(server.url)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(url.host, url.port)) as connection:
        connection.request("POST", path, json.dumps(body), headers)
        yield


def until_waiting(server, number, within_s=5):
    until = time.monotonic() + within_s
    while asyncio.run(server.backend.describe("fake_task")).waiting != number:
        assert time.monotonic() < until, f"not {number} wait"
        time.sleep(0.005)


def logged(server, within_s=5):
    """Return the first row of the request log, as soon as it is there."""
    until = time.monotonic() + within_s
    while (rows := read_journal(server.root, "requests")).is_empty():
        assert time.monotonic() < until, "nothing was logged"
        time.sleep(0.01)
    return rows.row(0, named=True)


def test_answer_comes_as_citations_then_pieces_then_the_whole(server):
    with opened(server, *ROUTES[1]) as (answer, events):
        got = [(name, json.loads(data)) for name, data in events]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert [name for name, _ in got] == ["citations", "delta", "delta", "delta", "done"]
    first, done = got[0][1], got[-1][1]
    assert (first["id"], first["model"]) == (answer.headers["x-request-id"], "fake_task@3")
    assert "".join(data["text"] for _, data in got[1:-1]) == done["answer"] == "Every three months."
    assert done["timings"]["first_token_ms"] == 0.5
    assert first["citations"] == done["citations"]
    whole = server.answer().json()
    for changing in ("id", "created", "timings"):
        assert whole.pop(changing) is not None
        done.pop(changing)
    assert done == whole
    row = logged(server)
    assert (row["is_streamed"], row["status"], row["answer"]) == (True, 200, "Every three months.")


@pytest.mark.parametrize("is_usage_asked", [False, True])
def test_chat_comes_as_openai_chunks_with_the_sources_in_the_last(server, is_usage_asked):
    body = CHAT | ({"stream_options": {"include_usage": True}} if is_usage_asked else {})
    with opened(server, "/v1/chat/completions", body) as (answer, events):
        *data, end = [data for _, data in events]
    assert end == "[DONE]"
    chunks = [json.loads(text) for text in data]
    usage = chunks.pop() if is_usage_asked else None
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{answer.headers['x-request-id']}"}
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "fake_task@3")}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS), {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert [source["chunk_id"] for source in chunks[-1]["sources"]] == ["chk_manual", "chk_cable"]
    assert not any("sources" in chunk for chunk in chunks[:-1])
    assert all(("usage" in chunk) == is_usage_asked for chunk in chunks)
    if usage:
        assert usage["choices"] == []
        assert usage["usage"] == server.ask().json()["usage"]


def test_passages_are_sent_before_the_first_word_and_words_as_they_are_written(server, engine):
    engine.may_answer.clear()
    with opened(server, *ROUTES[1]) as (_, events):
        assert next(events)[0] == "citations"
        engine.may_answer.set()
        assert [name for name, _ in events] == ["delta", "delta", "delta", "done"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_silence_is_broken_so_that_proxies_keep_the_line_open(server, engine, monkeypatch, path, body):
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    engine.may_answer.clear()
    with opened(server, path, body) as (_, events):
        next(events)
        assert [next(events)[1].startswith(":") for _ in range(2)] == [True, True]
        engine.may_answer.set()
        rest = [data for _, data in events if not data.startswith(":")]
    assert len(rest) >= 4


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_fault_after_the_start_is_told_in_the_stream_and_logged(tmp_path, capfd, path, body):
    with Server(tmp_path, fake_release(engine=WritingEngine(explodes=True))) as server:
        with opened(server, path, body) as (answer, events):
            got = list(events)
        row = logged(server)
    assert answer.status_code == 200
    name, data = got[-1]
    assert name == ("error" if path == "/v1/answers" else None)
    assert set(json.loads(data)) == {"error"}
    assert json.loads(data)["error"]["code"] == "internal_error"
    assert (row["status"], row["error"], row["answer"]) == (200, "internal_error", "Every ")
    assert (row["finish_reason"], row["n_completion_tokens"]) == ("cancelled", 1)
    assert row["n_prompt_tokens"] > 0
    assert row["model_version"] == "fake_task@3"
    assert QUESTION not in "".join(capfd.readouterr())


def test_answer_that_takes_too_long_ends_with_the_refusal(tmp_path, engine):
    engine.may_answer.clear()
    with Server(tmp_path, fake_release(engine=engine), config=ServingConfig(request_timeout_s=0.2)) as server:
        with opened(server, *ROUTES[1]) as (_, events):
            *_, (name, data) = events
        assert engine.was_stopped.wait(5)
    assert (name, json.loads(data)["error"]["code"]) == ("error", "timeout")


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_refusal_before_the_start_is_no_stream(server, path, body):
    for fields, status in [({"model": "other"}, 404), ({"max_tokens": 49}, 400), ({"temperature": 9}, 422)]:
        answer = server.client.post(path, json=body | fields)
        assert answer.status_code == status
        error_of(answer)


def test_abstention_is_streamed_too(tmp_path, engine):
    release = fake_release(engine=engine, min_score=0.9, no_answer="I do not know.")
    with Server(tmp_path, release) as server, opened(server, *ROUTES[1]) as (_, events):
        got = [(name, json.loads(data)) for name, data in events]
    assert [name for name, _ in got] == ["citations", "delta", "done"]
    assert (got[1][1]["text"], got[2][1]["abstained"]) == ("I do not know.", True)
    assert not engine.has_begun.is_set()


def test_abstention_that_is_left_is_logged_as_one():
    seen = Seen()
    request = Request({"type": "http", "state": {"seen": seen}})
    stream = sse.EventStream(request, Found("fake_task@3", ()), cast("Pieces", None), lambda _: [])
    stream._written.append("I do not know.")
    stream._tell_what_it_has()
    reply = seen.reply
    assert reply is not None
    assert (reply.text, reply.is_abstention, reply.n_completion_tokens) == ("I do not know.", True, 0)


def test_model_that_writes_whole_answers_is_streamed_in_one_piece(tmp_path):
    with Server(tmp_path) as server, opened(server, *ROUTES[1]) as (_, events):
        assert [name for name, _ in events] == ["citations", "delta", "done"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_client_that_leaves_stops_the_engine_and_is_logged(server, engine, path, body, is_streamed):
    engine.may_answer.clear()
    if is_streamed:
        with opened(server, path, body) as (_, events):
            next(events)
            assert engine.has_begun.wait(5)
    else:
        with asked(server, path, body | {"stream": False}):
            assert engine.has_begun.wait(5)
    assert engine.was_stopped.wait(5)
    row = logged(server)
    assert (row["status"], row["error"], row["is_streamed"]) == (499, "client_left", is_streamed)
    engine.may_answer.set()
    assert server.answer().json()["answer"] == "Every three months."


def test_client_that_leaves_while_it_waits_is_never_written_for(server, engine):
    engine.may_answer.clear()
    with opened(server, *ROUTES[1]) as (_, events):
        next(events)
        assert engine.has_begun.wait(5)
        with asked(server, "/v1/answers", {"question": "Who waits?"}):
            until_waiting(server, 1)
        until_waiting(server, 0)
        engine.words = ["Only ", "once."]
        engine.may_answer.set()
        assert [name for name, _ in events][-1] == "done"
    assert server.answer("Who is next?").json()["answer"] == "Only once."
    assert not any("Who waits?" in prompt for prompt in engine.prompts)
    rows = read_journal(server.root, "requests").sort("asked_at").select("question", "status").rows()
    assert rows == [(QUESTION, 200), ("Who waits?", 499), ("Who is next?", 200)]


def test_stream_that_breaks_counts_for_its_key(tmp_path):
    with Server(tmp_path, fake_release(engine=WritingEngine(explodes=True))) as server:
        client = server.client_of(create_key(tmp_path, "small", limits=KeyLimits(tokens_per_day=1)))
        broken, refused = (client.post("/v1/answers", json=ANSWERS) for _ in range(2))
    assert "event: error" in broken.text
    assert (refused.status_code, error_of(refused)["code"]) == (429, "quota_exceeded")
