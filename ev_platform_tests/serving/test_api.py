import contextlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ev_platform.serving.api import create_api
from ev_platform.serving.gate import MAX_BODY_BYTES
from ev_platform.serving.keys import create_key, revoke_key
from ev_platform.serving.replay import served
from ev_platform.serving.schemas import MAX_CONTENT_CHARS
from ev_platform.serving.worker import MAX_PENDING
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.serving.fakes import fake_release

QUESTION = "How often must one test the RCD?"


class Server:
    """The application on a loopback port, with a client that holds a key."""

    def __init__(self, root, release=None):
        self.root = root
        self.key = create_key(root, "tests")
        self.release = release or fake_release()
        self._open = contextlib.ExitStack()
        self.url = self._open.enter_context(served(create_api(self.release, root)))
        headers = {"Authorization": f"Bearer {self.key}"}
        self.client = self._open.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=20))

    def ask(self, content=QUESTION, **fields):
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def close(self):
        self._open.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("data"))
    yield server
    server.close()


def error_of(answer):
    """Return the error, after checking that it has OpenAI's form."""
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return error


def test_healthz_without_key_names_the_model(server):
    answer = httpx.get(f"{server.url}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "model": "fake_task@3"})


def test_question_with_key_is_answered_in_openai_form(server):
    answer = server.ask()
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake_task@3"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    usage = body["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_prompt_is_the_shared_template_with_passages_best_first(server):
    prompt = server.ask().json()["choices"][0]["message"]["content"].partition(" | ")[2]
    assert prompt == (
        "system: Answers questions about charging.\n"
        "user: Operations manual > RCD\nTest the RCD every three months.\n\n"
        "Cable sizing > Rating\nMode 3 cables are rated for 32 A.\n\n"
        f"Question: {QUESTION}"
    )


def test_sources_name_page_licence_and_hour_in_the_prompt_order(server):
    first, second = server.ask().json()["sources"]
    assert first == {
        "chunk_id": "chk_manual",
        "title": "Operations manual",
        "heading": "Operations manual > RCD",
        "url": "https://example.org/operations-manual.pdf",
        "page": 7,
        "licence": "CC-BY-SA-4.0",
        "publisher": "Example Works",
        "fetched_at": "2026-11-03T09:00:00Z",
        "score": pytest.approx(0.2),
        "text": "Test the RCD every three months.",
    }
    assert (second["chunk_id"], second["page"]) == ("chk_cable", None)


def test_release_without_retrieval_is_asked_the_bare_question_and_names_no_source(tmp_path):
    labels = get_task_type("classification")
    release = fake_release(
        task_type=labels, instructions=labels.instructions("Route the text.", {"card": ""}), retriever=None, chunks={}
    )
    server = Server(tmp_path, release)
    try:
        body = server.ask("Where is my card?").json()
    finally:
        server.close()
    assert body["sources"] == []
    prompt = body["choices"][0]["message"]["content"].partition(" | ")[2]
    assert prompt == release.engine.render(labels.prompt(release.instructions, "Where is my card?", []))
    assert "- card" in prompt


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": 0}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": None, "seed": None, "max_tokens": None}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": 1.5, "seed": 7, "max_tokens": 3}, "temperature=1.5 seed=7 max_new_tokens=3 "),
        ({"max_completion_tokens": 4}, "temperature=0.0 seed=0 max_new_tokens=4 "),
    ],
)
def test_generation_options_reach_the_engine_unchanged(server, fields, expected):
    assert server.ask(**fields).json()["choices"][0]["message"]["content"].startswith(expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "fake_task@3"},
        {"model": "fake_task"},
        {"n": 1, "stop": None, "tools": [], "top_p": 1.0, "stream": False, "response_format": {"type": "text"}},
        {"user": "someone", "metadata": {"a": "b"}},
    ],
)
def test_options_that_ask_for_nothing_else_are_accepted(server, fields):
    assert server.ask(**fields).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("stop", "."), ("tools", [{}]), ("top_p", 0.5), ("logprobs", True), ("response_format", {"type": "x"})],
)
def test_option_that_would_change_the_answer_is_refused_by_name(server, field, value):
    answer = server.ask(**{field: value})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, field, "unsupported")
    assert error["message"].startswith(f"{field} is not supported")


def test_stream_is_refused_with_a_sentence(server):
    answer = server.ask(stream=True)
    assert answer.status_code == 400
    assert error_of(answer)["message"] == "Streaming is not supported: send stream=false or leave it out."


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["system", "user"], "system message"),
        (["developer", "user"], "system message"),
        (["user", "assistant", "user"], "exactly one message"),
        (["user", "user"], "exactly one message"),
        (["assistant"], "exactly one message"),
    ],
)
def test_chat_that_was_not_evaluated_is_refused(server, roles, reason):
    messages = [{"role": role, "content": "text"} for role in roles]
    answer = server.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert reason in error_of(answer)["message"]


