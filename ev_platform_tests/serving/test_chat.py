import json

import pytest

from ev_platform.serving.schemas import MAX_CONTENT_CHARS, MAX_STOP_CHARS
from ev_platform_tests.serving.server import QUESTION, Server, error_of, labels_release


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("data")) as server:
        yield server


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
    release = labels_release()
    with Server(tmp_path, release) as server:
        body = server.ask("Where is my card?").json()
    assert body["sources"] == []
    prompt = body["choices"][0]["message"]["content"].partition(" | ")[2]
    assert prompt == release.engine.render(release.task_type.prompt(release.instructions, "Where is my card?", []))
    assert "- card" in prompt


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": 0}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": None, "seed": None, "max_tokens": None}, "temperature=0.0 seed=0 max_new_tokens=48 "),
        ({"temperature": 1.5, "seed": 7, "max_tokens": 3}, "temperature=1.5 seed=7 max_new_tokens=3 "),
        ({"temperature": 1, "seed": 7.0, "max_tokens": 3.0}, "temperature=1.0 seed=7 max_new_tokens=3 "),
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
        {"model": "champion"},
        {"stop": []},
        {
            "n": 1,
            "stop": None,
            "stream_options": None,
            "tools": [],
            "top_p": 1.0,
            "stream": False,
            "response_format": {"type": "text"},
        },
        {"user": "someone", "metadata": {"a": "b"}, "stream_options": {"include_usage": True}},
    ],
)
def test_options_that_ask_for_nothing_else_are_accepted(server, fields):
    assert server.ask(**fields).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("tools", [{}]), ("top_p", 0.5), ("logprobs", True), ("response_format", {"type": "x"})],
)
def test_option_that_would_change_the_answer_is_refused_by_name(server, field, value):
    answer = server.ask(**{field: value})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, field, "unsupported")
    assert error["message"].startswith(f"{field} is not supported")


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


@pytest.mark.parametrize("model", ["gpt-4o", "fake_task@2", "other@3", "candidate", "", "@", "@3"])
def test_other_model_is_not_found(server, model):
    answer = server.ask(model=model)
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
        ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10**4000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": True}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}], "seed": -1}, "seed"),
        ({"messages": [{"role": "user", "content": "hi"}], "seed": 1.5}, "seed"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "hi"}], "stop": ["."] * 5}, "stop"),
        ({"messages": [{"role": "user", "content": "hi"}], "stop": [""]}, "stop.0"),
        ({"messages": [{"role": "user", "content": "hi"}], "stop": "x" * (MAX_STOP_CHARS + 1)}, "stop.0"),
        ({"messages": [{"role": "user", "content": "hi"}], "model": "x" * 201}, "model"),
        (
            {"messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
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
