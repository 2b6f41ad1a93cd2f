import contextlib
import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Reply
from ev_platform.serving.gate import MAX_BODY_BYTES, OPEN_PATHS, SCOPES, Gate
from ev_platform.serving.keys import SCOPES as ALL_SCOPES
from ev_platform.serving.keys import UNLIMITED, change_limits, create_key, revoke_key
from ev_platform.serving.limits import MAX_FAILED_PER_MINUTE
from ev_platform.serving.observe import Observe
from ev_platform.serving.replay import served
from ev_platform.storage import now

ANSWERS, FEEDBACK, MODELS = "/v1/answers", "/v1/feedback", "/v1/models"
BODY_TIMEOUT_S = 0.5


class Routes:
    """Stands behind the gate: says what reached it, and answers when it may."""

    def __init__(self):
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.n_running = 0

    async def reached(self, request):
        self.n_running += 1
        while not self.may_answer.is_set():
            await anyio.sleep(0.005)
        self.n_running -= 1
        body = await request.body()
        if request.url.path == ANSWERS:
            request.state.seen.reply = Reply("text", "stop", "task@1", n_prompt_tokens=30, n_completion_tokens=10)
        key = getattr(request.state, "key", None)
        said = {
            "path": request.url.path,
            "n_bytes": len(body),
            "key": key and key.name,
            "request_id": request.state.request_id,
        }
        return JSONResponse(said)

    async def stream(self, request):
        """Write one token in 20 ms for as long as somebody reads."""

        async def tokens():
            for n_tokens in range(1, 500):
                request.state.seen.reply = Reply("text", "stop", "task@1", n_completion_tokens=n_tokens)
                yield "token "
                await anyio.sleep(0.02)

        return StreamingResponse(tokens(), media_type="text/plain")

    async def explode(self, request):
        raise RuntimeError("the engine failed")

    async def linger(self, request):
        """Go on working after the answer is out."""
        return JSONResponse({}, background=BackgroundTask(anyio.sleep, 0.3))

    async def talk(self, websocket):
        await websocket.accept()

    def app(self, root):
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.stream, methods=["POST"]),
                Route("/v1/classify", self.explode, methods=["POST"]),
                Route("/v1/extract", self.linger, methods=["POST"]),
                *(
                    Route(path, self.reached, methods=["GET", "POST"])
                    for path in (*SCOPES, *OPEN_PATHS, "/static/a.js")
                ),
                Route("/v1/forgotten", self.reached),
                WebSocketRoute("/healthz", self.talk),
            ],
            middleware=[
                Middleware(Observe, data_root=root, config=ServingConfig()),
                Middleware(Gate, data_root=root, body_timeout_s=BODY_TIMEOUT_S),
            ],
        )
        app.add_exception_handler(RuntimeError, lambda *_: PlainTextResponse("", 500))
        return app


class Server:
    def __init__(self, root, routes, url):
        self.root, self.routes, self.url = root, routes, url
        self.client = httpx.Client(base_url=url, timeout=20)  # without a key
        self.key = self.make("tests", limits=UNLIMITED)

    def make(self, name="other", **options):
        return create_key(self.root, name, **options)

    def ask(self, path=MODELS, *, key=None, method="GET", headers=(), **rest):
        headers = {"Authorization": f"Bearer {key or self.key}", **dict(headers)}
        return self.client.request(method, f"{self.url}{path}", headers=headers, **rest)

    def post(self, path=ANSWERS, *, key=None, content=b"{}", **rest):
        return self.ask(path, key=key, method="POST", content=content, **rest)

    def connect(self):
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)


@contextlib.contextmanager
def open_server(root):
    routes = Routes()
    with served(routes.app(root)) as url:
        server = Server(root, routes, url)
        with server.client:
            yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with open_server(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path):
    with open_server(tmp_path) as server:
        yield server