def test_max_tokens_above_the_cap_is_refused_naming_it(server):
    answer = server.ask(max_tokens=49)
    assert answer.status_code == 400
    assert "max_tokens is 49 but the cap is 48" in error_of(answer)["message"]


def test_two_different_limits_are_refused(server):
    answer = server.ask(max_tokens=3, max_completion_tokens=4)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "max_tokens")


def test_prompt_beyond_the_window_is_refused_with_the_figures(server):
    answer = server.ask("word " * 200)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "answer up to 48" in error["message"]
    assert "window of 200" in error["message"]


def test_other_model_is_not_found(server):
    answer = server.ask(model="gpt-4o")
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x" * (MAX_CONTENT_CHARS + 1)}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "hi"}], "temperature": 2.1}, "temperature"),
        ({"messages": [{"role": "user", "content": "hi"}], "temperature": "0"}, "temperature"),
        ({"messages": [{"role": "user", "content": "hi"}], "temperature": float("nan")}, "temperature"),
        ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}], "seed": -1}, "seed"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ([], "body"),
    ],
)
def test_malformed_field_is_named(server, body, param):
    answer = server.client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (422, param)
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("content", [b'{"messages": ', b"\xff\xfe", b"[" * 60_000])
def test_body_that_is_not_json_is_refused(server, content):
    answer = server.client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ev_00000000_" + "x" * 43},
        {"Authorization": "Basic dXNlcjpwYXNz"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/anything"), ("GET", "//healthz")],
)
def test_request_without_a_good_key_is_refused_before_its_body_is_read(server, headers, method, path):
    answer = httpx.request(method, f"{server.url}{path}", headers=headers, content=b"{not json")
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_key_revoked_while_serving_is_refused_at_once(server):
    key = create_key(server.root, "short-lived")
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    revoke_key(server.root, key[3:11])
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401


def test_models_lists_the_served_version(server):
    body = server.client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [(card["id"], card["object"]) for card in body["data"]] == [("fake_task@3", "model")]


def test_unknown_path_and_method_are_refused_in_openai_form(server):
    for method, path, status in [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)]:
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("is_length_declared", [True, False])
def test_body_above_the_limit_is_refused(server, is_length_declared):
    body = b" " * (MAX_BODY_BYTES + 1)
    content = body if is_length_declared else iter([body[:40_000], body[40_000:]])
    answer = server.client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert str(MAX_BODY_BYTES) in error_of(answer)["message"]


def test_body_in_pieces_below_the_limit_is_answered(server):
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
    answer = server.client.post(
        "/v1/chat/completions",
        content=iter([body[:10], body[10:]]),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 200


def test_more_questions_than_may_wait_are_refused_and_the_rest_answered_one_by_one(server):
    engine = server.release.engine
    engine.most_running = 0
    engine.may_answer.clear()
    with ThreadPoolExecutor(MAX_PENDING + 4) as pool:
        futures = [pool.submit(server.ask) for _ in range(MAX_PENDING + 4)]
        refused = []
        deadline = time.monotonic() + 10
        while len(refused) < 4 and time.monotonic() < deadline:
            refused = [future.result() for future in futures if future.done()]
            time.sleep(0.01)
        engine.may_answer.set()
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in refused] == [503] * 4
    assert error_of(refused[0])["code"] == "overloaded"
    assert refused[0].headers["retry-after"] == "1"
    assert sorted(answer.status_code for answer in answers) == [200] * MAX_PENDING + [503] * 4
    assert engine.most_running == 1
    assert server.ask().status_code == 200


def test_engine_failure_is_told_without_details_and_serving_goes_on(server):
    answer = server.ask("explode")
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (500, "server_error")
    assert "engine failed" not in answer.text
    assert server.ask().status_code == 200


def test_no_answer_lets_other_sites_read_it(server):
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server.url}/v1/chat/completions", headers=headers)
    answer = server.client.get("/v1/models", headers=headers)
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_logs_hold_neither_keys_nor_questions(server, caplog):
    with caplog.at_level(logging.DEBUG):
        server.ask("a private matter, explode")
        server.ask("a private matter", stream=True)
        server.ask("a private matter", temperature=9)
    ours = [record for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    assert any(record.levelname == "ERROR" and "RuntimeError" in record.getMessage() for record in ours)
    text = "\n".join(logging.Formatter().format(record) for record in ours)
    assert server.key[12:] not in text
    assert "private matter" not in text


def test_openapi_description_is_open_and_says_what_is_answered(server):
    described = httpx.get(f"{server.url}/openapi.json").json()
    route = described["paths"]["/v1/chat/completions"]["post"]
    assert "The cap of `max_tokens` is 48." in route["description"]
    assert "one message of the role `user`" in " ".join(route["description"].split())
    assert route["security"] == [{"HTTPBearer": []}]
