"""Who is told of a failed run, over HTTP to a local server."""

import json
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun  # noqa: TID253 - the hook is given Prefect's own
from prefect.states import Crashed, Failed  # noqa: TID253

from ev_platform.defs.run import RunFailedError, RunResult
from ev_platform.errors import UserError
from ev_platform.flows import weekly
from ev_platform.flows.notify import TasksFailedError, tell_of_failure
from ev_platform.flows.weekly import _may_pass, materialize_graph
from ev_platform.settings import get_settings


@pytest.fixture
def posted(monkeypatch):
    """Yield what arrives at the address that is told of failures."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("EV_FAILURE_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hooks/a-secret-part")
    monkeypatch.setenv("EV_DAGSTER_URL", "http://127.0.0.1:3000")
    get_settings.cache_clear()
    yield got
    get_settings.cache_clear()
    server.shutdown()
    server.server_close()
    thread.join()


def a_run():
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="brave-otter", parameters={"tasks": ["tiny"]})


def failed(error):
    return Failed(message=str(error), data=error)


def test_failed_run_is_told_with_what_failed_and_where(posted):
    error = RunFailedError("The corpus is empty: off_topic: 5.", "r1", "corpus_is_not_empty", is_final=True)
    tell_of_failure(materialize_graph, a_run(), failed(error))
    (body,) = posted
    assert body["text"] == "materialize-graph brave-otter (tiny) failed: The corpus is empty: off_topic: 5."
    assert (body["where"], body["url"]) == ("corpus_is_not_empty", "http://127.0.0.1:3000/runs/r1")


@pytest.mark.parametrize(
    "error",
    [
        RunFailedError("fine_tune: no route to https://me:hunter2@hub", "r1", "fine_tune", is_final=False),
        ValueError("https://me:hunter2@hub"),
    ],
)
def test_words_of_a_library_are_not_sent_on(posted, error):
    tell_of_failure(materialize_graph, a_run(), failed(error))
    (body,) = posted
    assert "hunter2" not in json.dumps(body)
    assert "fine_tune failed" in body["text"] or "ValueError" in body["text"]


def test_run_of_several_tasks_is_told_with_each_that_failed_and_without_the_words_of_a_library(posted):
    error = TasksFailedError(
        {
            "a": RunFailedError("The corpus is empty.", "r1", "corpus_is_not_empty", is_final=True),
            "b": RunFailedError("fine_tune: no route to https://me:hunter2@hub", "r2", "fine_tune", is_final=False),
            "c": ValueError("https://me:hunter2@hub"),
            "d": UserError("train.csv is missing."),
        },
        n_tasks=5,
    )
    assert "hunter2" in str(error)  # who sees the run itself is to see why
    tell_of_failure(materialize_graph, a_run(), failed(error))
    (body,) = posted
    assert "hunter2" not in json.dumps(body)
    assert body["error"] == (
        "4 of 5 tasks failed. a: The corpus is empty. b: fine_tune failed; its words are in the run. c: ValueError. "
        "d: train.csv is missing."
    )
    assert (body["where"], body["dagster_run"]) == ("corpus_is_not_empty, fine_tune", "r1, r2")
    assert body["url"] == "http://127.0.0.1:3000/runs/r1, http://127.0.0.1:3000/runs/r2"


def test_flow_of_several_tasks_raises_what_each_of_them_failed_with(monkeypatch, tmp_path):
    failures = {"a": ValueError("no route"), "b": None, "c": UserError("c.csv is missing.")}

    def stage(name, *_):
        if failures[name]:
            raise failures[name]
        return RunResult((), (), (), ())

    for name, fake in {"_stage": stage, "_end_dead": None, "_is_overtaken": None, "check_request": None}.items():
        monkeypatch.setattr(weekly, name, fake or (lambda *_: None))
    monkeypatch.setattr(weekly, "marked", lambda *_: nullcontext())
    monkeypatch.setenv("EV_DATA_DIR", str(tmp_path))
    get_settings.cache_clear()
    with pytest.raises(
        TasksFailedError, match=r"^2 of 3 tasks failed\. a: no route\. c: c\.csv is missing\.$"
    ) as raised:
        materialize_graph.fn(tasks=["a", "b", "c"], stages=["collect"])
    get_settings.cache_clear()
    assert raised.value.failed == {"a": failures["a"], "c": failures["c"]}


def test_crashed_run_is_told(posted):
    tell_of_failure(materialize_graph, a_run(), Crashed(message="exit code -9"))
    assert posted[0]["text"].endswith("(tiny) crashed: its process ended")


@pytest.mark.parametrize("parameters", [{}, {"tasks": None}, {"tasks": []}])
def test_run_without_a_named_task_is_told_with_the_default_one(posted, parameters):
    run = a_run().model_copy(update={"parameters": parameters})
    tell_of_failure(materialize_graph, run, Crashed(message="exit code -9"))
    assert posted[0]["tasks"] == ["ev_charging"]
    assert posted[0]["text"].endswith("(ev_charging) crashed: its process ended")


def test_what_goes_wrong_while_a_killed_run_is_told_does_not_stop_the_next_one(monkeypatch, caplog, tmp_path):
    def broken(*_):
        raise TypeError("https://me:hunter2@hub")

    run = a_run().model_copy(update={"state": Crashed(message="exit code -9")})
    monkeypatch.setattr(weekly, "end_dead_flow_runs", lambda _: [run, run])
    monkeypatch.setattr(weekly, "tell_of_failure", broken)
    weekly._end_dead(tmp_path)
    assert caplog.text.count("Nobody was told that brave-otter crashed (TypeError)") == 2
    assert "hunter2" not in caplog.text


def test_address_that_does_not_answer_is_logged_without_the_address(monkeypatch, caplog):
    monkeypatch.setenv("EV_FAILURE_WEBHOOK", "http://127.0.0.1:9/a-secret-part")
    get_settings.cache_clear()
    tell_of_failure(materialize_graph, a_run(), failed(UserError("No.")))
    get_settings.cache_clear()
    assert "cannot be reached (ConnectError)" in caplog.text and "a-secret-part" not in caplog.text


@pytest.mark.parametrize(
    ("error", "is_tried_again"),
    [
        (UserError("train.csv is missing."), False),
        (RunFailedError("train.csv is missing.", "r1", "generate", is_final=True), False),
        (RunFailedError("fine_tune: out of memory", "r1", "fine_tune", is_final=False), True),
        (OSError("no route"), True),
    ],
)
def test_only_what_a_person_need_not_put_right_is_tried_again(error, is_tried_again):
    assert _may_pass(None, None, failed(error)) is is_tried_again