def refused(answer, status, code):
    """Check that an answer is this refusal in OpenAI's form; return its sentence."""
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}
    assert (error["type"], error["code"]) == (kinds.get(status, "invalid_request_error"), code)
    return error["message"]


def until(is_so, within_s=5.0):
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def limits_with(**changes):
    return UNLIMITED.model_copy(update=changes)


# ---- keys and scopes ----


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/static/a.js"])
def test_open_path_needs_no_key(server, path):
    answer = server.client.get(path)
    assert (answer.status_code, answer.json()["key"]) == (200, None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ev_00000000_" + "x" * 43},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": b"Bearer ev_\xff\xfe\x80"},
        {"Authorization": "Bearer " + "ev_" * 9_000},
        {"X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_request_without_a_good_key_is_refused_before_its_body_is_read(own_server, headers):
    for method, path in [
        ("GET", MODELS),
        ("POST", ANSWERS),
        ("OPTIONS", ANSWERS),
        ("GET", "/metrics"),
        ("GET", "/v1/anything"),
        ("GET", "//healthz"),
        ("GET", "/static"),
        ("GET", "/healthz/"),
        ("GET", "/HEALTHZ"),
    ]:
        answer = own_server.client.request(
            method, f"{own_server.url}{path}", headers=headers, content=b" " * (MAX_BODY_BYTES + 1)
        )
        assert "neither expired nor revoked" in refused(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_key_revoked_or_expired_while_serving_is_refused_at_once(server):
    lost = server.make("lost")
    guest = server.make("guest", expires_at=now() + timedelta(seconds=1))
    assert [server.ask(key=key).status_code for key in (lost, guest)] == [200, 200]
    revoke_key(server.root, lost[3:11])
    refused(server.ask(key=lost), 401, "invalid_api_key")
    time.sleep(1)
    refused(server.ask(key=guest), 401, "invalid_api_key")


@pytest.mark.parametrize("scope", ALL_SCOPES)
def test_key_reaches_the_paths_of_its_scope_and_no_others(server, scope):
    key = server.make(scope, scopes=[scope])
    for path, needed in SCOPES.items():
        if path in ("/v1/chat/completions", "/v1/classify", "/v1/extract"):  # other routes of this test stand there
            continue
        for asked in (path, f"{path}/below"):
            answer = server.ask(asked, key=key)
            if scope in (needed, "admin"):
                assert answer.status_code == (200 if asked == path else 404)
                assert answer.text == "Not Found" if asked != path else answer.json()["key"] == scope
            else:
                assert f"lacks the scope '{needed}' for {path}" in refused(answer, 403, "missing_scope")


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/forgotten", "/v1/modelsx", "//healthz", "/metrics2"])
def test_path_that_is_not_named_is_not_found_even_if_there_is_a_route(server, path):
    key = server.make(scopes=["admin"])
    assert "/openapi.json" in refused(server.ask(path, key=key), 404, "not_found")


def test_several_authorization_headers_are_refused(server):
    headers = [("Authorization", f"Bearer {server.key}"), ("Authorization", "Bearer other")]
    answer = server.client.get(MODELS, headers=headers)
    assert "several Authorization headers" in refused(answer, 400, "invalid_header")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
def test_scheme_is_read_as_http_says(server, scheme):
    assert server.client.get(MODELS, headers={"Authorization": f"{scheme} {server.key}"}).status_code == 200


def test_damaged_keys_are_503_without_details_and_open_paths_stay_open(own_server, caplog):
    file = own_server.root / "keys.json"
    content = file.read_text()
    file.write_text(content.replace("salt", "salz"))
    with caplog.at_level(logging.ERROR):
        answer = own_server.ask()
    assert refused(answer, 503, "keys_unreadable") == "The server cannot read its keys: tell whoever runs it."
    assert answer.headers["retry-after"] == "1"
    assert "keys.json is damaged" in caplog.text
    assert json.loads(content)[0]["secret_hash"] not in caplog.text
    assert own_server.client.get("/healthz").status_code == 200
    file.write_text(content)
    assert own_server.ask().status_code == 200


def test_client_that_goes_on_without_a_key_is_told_to_wait_and_one_with_a_key_is_not(own_server):
    def fail():
        return own_server.ask(key="ev_00000000_" + "x" * 43)

    for _ in range(MAX_FAILED_PER_MINUTE):
        refused(fail(), 401, "invalid_api_key")
    answer = fail()
    assert "without a valid API key" in refused(answer, 429, "rate_limit_exceeded")
    assert 50 <= int(answer.headers["retry-after"]) <= 61
    assert own_server.ask().status_code == 200


def test_websocket_is_closed_whatever_the_path(server):
    with server.connect() as client:
        client.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 403")


# ---- request ids ----


def test_request_without_an_id_gets_one_in_state_and_answer(server):
    answer = server.ask()
    assert re.fullmatch("[0-9a-f]{32}", answer.json()["request_id"])
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]


def test_id_of_the_client_is_kept_and_told_with_the_answer(server):
    answer = server.ask(headers={"X-Request-Id": "Run-1_a.b"})
    assert answer.json()["request_id"] == "Run-1_a.b"
    assert answer.headers.get_list("x-request-id") == ["Run-1_a.b"]


@pytest.mark.parametrize("sent", ["", "a" * 65, "a b", "a/b", "é".encode(), "a,b"])
def test_id_that_is_no_id_is_refused(server, sent):
    assert "x-request-id must be" in refused(server.ask(headers={"X-Request-Id": sent}), 400, "invalid_value")


def test_two_ids_are_refused(server):
    headers = [("Authorization", f"Bearer {server.key}"), ("X-Request-Id", "a"), ("X-Request-Id", "b")]
    refused(server.client.get(MODELS, headers=headers), 400, "invalid_value")


# ---- bodies ----


@pytest.mark.parametrize("is_length_declared", [True, False])
@pytest.mark.parametrize("path", [ANSWERS, "/healthz"])
def test_body_above_the_limit_is_refused(server, is_length_declared, path):
    body = b" " * (MAX_BODY_BYTES + 1)
    content = body if is_length_declared else iter([body[:40_000], body[40_000:]])
    assert str(MAX_BODY_BYTES) in refused(server.post(path, content=content), 413, "too_large")


def test_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server):
    began = time.monotonic()
    with server.connect() as client:
        client.sendall(f"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < BODY_TIMEOUT_S


def test_body_at_the_limit_in_pieces_arrives_whole(server):
    body = b" " * MAX_BODY_BYTES
    answer = server.post(content=iter([body[:10], body[10:]]))
    assert (answer.status_code, answer.json()["n_bytes"]) == (200, MAX_BODY_BYTES)


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip", "x"])
def test_encoded_body_is_refused(server, encoding):
    answer = server.post(headers={"Content-Encoding": encoding})
    assert "send it as it is" in refused(answer, 415, "unsupported_content_encoding")
    assert server.post(headers={"Content-Encoding": "identity"}).status_code == 200


def test_body_that_drips_is_refused_in_time_and_its_place_given_back(server):
    key = server.make(limits=limits_with(concurrent_requests=1))
    began = time.monotonic()
    with server.connect() as client:
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head.encode())
        received = b""
        client.settimeout(0.05)
        while b"request_timeout" not in received and time.monotonic() < began + 5:
            with contextlib.suppress(TimeoutError):
                client.sendall(b" ")
                received += client.recv(4096)
    assert received.startswith(b"HTTP/1.1 408")
    assert BODY_TIMEOUT_S <= time.monotonic() - began < BODY_TIMEOUT_S + 2
    assert server.post(key=key).status_code == 200


