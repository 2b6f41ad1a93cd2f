import asyncio
import re
import socket
import subprocess
import sys
import threading

import pytest

from ev_platform.errors import UserError
from ev_platform.registry import load_release
from ev_platform.serving import replay as replaying
from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import list_keys
from ev_platform.serving.replay import replay, served
from ev_platform.serving.schemas import ApiError
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform_tests.serving import versions
from ev_platform_tests.serving.fakes import FakeEngine, fake_backend, fake_release

QUESTIONS = ["Which plug is usual?", "How often are cables tested?", "Who tests the RCD?"]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where a replay has its key and its log; nothing of it may stay."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def test_replay_of_a_real_release_gives_what_its_engine_gives_in_order(tmp_path):
    store = Store(tmp_path / "data")
    tasks_dir = versions.write_task(tmp_path / "tasks")
    versions.register(store, tmp_path, 1)
    release = load_release(store, get_task(versions.TASK, tasks_dir), "tiny@1")
    prompts = [release.render(question, []) for question in QUESTIONS]
    expected = [release.engine.generate([prompt], max_new_tokens=8)[0].text for prompt in prompts]
    assert len(set(expected)) == len(expected)  # so that the order shows
    assert replay(release, QUESTIONS, 8) == expected
    assert not list_keys(store.root)  # nobody who may ask the champion was made for it
    assert read_journal(store.root, "requests").is_empty()  # nor does it count as asked


def test_replay_goes_through_retrieval_template_and_options_of_the_endpoint(scratch):
    release = fake_release()
    (answer,) = replay(release, ["Test the RCD"], 5)
    prompt = release.render("Test the RCD", release.retrieve("Test the RCD"))
    assert answer == f"temperature=0.0 seed=0 max_new_tokens=5 | {prompt}"
    assert "Test the RCD every three months." in prompt


def test_replay_ignores_a_proxy_of_the_environment(scratch, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(replay(fake_release(), QUESTIONS, 5)) == 3


def test_replay_of_a_failing_engine_names_the_question_and_leaves_no_key(scratch):
    with pytest.raises(UserError, match=r"^fake_task@3 answered replayed question 2 with 500: The server failed"):
        replay(fake_release(), ["fine", "explode"], 5)


def test_replay_with_longer_answers_than_were_evaluated_is_refused_by_the_endpoint(scratch):
    with pytest.raises(UserError, match="question 1 with 400: max_tokens is 49 but the cap is 48"):
        replay(fake_release(), QUESTIONS, 49)


def test_replay_of_an_engine_that_hangs_ends_with_a_sentence_and_no_key(scratch, monkeypatch):
    monkeypatch.setattr(replaying, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(replaying, "_STOP_TIMEOUT_S", 1)
    engine = FakeEngine()
    engine.may_answer.clear()
    told = (
        r"fake_task@3 (did not answer replayed question 1 \(ReadTimeout\)|answered replayed question 1 with 504: No an)"
    )
    try:
        with pytest.raises(UserError, match=told):
            replay(fake_release(engine=engine), QUESTIONS, 5)
    finally:
        engine.may_answer.set()


def test_replay_interrupted_leaves_no_key(scratch):
    def questions():
        yield "fine"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(fake_release(), questions(), 5)


def test_served_application_is_gone_after_the_block_and_its_model_too(tmp_path):
    backend, before = fake_backend(), set(threading.enumerate())
    with served(create_api(backend, tmp_path, ServingConfig()), backend) as url:
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)", url)[1])
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(ApiError, match="server is stopping"):
        asyncio.run(backend.answer("fake_task", Ask("1", "anyone?")))
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("replay")}


def test_served_application_that_cannot_start_is_told():
    async def broken(scope, receive, send):
        raise RuntimeError("not today")

    with pytest.raises(UserError, match="did not start"), served(broken):
        pass


def test_replay_needs_no_ray():
    code = "import sys, ev_platform.serving.replay; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
