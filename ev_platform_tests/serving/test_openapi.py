"""The description against the server that it describes: by eye here, by schemathesis for everything else."""

import os
import subprocess
import sys

import httpx
import pytest

from ev_platform.serving import replies
from ev_platform.serving.gate import CLOSED_STATUSES, OPEN_PATHS, OPEN_STATUSES
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.schemas import ApiError, ErrorResponse
from ev_platform.serving.worker import LocalBackend
from ev_platform_tests.serving.fakes import fake_release
from ev_platform_tests.serving.server import Server, error_of, labels_release, span_release
from ev_platform_tests.serving.web import SayingEngine

POSTS = {
    "/v1/chat/completions": {400, 404, 422, 504},
    "/v1/answers": {400, 404, 422, 504},
    "/v1/classify": {400, 404, 422, 504},
    "/v1/extract": {400, 404, 422, 504},
    "/v1/feedback": {404, 422},
}
GETS = {"/v1/models": set(), "/v1/models/{model}": {404, 422}, "/metrics": set(), "/healthz": set(), "/readyz": {503}}
# What the description cannot say: some ask the first model, which is of another type, and others for longer answers
# than it was evaluated with. What does not fit a field is 422, and would be found.
CONFIG = """
[[operations]]
include-path = ["/v1/answers", "/v1/classify", "/v1/extract", "/v1/chat/completions"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404]
"""


class WideEngine(SayingEngine):
    """Has room for whatever a body may hold."""

    window = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    releases = {
        "fake_task": fake_release(engine=WideEngine("Every three months.")),
        "fake_labels": labels_release(engine=WideEngine("card")),
        "fake_spans": span_release(engine=WideEngine("months")),
    }
    backend = LocalBackend({name: LiveRelease(release) for name, release in releases.items()})
    with Server(tmp_path_factory.mktemp("data"), backend=backend) as server:
        yield server


@pytest.fixture(scope="module")
def described(server):
    return httpx.get(f"{server.url}/openapi.json").json()


def test_description_is_open_and_names_what_is_served(described):
    said = described["info"]["description"]
    assert "`fake_task` is fake_task@3 (open_book_qa). The cap of its `max_tokens` is 48" in said
    assert "Its labels: card, refund." in said
    chat = described["paths"]["/v1/chat/completions"]["post"]
    assert "one message of the role `user`" in " ".join(chat["description"].split())


def test_every_route_is_described_with_its_statuses_and_its_key(described):
    routes = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert routes == {(path, "post") for path in POSTS} | {(path, "get") for path in GETS}
    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, method in routes:
        operation = described["paths"][path][method]
        own = POSTS.get(path, GETS.get(path))
        gate = OPEN_STATUSES if path in OPEN_PATHS else CLOSED_STATUSES
        success = 201 if path == "/v1/feedback" else 200
        assert {int(status) for status in operation["responses"]} == {success, *own, *gate, 405, 500}
        assert ("security" in operation) == (path not in OPEN_PATHS)
        assert operation["summary"]
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"]
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))
            if int(status) >= 400:
                body = answer["content"]["application/json"]
                assert body["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
                ErrorResponse.model_validate(body["example"])


def test_every_body_has_an_example_that_fits(described):
    schemas = described["components"]["schemas"]
    for path in POSTS:
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fields = schemas[schema["$ref"].rpartition("/")[2]]
        for name in fields["required"]:
            field = fields["properties"][name]
            assert "examples" in field or "enum" in field, f"{path}: {name}"
    for path in ("/v1/chat/completions", "/v1/answers"):
        streamed = described["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        assert streamed["example"].startswith(("data: ", "event: "))
    named = [getattr(replies, name) for name in schemas if "examples" in schemas[name] and hasattr(replies, name)]
    assert len(named) >= 5
    for model in named:
        for example in schemas[model.__name__]["examples"]:
            assert model.model_validate(example).model_dump(mode="json") == example


class Mute(LocalBackend):
    """Has a model that does not say what it is."""

    async def describe(self, model):
        if model == "gone":
            raise ApiError(503, "The model is being started anew.", "unavailable", retry_after_s=5)
        return await super().describe(model)


def test_model_that_does_not_answer_is_missed_by_readiness_and_nobody_else(tmp_path):
    backend = Mute({"fake_task": LiveRelease(fake_release()), "gone": LiveRelease(fake_release("gone"))})
    with Server(tmp_path, backend=backend) as server:
        ready = httpx.get(f"{server.url}/readyz")
        assert (ready.status_code, error_of(ready)["code"], ready.headers["retry-after"]) == (503, "not_ready", "1")
        assert "gone" in error_of(ready)["message"]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert [card["id"] for card in server.client.get("/v1/models").json()["data"]] == ["fake_task"]
        assert "`gone` does not answer now." in httpx.get(f"{server.url}/openapi.json").json()["info"]["description"]
        assert server.answer().status_code == 200
        asked = server.answer(model="gone")
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "5")
        admin = server.client_of(create_key(tmp_path, "admin", scopes=("admin",)))
        assert admin.get("/metrics").status_code == 200


def explore(server, folder, scopes, *options):
    """Let schemathesis try to break the server; fail with its report if it does."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    key = create_key(server.root, "explorer", scopes=scopes, limits=UNLIMITED)
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    command += [f"{server.url}/openapi.json", "--continue-on-failure", "--seed", "1"]
    command += ["--header", f"Authorization: Bearer {key}", *options]
    environment = os.environ | {"no_proxy": "127.0.0.1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_schemathesis_finds_neither_a_fault_nor_a_status_that_is_not_described(server, tmp_path):
    report = explore(server, tmp_path, ("admin",), "--phases", "examples,coverage")
    assert "Tested: 10" in report


@pytest.mark.slow
@pytest.mark.parametrize("scopes", [("admin",), ("query",)])
def test_schemathesis_finds_nothing_in_a_long_run(server, tmp_path, scopes):
    explore(server, tmp_path, scopes, "--phases", "examples,coverage,fuzzing", "--max-examples", "60")