def test_client_that_goes_away_while_sending_gives_its_place_back_at_once(server):
    key = server.make(limits=limits_with(concurrent_requests=1))
    with server.connect() as client:
        head = f"POST {ANSWERS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head.encode())
        until(lambda: server.ask(key=key).status_code == 429)
    until(lambda: server.ask(key=key).status_code == 200, within_s=BODY_TIMEOUT_S * 0.8)


# ---- limits ----


def test_requests_beyond_those_of_a_minute_are_refused_with_the_seconds_to_wait(server):
    key = server.make(limits=limits_with(requests_per_minute=2))
    answers = [server.ask(key=key) for _ in range(3)]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers] == ["1", "0", None]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    assert "2 requests a minute" in refused(answers[2], 429, "rate_limit_exceeded")
    assert 55 <= int(answers[2].headers["retry-after"]) <= 61
    change_limits(server.root, key[3:11], {"requests_per_minute": 3})
    assert server.ask(key=key).status_code == 200


def test_requests_at_once_never_exceed_the_limit(server):
    key = server.make(limits=limits_with(concurrent_requests=3))
    server.routes.may_answer.clear()
    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(server.post, key=key) for _ in range(10)]
        until(lambda: sum(future.done() for future in futures) == 7)
        assert server.routes.n_running == 3
        server.routes.may_answer.set()
        answers = [future.result() for future in futures]
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 7
    answer = next(answer for answer in answers if answer.status_code == 429)
    assert "3 requests under way" in refused(answer, 429, "concurrency_limit")
    assert answer.headers["retry-after"] == "1"


