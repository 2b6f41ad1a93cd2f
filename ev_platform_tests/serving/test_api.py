import logging
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ev_platform.serving.config import ServingConfig
from ev_platform.serving.gate import MAX_BODY_BYTES
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import create_key
from ev_platform.serving.schemas import ApiError
from ev_platform_tests.serving.server import QUESTION, Server, error_of


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("data")) as server:
        yield server


def test_process_tells_that_it_lives_and_which_versions_answer_without_a_key(server):
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{server.url}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models": {"fake_task": "fake_task@3"}})


@pytest.mark.parametrize("content", [b'{"messages": ', b"\xff\xfe", b"[" * 60_000])
def test_body_that_is_not_json_is_refused(server, content):
    answer = server.client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/nowhere", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/healthz/", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
    ],
)
def test_unknown_path_and_method_are_refused_in_openai_form(server, method, path, status, code):
    answer = server.client.request(method, path)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (status, "invalid_request_error", code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("name", ["fake_task", "fake_task@3", "champion"])
def test_one_model_is_described_as_in_the_list(server, name):
    (listed,) = server.client.get("/v1/models").json()["data"]
    assert server.client.get(f"/v1/models/{name}").json() == listed


def test_more_questions_than_may_wait_are_refused_and_the_rest_answered(tmp_path):
    with Server(tmp_path, config=ServingConfig(max_waiting=4, max_batch=1)) as server:
        engine = server.release.engine
        engine.may_answer.clear()
        with ThreadPoolExecutor(16) as pool:
            futures = [pool.submit(server.ask) for _ in range(16)]
            deadline = time.monotonic() + 10
            while not any(future.done() for future in futures) and time.monotonic() < deadline:
                time.sleep(0.01)
            refused = [future.result() for future in futures if future.done()]
            engine.may_answer.set()
            answers = [future.result() for future in futures]
        assert refused
        assert {answer.status_code for answer in refused} == {503}
        assert error_of(refused[0])["code"] == "overloaded"
        assert int(refused[0].headers["retry-after"]) >= 1
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 4
        assert server.ask().status_code == 200


def test_answer_that_takes_too_long_is_given_up(tmp_path):
    with Server(tmp_path, config=ServingConfig(request_timeout_s=0.1)) as server:
        server.release.engine.may_answer.clear()
        answer = server.ask()
        server.release.engine.may_answer.set()
        error = error_of(answer)
        assert (answer.status_code, error["type"], error["code"]) == (504, "server_error", "timeout")
        assert "0.1 seconds" in error["message"]


def test_engine_failure_is_told_without_details_and_serving_goes_on(server):
    answer = server.ask("explode")
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "engine failed" not in answer.text
    assert server.ask().status_code == 200


def test_scopes_open_their_own_routes_only(server):
    asks, admin = (server.client_of(create_key(server.root, s, scopes=(s,))) for s in ("query", "admin"))
    assert asks.get("/metrics").status_code == 403
    refused = asks.post("/v1/feedback", json={"request_id": "1", "rating": "up"})
    assert (refused.status_code, error_of(refused)["type"]) == (403, "permission_error")
    figures = admin.get("/metrics")
    assert figures.status_code == 200
    assert figures.headers["content-type"].startswith("text/plain")
    assert 'model_version="fake_task@3"' in figures.text


def test_page_is_open(server):
    page = httpx.get(f"{server.url}/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"question": "q"}', "text/plain"),
        (b'{"question": "q"}', "application/x-www-form-urlencoded"),
        (b"", "application/json"),
        (b"[1]", "application/json"),
        (b"null", "application/json"),
    ],
)
def test_body_that_is_no_json_object_is_told_how_to_be_one(server, content, content_type):
    answer = server.client.post("/v1/answers", content=content, headers={"Content-Type": content_type})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (422, "body")
    assert "Content-Type: application/json" in error["message"]


def test_body_that_is_too_large_or_compressed_is_refused(server):
    large = server.client.post("/v1/answers", content=b" " * (MAX_BODY_BYTES + 1))
    assert (large.status_code, error_of(large)["code"]) == (413, "too_large")
    packed = server.client.post("/v1/answers", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, error_of(packed)["code"]) == (415, "unsupported_content_encoding")


def test_every_answer_and_refusal_carries_the_id_of_its_request(server):
    for path in ("/healthz", "/v1/models", "/nowhere"):
        assert len(server.client.get(path).headers["x-request-id"]) == 32
    body = {"question": QUESTION}
    assert server.client.post("/v1/answers", json=body, headers={"x-request-id": "mine.1"}).json()["id"] == "mine.1"


def test_no_answer_lets_other_sites_read_it(server):
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server.url}/v1/chat/completions", headers=headers)
    answer = server.client.get("/v1/models", headers=headers)
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_named_site_and_no_other_may_ask_and_read_refusals_too(tmp_path):
    config = ServingConfig(cors_origins=("https://ours.example",))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with Server(tmp_path, config=config) as server:
        for origin, is_let in [("https://ours.example", True), ("https://elsewhere.example", False)]:
            headers = {"Origin": origin}
            preflight = httpx.options(f"{server.url}/v1/answers", headers=headers | asked)
            refusals = [
                httpx.post(f"{server.url}/v1/answers", headers=headers),
                server.client.post("/v1/answers", json={"question": "explode"}, headers=headers),
                server.client.get("/nowhere", headers=headers),
            ]
            assert [answer.status_code for answer in (preflight, *refusals)] == [200 if is_let else 400, 401, 500, 404]
            for answer in (preflight, *refusals):
                assert ("access-control-allow-origin" in answer.headers) == is_let
                assert "access-control-allow-credentials" not in answer.headers


def test_logs_hold_neither_keys_nor_questions(server, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        server.ask("a private matter, explode")
        server.ask("a private matter, explode", stream=True)
        server.ask("a private matter", temperature=9)
        server.answer("a private matter", other="a private matter")
    ours = [record for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    text = "\n".join(logging.Formatter().format(record) for record in ours) + "".join(capfd.readouterr())
    assert "RuntimeError" in text
    assert server.key[12:] not in text
    assert "private matter" not in text


def test_refusal_is_the_same_in_another_process():
    error = pickle.loads(pickle.dumps(ApiError(503, "Later.", "overloaded", "model", retry_after_s=2)))
    assert (str(error), error.status, error.code, error.param, error.retry_after_s) == (
        "Later.",
        503,
        "overloaded",
        "model",
        2,
    )


def test_name_of_no_model_is_not_kept(tmp_path):
    with Server(tmp_path) as server:
        assert server.answer(model="a private matter").status_code == 404
        assert server.answer(model="fake_task@3").status_code == 200
        assert read_journal(tmp_path, "requests")["model"].to_list() == [None, "fake_task@3"]


def test_description_does_not_tell_the_system_message(server):
    described = httpx.get(f"{server.url}/openapi.json").text
    assert "`fake_task` is fake_task@3" in described
    assert server.release.instructions not in described
