"""What a request leaves behind: a row, figures, a line; over a real server on loopback, with the real gate."""

import asyncio
import json
import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.staticfiles import StaticFiles

from ev_platform.serving import metrics
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.gate import Gate
from ev_platform.serving.journal import find_request, read_journal, text_hash
from ev_platform.serving.keys import create_key
from ev_platform.serving.observe import Observe
from ev_platform.serving.replay import served
from ev_platform_tests.serving.rows import REPLY, figure, wait_for

QUESTION = "What are Mode 3 cables rated for?"


def make_app(root, config):
    """Return an application whose one route does as its query says, and tells the log what it knows as it learns it."""
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.post("/v1/answers")
    async def answers(request: Request, how: str = "whole"):
        seen = request.state.seen
        seen.task, seen.model, seen.question = "observed", "observed@champion", QUESTION
        if how == "fails":
            raise RuntimeError(f"cannot say {QUESTION}")
        if how == "refused":
            seen.error = "overloaded"
            return JSONResponse({"error": {}}, 503)
        if how == "hangs":
            await asyncio.sleep(60)
        if how == "whole":
            await asyncio.sleep(0.05)
            seen.reply = REPLY
            return {"answer": REPLY.text}
        seen.is_streamed = True

        async def pieces():
            for _ in range(1000 if how == "endless" else 3):
                yield b"data: 32\n\n"
                await asyncio.sleep(0.02)
            if how == "breaks":
                raise RuntimeError(f"broke at {QUESTION}")
            seen.reply = REPLY

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/metrics")
    async def figures():
        return "figures"

    app.mount("/static", StaticFiles(directory=root))
    app.add_middleware(Gate, data_root=root)
    app.add_middleware(Observe, data_root=root, config=config)
    return app


class Server:
    """A running application and a client with a key."""

    def __init__(self, root, url):
        self.root, self.url, self.key = root, url, create_key(root, "tester", scopes=("query", "admin"))
        self.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {self.key}"}, timeout=10)

    def rows(self):
        return read_journal(self.root, "requests").to_dicts()


@contextmanager
def running(root, **config):
    with served(make_app(root, ServingConfig(**config))) as url:
        server = Server(root, url)
        yield server
        server.client.close()


@pytest.fixture
def server(tmp_path):
    with running(tmp_path) as server:
        yield server


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


def test_answer_leaves_a_row_with_all_that_is_known_of_it(server):
    asked = datetime.now(UTC)
    reply = server.client.post("/v1/answers", headers={"x-request-id": "mine.1"})
    assert reply.status_code == 200
    (row,) = server.rows()
    assert asked <= row.pop("asked_at") <= datetime.now(UTC)
    assert 50 <= row.pop("total_ms") < 1000
    assert row == {
        "request_id": "mine.1",
        "key_id": server.key.split("_")[1],
        "route": "/v1/answers",
        "status": 200,
        "error": None,
        "is_streamed": False,
        "task": "observed",
        "model": "observed@champion",
        "model_version": "observed@3",
        "question": QUESTION,
        "question_hash": text_hash(server.root, QUESTION),
        "answer": "32 A.",
        "answer_hash": text_hash(server.root, "32 A."),
        "chunk_ids": ["chk_1", "chk_2"],
        "scores": [0.75, 0.25],
        "is_abstention": False,
        "similarity": 0.5,
        "n_prompt_tokens": 100,
        "n_completion_tokens": 4,
        "finish_reason": "stop",
        "batch_size": 2,
        "queue_ms": 2.0,
        "retrieve_ms": 3.0,
        "first_token_ms": 40.0,
        "generate_ms": 90.0,
    }


def test_row_is_there_as_soon_as_the_client_has_its_answer(server):
    for n in range(100):
        how = "streamed" if n % 20 == 0 else "refused"
        server.client.post("/v1/answers", params={"how": how}, headers={"x-request-id": f"req_{n}"})
        assert find_request(server.root, f"req_{n}") is not None


def test_text_is_hashed_where_the_operator_says_so(tmp_path):
    with running(tmp_path, request_text="hash") as server:
        server.client.post("/v1/answers")
    (row,) = server.rows()
    assert (row["question"], row["answer"]) == (None, None)
    assert row["question_hash"] == text_hash(tmp_path, QUESTION)
    assert row["answer_hash"] == text_hash(tmp_path, "32 A.")
    everything = b"".join(file.read_bytes() for file in (tmp_path / "serving").rglob("*") if file.is_file())
    assert b"Mode 3" not in everything


def test_stream_is_timed_to_its_last_byte(server):
    server.client.post("/v1/answers", params={"how": "streamed"})
    (row,) = server.rows()
    assert (row["is_streamed"], row["status"], row["answer"]) == (True, 200, "32 A.")
    assert 60 <= row["total_ms"] < 1000


def test_slow_upload_is_not_counted_as_the_servers_time(server):
    def slowly():
        yield b"{"
        time.sleep(0.3)
        yield b"}"

    server.client.post("/v1/answers", content=slowly())
    (row,) = server.rows()
    assert row["total_ms"] < 250