def test_place_is_free_as_soon_as_the_answer_is_whole_also_after_a_fault(server):
    key = server.make(limits=limits_with(concurrent_requests=1))
    for path, status in [(ANSWERS, 200), ("/v1/extract", 200), ("/v1/classify", 500), ("/v1/models/none", 404)] * 3:
        assert server.post(path, key=key).status_code == status


def test_tokens_are_charged_and_a_key_over_its_quota_gets_no_answer_until_midnight(server):
    key = server.make(limits=limits_with(tokens_per_day=100))
    answers = [server.post(key=key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers[:3]]
    assert left == ["100", "60", "20"]
    assert "100 tokens of today" in refused(answers[3], 429, "quota_exceeded")
    midnight = (now() + timedelta(days=1)).replace(hour=0, minute=0, second=0)
    assert abs(int(answers[3].headers["retry-after"]) - (midnight - now()).total_seconds()) < 5
    assert server.ask(key=key).status_code == 200
    assert server.post(FEEDBACK, key=key).status_code == 200
    change_limits(server.root, key[3:11], {"tokens_per_day": 200})
    assert server.post(key=key).status_code == 200


def test_tokens_of_today_survive_a_restart(tmp_path):
    with open_server(tmp_path) as server:
        key = server.make(limits=limits_with(tokens_per_day=40))
        assert server.post(key=key).status_code == 200
    with open_server(tmp_path) as server:
        refused(server.post(key=key), 429, "quota_exceeded")


def test_stream_that_is_cut_is_charged_for_what_it_made_and_gives_its_place_back(server):
    key = server.make(limits=limits_with(concurrent_requests=1, tokens_per_day=1_000))
    headers = {"Authorization": f"Bearer {key}"}
    with server.client.stream("POST", "/v1/chat/completions", headers=headers) as answer:
        pieces = answer.iter_raw()
        for _ in range(5):
            next(pieces)
        refused(server.ask(key=key), 429, "concurrency_limit")
    until(lambda: server.ask(key=key).status_code == 200)
    left = int(server.ask(key=key).headers["x-ratelimit-remaining-tokens"])
    assert 900 < left <= 995


def test_refusal_is_noted_for_the_log(own_server):
    from ev_platform.serving.journal import read_journal

    key = own_server.make(scopes=["feedback"])
    own_server.ask(key=key)
    own_server.ask(key="wrong")
    rows = read_journal(own_server.root, "requests").select("key_id", "status", "error").rows()
    assert rows == [(key[3:11], 403, "missing_scope")]
