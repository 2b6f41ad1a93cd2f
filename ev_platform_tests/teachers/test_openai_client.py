"""The OpenAI-compatible client against a small server of its kind: statuses, errors, retries, no key told."""

import asyncio
import json
import logging
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from pydantic import BaseModel

from ev_platform.errors import UserError
from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.calls import Call, Usage
from ev_platform.teachers.openai_client import OpenAIClient

KEY = "sk-very-secret-4711"


class Answer(BaseModel):
    answer: str
    is_sure: bool = True


ANSWER = '{"answer": "32 A", "is_sure": true}'


def completion(content=ANSWER, finish_reason="stop", **message):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "local-model-q8",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 9,
            "total_tokens": 39,
            "prompt_tokens_details": {"cached_tokens": 10},
        },
    }


def error(status, message, code=None, param=None, **headers):
    return status, {"error": {"message": message, "type": "error", "code": code, "param": param}}, headers


class ChatServer:
    """Answers from `script`, one entry a request and the last one ever after: a body, (status, body, headers), seconds
    to wait before a good answer, or None for a dropped connection. Keeps what it was asked."""

    def __init__(self):
        self.script, self.requests = [completion()], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                entry = server.script[min(len(server.requests), len(server.script) - 1)]
                server.requests.append(
                    (self.path, {k.lower(): v for k, v in self.headers.items()}, body, time.monotonic())
                )
                if entry is None:
                    self.close_connection = True
                    return
                if isinstance(entry, float):
                    time.sleep(entry)
                    entry = completion()
                status, answer, headers = (200, entry, {}) if isinstance(entry, dict) else entry
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    fixed = {"content-type": "application/json", "content-length": str(len(data)), "x-request-id": "r1"}
                    for name, value in (fixed | headers).items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def call(**changes):
    fields = {"purpose": "answer", "model": "local-model", "prompt_version": "v1", "system": "Be brief."}
    fields |= {"prompt": "Which current?", "schema": Answer, "max_tokens": 64}
    return Call(**{**fields, **changes})


def send(server, *calls, **config):
    config = TeacherConfig(provider="openai_compatible", model="local-model", **{"timeout_s": 5, **config})
    client = OpenAIClient(config, KEY, getattr(server, "url", server))

    async def run():
        try:
            return await asyncio.gather(*map(client.send, calls or (call(),)))
        finally:
            await client.aclose()

    return asyncio.run(run())


def test_send_ok_asks_for_the_strict_schema_and_returns_text_and_usage(server):
    [reply] = send(server)
    assert (reply.status, reply.text, reply.detail) == ("ok", ANSWER, None)
    assert reply.usage == Usage(n_input_tokens=20, n_output_tokens=9, n_cache_read_tokens=10)
    assert (reply.model, reply.request_id, reply.n_unsettled) == ("local-model-q8", "r1", 0)
    assert 0 < reply.latency_ms < 5000
    [(path, headers, body, _)] = server.requests
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["model"], body["max_tokens"]) == ("local-model", 64)
    asked = body["response_format"]["json_schema"]
    assert asked["strict"] is True
    assert asked["schema"]["additionalProperties"] is False
    assert asked["schema"]["required"] == ["answer", "is_sure"]


@pytest.mark.parametrize(
    ("body", "status", "text", "detail"),
    [
        (completion("not JSON"), "ok", "not JSON", None),  # `ask` judges the text
        (completion('{"answer": "3', "length"), "truncated", '{"answer": "3', "the reply hit max_tokens"),
        (completion("", "content_filter"), "refused", "", "a content filter cut the reply"),
        (completion(None, refusal="I cannot help."), "refused", "", "the model declined: I cannot help."),
        (completion("", "tool_calls"), "failed", "", "the reply stopped for tool_calls"),
    ],
)
def test_send_finish_reason_gives_the_status_and_keeps_the_usage(server, body, status, text, detail):
    server.script = [body]
    [reply] = send(server)
    assert (reply.status, reply.text, reply.detail) == (status, text, detail)
    assert reply.usage.n_output_tokens == 9


@pytest.mark.parametrize("body", [b"<html>welcome to the proxy</html>", b'{"choices": []}'])
def test_send_reply_that_is_no_completion_is_failed_and_unsettled(server, body):
    server.script = [(200, body, {})]
    [reply] = send(server)
    assert (reply.status, reply.n_unsettled) == ("failed", 1)
    assert reply.detail.startswith("the server's reply cannot be read: ")


def test_send_429_and_500_are_repeated_after_retry_after(server):
    server.script = [error(429, "slow down", retry_after="1.2"), error(500, "oops"), completion()]
    [reply] = send(server)
    assert reply.status == "ok"
    first, second, _ = (at for *_, at in server.requests)
    assert 1.2 <= second - first < 2.2


def test_send_500_that_stays_is_a_failed_reply(server):
    server.script = [error(500, "oops")]
    [reply] = send(server, max_retries=1)
    assert (reply.status, reply.detail, reply.n_unsettled) == ("failed", "the server answered 500: oops", 0)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        (1.5, "no answer within 0.3 s"),
        (None, "the connection broke off before the answer (RemoteProtocolError)"),
        (error(504, "upstream"), "a server before the model answered 504"),
    ],
)
def test_send_attempt_that_broke_off_is_not_repeated_and_marked_unsettled(server, entry, detail):
    server.script = [entry, completion()]
    [reply] = send(server, timeout_s=0.3)
    assert (reply.status, reply.detail, reply.n_unsettled) == ("failed", detail, 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (error(401, f"bad key {KEY}"), r"answered 401: bad key \*\*\*: set a valid API key"),
        (error(403, "no access"), "403: no access: use a key that may use local-model"),
        (error(404, "no such model"), r"404: no such model: correct teacher.model \(local-model\) or teacher.base_url"),
        (error(429, "no money", code="insufficient_quota"), "429: no money: put the account in order"),
        (error(400, "no schemas here", param="response_format"), "this concerns every call to local-model"),
    ],
)
def test_send_what_is_wrong_with_all_calls_is_one_sentence_without_the_key(server, entry, sentence, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = [entry]
    with pytest.raises(UserError, match=sentence) as caught:
        send(server, max_retries=0)
    assert KEY not in str(caught.value) + caplog.text
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("code", "status"), [(None, "failed"), ("content_filter", "refused")])
def test_send_400_about_one_call_is_a_reply(server, code, status):
    server.script = [error(400, "your messages are too long", code=code, param="messages")]
    [reply] = send(server)
    assert (reply.status, reply.detail) == (status, "the server answered 400: your messages are too long")
    assert len(server.requests) == 1


def test_send_to_a_closed_port_is_a_user_error(server):
    server.close()
    with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/v1/? cannot be reached .*start the server"):
        send(server.url, max_retries=0)


def test_count_tokens_is_a_quarter_of_the_bytes():
    client = OpenAIClient(TeacherConfig(provider="openai_compatible", model="m"), "none", "http://127.0.0.1:9/v1")
    n = client.count_tokens(call())
    assert client.count_tokens(call(prompt="Which current?" + "ä" * 40)) == n + 20