def leave(server, how):
    """Ask, read what comes first, and go."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            f"POST /v1/answers?how={how} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
        )
        if how == "endless":
            connection.recv(100)
        else:
            time.sleep(0.1)


def test_client_that_leaves_a_stream_is_499(server):
    leave(server, "endless")
    wait_for(server.rows)
    (row,) = server.rows()
    assert (row["status"], row["error"], row["is_streamed"], row["answer"]) == (499, "client_left", True, None)
    assert row["total_ms"] < 5000


def test_request_that_the_server_cancels_is_499(tmp_path):
    """As Ray Serve does when a client has left."""

    async def hang(scope, receive, send):
        await asyncio.sleep(60)

    async def ask():
        scope = {"type": "http", "method": "GET", "path": "/v1/answers", "headers": [], "query_string": b""}
        task = asyncio.create_task(Observe(hang, tmp_path, ServingConfig())(scope, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = figure("ev_errors_total", code="client_left")
    asyncio.run(ask())
    assert figure("ev_errors_total", code="client_left") == before + 1


def test_failure_is_a_500_whose_words_stay_out_of_the_log(server, capsys):
    reply = server.client.post("/v1/answers", params={"how": "fails"}, headers={"x-request-id": "bad"})
    assert reply.status_code == 500
    (row,) = server.rows()
    assert (row["status"], row["error"], row["question"]) == (500, "internal_error", QUESTION)
    fault, request = [line for line in lines(capsys) if line.get("request_id") == "bad"]
    assert (fault["event"], fault["level"], fault["error"]) == ("request failed", "error", "RuntimeError")
    assert fault["where"][-1].startswith("ev_platform_tests/serving/test_observe.py:")
    assert fault["where"][-1].endswith(" answers")
    assert "Mode 3" not in json.dumps([fault, request])
    assert (request["status"], request["error"]) == (500, "internal_error")


def test_stream_that_breaks_says_so_under_the_status_that_was_sent(server):
    with pytest.raises(httpx.RemoteProtocolError):
        server.client.post("/v1/answers", params={"how": "breaks"})
    wait_for(server.rows)
    (row,) = server.rows()
    assert (row["status"], row["error"], row["answer"]) == (200, "internal_error", None)


def test_refusal_of_a_known_key_is_in_the_log_and_of_an_unknown_one_only_in_the_metrics(server):
    refused = figure("ev_errors_total", code="invalid_api_key")
    server.client.post("/v1/answers", params={"how": "refused"})
    server.client.get("/v1/nonsense")
    assert httpx.post(f"{server.url}/v1/answers").status_code == 401
    assert [(row["route"], row["status"], row["error"]) for row in server.rows()] == [
        ("/v1/answers", 503, "overloaded"),
        ("other", 404, "not_found"),
    ]
    assert figure("ev_errors_total", code="invalid_api_key") == refused + 1


def test_scrapes_are_counted_and_not_logged(server):
    before = figure("ev_requests_total", route="/metrics", status="200", task="")
    assert server.client.get("/metrics").status_code == 200
    assert server.rows() == []
    assert figure("ev_requests_total", route="/metrics", status="200", task="") == before + 1


def test_routes_are_templates_whatever_paths_are_asked_for(server):
    def routes():
        samples = (sample for family in metrics.REGISTRY.collect() for sample in family.samples)
        return {sample.labels["route"] for sample in samples if "route" in sample.labels}

    before = routes()  # other tests of this process have left theirs
    (server.root / "page.js").write_text("1")
    for path in ("/static/page.js", "/static/none.js", "/a", "/b/../c", "/v1/answers/7"):
        server.client.get(path)
    assert {"/static", "other"} <= routes()
    assert routes() - before <= {"/static", "other"}


def test_request_leaves_one_line_without_text_or_key(server, capsys):
    server.client.post("/v1/answers", headers={"x-request-id": "mine.2"})
    (line,) = [line for line in lines(capsys) if line.get("request_id") == "mine.2"]
    assert 50 <= line.pop("ms") < 1000
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": "mine.2",
        "key": server.key.split("_")[1],
        "route": "/v1/answers",
        "status": 200,
        "model": "observed@3",
        "n_prompt_tokens": 100,
        "n_completion_tokens": 4,
    }


def test_answer_is_given_where_the_log_cannot_be_written_and_the_loss_is_told_once(tmp_path, capsys):
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "requests").write_text("in the way of the folder")
    before = figure("ev_journal_lost_rows_total", table="requests")
    with running(tmp_path) as server:
        for _ in range(3):
            assert server.client.post("/v1/answers").status_code == 200
        (tmp_path / "serving" / "requests").unlink()
        assert server.client.post("/v1/answers").status_code == 200
        assert len(server.rows()) == 1
    assert figure("ev_journal_lost_rows_total", table="requests") == before + 3
    told = [line for line in lines(capsys) if line["event"].startswith("request log not written")]
    assert len(told) == 1


def test_journal_is_rolled_when_the_server_stops_and_opened_anew_when_it_starts_again(tmp_path):
    app = make_app(tmp_path, ServingConfig())
    for n in (1, 2):
        with served(app) as url:
            server = Server(tmp_path, url)
            server.client.post("/v1/answers")
            server.client.close()
        assert len(list((tmp_path / "serving" / "requests").glob("2*/*.parquet"))) == n
    assert len(server.rows()) == 2
