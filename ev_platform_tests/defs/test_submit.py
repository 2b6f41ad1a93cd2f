"""Runs submitted and followed over GraphQL: by a real Dagster webserver, and by one that is busy."""

import asyncio
import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.utils import make_new_run_id
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.types import DaemonHeartbeat
from dagster_graphql.schema import create_schema

from ev_platform.defs import submit as module
from ev_platform.defs.instance import write_settings
from ev_platform.defs.run import RunFailedError
from ev_platform.defs.submit import is_reachable, run_page, submit
from ev_platform.errors import UserError
from ev_platform_tests.ports import free_port
from ev_platform_tests.test_dagster_ui import ui, workspace  # noqa: F401 - fixtures

PAGES = ["raw_pages", "raw_pdfs", "raw_texts"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_webserver_carries_out_a_run_and_tells_what_it_did_and_why_it_failed(ui, workspace):  # noqa: F811
    assert is_reachable(ui)
    result = submit(ui, "tiny", PAGES, tags={"prefect/flow_run": "f1"})
    assert (result.computed, sorted(result.unchanged), result.failed_checks) == ((), PAGES, ())
    assert sorted(submit(ui, "tiny", ["documents"]).computed) == ["documents"]
    result = submit(ui, "tiny", ["documents"], force=True)
    assert result.unchanged == ("documents",)  # computed, and the rows are the stored ones
    with dg.DagsterInstance.from_config(str(workspace.store.root / "dagster")) as instance:
        assert {run.run_id: run.tags.get("ev/force") for run in instance.get_runs()}[result.run_ids[0]] == "true"
    (workspace.task / "sources.yaml").write_text("seeds: nonsense\n")
    with pytest.raises(RunFailedError, match=r"sources\.yaml") as failure:
        submit(ui, "tiny", PAGES)
    assert failure.value.is_final and failure.value.run_id
    with pytest.raises(RunFailedError, match="There is no task 'nope'"):
        submit(ui, "nope", PAGES)


def test_address_where_nothing_answers_is_not_reachable():
    assert not is_reachable(f"http://127.0.0.1:{free_port()}")


REPOSITORY = {"name": "r", "location": {"name": "l"}, "pipelines": [{"name": "everything"}]}
ANSWERS = {
    "repositoriesOrError": {"nodes": [REPOSITORY]},
    "launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "r1"}},
    "runOrError": {"status": "SUCCESS"},
    "logsForRun": {"events": [], "cursor": "", "hasMore": False},
}


@contextmanager
def webserver(answers=ANSWERS, *, busy=None, n_busy=0, wants=None):
    """Answer as a Dagster webserver does, but `busy` with no JSON at first; yield its address and what was asked.

    An answer may be a function of what was asked. Whoever does not send the header `wants` gets 401.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def is_let_in(self):
            if wants in (None, self.headers["Authorization"]):
                return True
            self.send_response(401)
            self.end_headers()
            return False

        def do_GET(self):
            if self.is_let_in():
                self.send_response(200)
                self.end_headers()

        def do_POST(self):
            if not self.is_let_in():
                return
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
            name = next(name for name in answers if name in query)
            asked.append(name)
            is_busy = name == busy and asked.count(name) <= n_busy
            answer = answers[name](asked) if callable(answers[name]) else answers[name]
            body = b"busy" if is_busy else json.dumps({"data": {name: answer}}).encode()
            self.send_response(503 if is_busy else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_busy_webserver_is_asked_again_and_the_run_is_followed_to_its_end(monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.01)
    with webserver(busy="runOrError", n_busy=7) as (url, asked):
        assert submit(url, "tiny", PAGES).run_ids == ("r1",)
    assert (asked.count("launchRun"), asked.count("runOrError")) == (1, 8)


def test_webserver_that_stays_busy_is_given_up_in_time_with_a_sentence(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 2.0)
    began = time.monotonic()
    with (
        webserver(busy="runOrError", n_busy=999) as (url, _),
        pytest.raises(UserError, match="has given no answer for"),
    ):
        submit(url, "tiny", PAGES)
    assert time.monotonic() - began < 30


def test_run_that_may_have_been_started_is_not_started_again():
    with webserver(busy="launchRun", n_busy=1) as (url, asked), pytest.raises(UserError, match="may be going on"):
        submit(url, "tiny", PAGES)
    assert asked.count("launchRun") == 1


def test_run_that_a_person_stopped_is_not_tried_again():
    with (
        webserver({**ANSWERS, "runOrError": {"status": "CANCELED"}}) as (url, _),
        pytest.raises(RunFailedError, match="Run r1 was stopped") as failure,
    ):
        submit(url, "tiny", PAGES)
    assert failure.value.is_final


def test_password_in_the_address_opens_the_webserver_and_is_neither_in_links_nor_in_errors(monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
    caplog.set_level("DEBUG")
    basic = "Basic " + base64.b64encode(b"ev:p@ss").decode()
    with webserver(wants=basic) as (url, _):
        secret = url.replace("http://", "http://ev:p%40ss@")
        assert is_reachable(secret) and not is_reachable(url)
        assert submit(secret, "tiny", PAGES).run_ids == ("r1",)
        assert run_page(secret + "/dagster", "r1") == f"{url}/dagster/runs/r1"
    refused = {"__typename": "PythonError", "message": "no"}
    for answers, busy in (
        (ANSWERS, "runOrError"),
        ({**ANSWERS, "launchRun": refused}, None),
        ({**ANSWERS, "repositoriesOrError": {}}, None),
        ({**ANSWERS, "runOrError": {"status": "CANCELED"}}, None),
        ({**ANSWERS, "runOrError": {"status": "FAILURE"}}, None),
    ):
        with webserver(answers, busy=busy, n_busy=999) as (url, _), pytest.raises(UserError) as error:
            submit(url.replace("http://", "http://ev:p%40ss@"), "tiny", PAGES)
        assert url in str(error.value) and "ss@" not in str(error.value)
    assert "p%40ss" not in caplog.text and "p@ss" not in caplog.text


def daemon(*, is_healthy):
    return {"instance": {"daemonHealth": {"daemonStatus": {"healthy": is_healthy}}}}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_QUEUE_CHECK_S", 0.05)
    monkeypatch.setattr(module, "_POLL_S", 0.02)


def test_run_that_waits_behind_others_is_waited_for_while_the_daemon_is_at_work(impatient):
    def status(asked):
        return {"status": "QUEUED" if asked.count("instance") < 3 else "SUCCESS"}

    with webserver({**ANSWERS, **daemon(is_healthy=True), "runOrError": status}) as (url, asked):
        assert submit(url, "tiny", PAGES).run_ids == ("r1",)
    assert asked.count("instance") == 3 and "terminateRun" not in asked


@pytest.mark.parametrize("is_healthy", [False, None])  # None: this Dagster has no daemon of the queue at all
def test_run_whose_queue_nobody_moves_is_cancelled_before_it_is_given_up(impatient, is_healthy):
    answers = {
        **ANSWERS,
        **daemon(is_healthy=is_healthy),
        "runOrError": {"status": "QUEUED"},
        "terminateRun": {"__typename": "TerminateRunSuccess"},
    }
    with webserver(answers) as (url, asked), pytest.raises(RunFailedError, match="was cancelled") as failure:
        submit(url, "tiny", PAGES)
    assert asked[-2:] == ["instance", "terminateRun"]
    assert (failure.value.is_final, failure.value.where, failure.value.run_id) == (True, "the queue", "r1")


def test_run_that_cannot_be_cancelled_is_given_up_with_the_word_that_it_may_start_yet(impatient):
    answers = {
        **ANSWERS,
        **daemon(is_healthy=False),
        "runOrError": {"status": "QUEUED"},
        "terminateRun": {"__typename": "TerminateRunFailure", "message": "You do not have permission"},
    }
    said = r"could not be cancelled \(You do not have permission\): cancel it at http://.*/runs/r1"
    with webserver(answers) as (url, _), pytest.raises(RunFailedError, match=said):
        submit(url, "tiny", PAGES)


@pytest.fixture
def dagster(tmp_path, monkeypatch):
    """Yield a Dagster of our settings, with nothing to run and no daemon, that answers what is asked."""
    home = tmp_path / "home"
    home.mkdir()
    write_settings(home)
    schema = create_schema()
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as served,
    ):

        def ask(url, query, **variables):
            context = served.create_request_context()
            reply = asyncio.run(schema.execute_async(query, context_value=context, variable_values=variables))
            assert not reply.errors
            return reply.data

        monkeypatch.setattr(module, "_ask", ask)
        yield instance


def queue(dagster):
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("l"), "r"), "everything")
    return dagster.add_run(
        dg.DagsterRun("everything", make_new_run_id(), status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
    )


def test_dagster_itself_tells_that_its_daemon_is_not_at_work_and_cancels_the_run(impatient, dagster):
    queued = queue(dagster)
    with pytest.raises(RunFailedError, match="was cancelled"):
        module._wait("http://dagster", queued.run_id)
    assert dagster.get_run_by_id(queued.run_id).status is dg.DagsterRunStatus.CANCELED


def test_dagster_itself_tells_that_its_daemon_is_at_work(impatient, dagster, monkeypatch):
    queued = queue(dagster)
    dagster.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "QUEUED_RUN_COORDINATOR", None, None))
    polls, until = [], time.monotonic() + 0.2

    def pause(seconds):
        polls.append(seconds)
        if time.monotonic() > until:
            dagster.report_run_canceled(queued)

    monkeypatch.setattr(module.time, "sleep", pause)
    assert module._wait("http://dagster", queued.run_id) == "CANCELED"
    assert polls
