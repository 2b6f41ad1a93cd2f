import asyncio
import contextlib
import logging
import shutil
import statistics
import threading
import time
import weakref
from functools import partial

import httpx
import pytest

from ev_platform.errors import UserError
from ev_platform.registry import load_release
from ev_platform.registry.promotion import promote, rollback
from ev_platform.serving import live as swapping
from ev_platform.serving.api import create_api
from ev_platform.serving.keys import create_key
from ev_platform.serving.live import POLL_S, load_from_registry, open_release
from ev_platform.serving.replay import served
from ev_platform.serving.worker import MAX_PENDING
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform_tests.serving import fakes, versions
from ev_platform_tests.serving.versions import TASK, point

QUESTION = "Which plug is usual?"
SEEN_WITHIN_S = 3


class Client:
    """Asks a server of its own, which was started for an alias or a version."""

    def __init__(self, url, key, live):
        self.url, self.live = url, live
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)

    def ask(self, content=QUESTION, **fields):
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def model(self):
        return self.http.get("/healthz").json()["model"]

    def await_model(self, version, within_s=SEEN_WITHIN_S):
        """Wait until the version answers; return the seconds it took."""
        started = time.monotonic()
        while self.model() != version:
            assert time.monotonic() - started < within_s, f"{self.model()} still answers"
            time.sleep(0.01)
        return time.monotonic() - started


@contextlib.contextmanager
def open_client(root, release_name=None, load=fakes.load_named, task=TASK, tasks_dir=None):
    key = create_key(root, "tests")
    live = open_release(load, root, tasks_dir or root, task, release_name)
    with served(create_api(live, root)) as url:
        client = Client(url, key, live)
        with client.http:
            yield client


@pytest.fixture
def quick(monkeypatch):
    """Look often, where the test is not about how long a swap takes."""
    monkeypatch.setattr(swapping, "POLL_S", 0.02)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Return a data folder with two versions of real weights, the folder of tasks, and what each version answers."""
    root = tmp_path_factory.mktemp("swap")
    store, tasks_dir = Store(root / "data"), versions.write_task(root / "tasks")
    answers = {}
    for number in (1, 2):
        versions.register(store, root, number)
        release = load_release(store, get_task(TASK, tasks_dir), f"tiny@{number}")
        prompt = release.render(QUESTION, [])
        answers[release.model_version] = release.engine.generate([prompt], max_new_tokens=8)[0].text
    assert len(set(answers.values())) == 2  # so that an answer shows whose it is
    return store.root, tasks_dir, answers


# ---- real weights, under load ----


def test_promotion_and_rollback_under_load_fail_no_request_and_are_seen_within_three_seconds(registered):
    root, tasks_dir, answers = registered
    store = Store(root)
    promote_anyway = partial(promote, store, TASK, reason="to see it swap", by="tests", override=True)
    promote_anyway("tiny@1")
    replies, stop = [], threading.Event()

    def ask_without_pause():
        with httpx.Client(base_url=client.url, headers=client.http.headers, timeout=20) as http:
            while not stop.is_set():
                body = {"messages": [{"role": "user", "content": QUESTION}], "model": "champion"}
                replies.append(http.post("/v1/chat/completions", json=body))

    with open_client(root, load=load_from_registry, tasks_dir=tasks_dir) as client:
        threads = [threading.Thread(target=ask_without_pause) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            seconds = []
            for move, version in (
                (partial(promote_anyway, "tiny@2"), "tiny@2"),
                (partial(rollback, store, TASK, reason="to see it swap back", by="tests"), "tiny@1"),
                (partial(promote_anyway, "tiny@2"), "tiny@2"),
            ):
                n_before = len(replies)
                move()
                seconds.append(client.await_model(version, 15))
                assert len(replies) > n_before
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        last = client.ask().json()
    assert {reply.status_code for reply in replies} == {200}
    bodies = [reply.json() for reply in replies]
    assert all(body["choices"][0]["message"]["content"] == answers[body["model"]] for body in bodies)
    assert {body["model"] for body in bodies} == {"tiny@1", "tiny@2"}
    assert last["model"] == "tiny@2"
    assert statistics.median(seconds) < SEEN_WITHIN_S  # one of them may meet a machine that is busy elsewhere
    print(f"\n{len(replies)} requests, 0 failed; swaps seen after {', '.join(f'{s:.2f}' for s in seconds)} s")


def alter_weights(folder, store):
    file = folder / "model.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_weights_off(folder, store):
    file = folder / "model.bin"
    file.write_bytes(file.read_bytes()[:1000])


def prune(folder, store):
    shutil.rmtree(folder)


def change_template(folder, store):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (alter_weights, "files of tiny@2"),
        (cut_weights_off, "files of tiny@2"),
        (prune, "weights of tiny@2 are gone"),
        (change_template, "tiny@2 was evaluated with another prompt template"),
    ],
)
def test_version_that_cannot_be_loaded_is_logged_once_and_the_old_one_goes_on(registered, caplog, break_it, told):
    root, tasks_dir, answers = registered
    folder = Store(root).artifact_path("serving_model", "model_2")
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    point(root, TASK, champion="tiny@1")
    try:
        with open_client(root, load=load_from_registry, tasks_dir=tasks_dir) as client:
            break_it(folder, Store(root))
            point(root, TASK, champion="tiny@2", previous="tiny@1")
            await_records(caplog, 1)
            time.sleep(10 * swapping.POLL_S)
            (record,) = errors_of(caplog)
            assert record.exc_info is None  # a sentence, not a traceback
            assert "tiny@1 goes on answering: " in record.getMessage()
            assert told in record.getMessage()
            body = client.ask().json()
            assert (body["model"], body["choices"][0]["message"]["content"]) == ("tiny@1", answers["tiny@1"])
            # Put right, it is taken when the aliases are written again, and not before.
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            time.sleep(10 * swapping.POLL_S)
            assert client.model() == "tiny@1"
            point(root, TASK, champion="tiny@2", previous="tiny@1")
            client.await_model("tiny@2", 10)
            assert client.ask().json()["choices"][0]["message"]["content"] == answers["tiny@2"]
            assert len(errors_of(caplog)) == 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)


def errors_of(caplog):
    return [record for record in caplog.records if record.name == swapping.__name__ and record.levelname == "ERROR"]


def await_records(caplog, n_records):
    deadline = time.monotonic() + 10
    while len(errors_of(caplog)) < n_records:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- what a swap is, with fakes ----


@pytest.mark.usefixtures("quick")
def test_questions_under_way_finish_on_the_old_version_which_is_then_dropped(tmp_path):
    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path) as client:
        release = client.live.worker.release
        engine, gone = release.engine, weakref.ref(release)
        del release
        engine.may_answer.clear()
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(client.ask())) for _ in range(MAX_PENDING + 1)]
        for thread in threads:
            thread.start()
        while not replies:  # until all but one, which is refused, are running or waiting
            time.sleep(0.01)
        assert replies.pop().status_code == 503
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")
        assert client.ask().json()["model"] == "tiny@2"
        assert not replies
        assert gone() is not None
        engine.may_answer.set()
        for thread in threads:
            thread.join()
        bodies = [reply.json() for reply in replies]
        assert {body["model"] for body in bodies} == {"tiny@1"}
        assert all("I am tiny@1." in body["choices"][0]["message"]["content"] for body in bodies)
        assert gone() is None


@pytest.mark.usefixtures("quick")
def test_old_version_is_dropped_also_where_it_failed_to_answer(tmp_path):
    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path) as client:
        gone = weakref.ref(client.live.worker.release)
        assert client.ask("explode").status_code == 500
        assert client.ask(max_tokens=49).status_code == 400
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")
        client.ask()
        assert gone() is None


@pytest.mark.usefixtures("quick")
def test_names_models_and_description_follow_the_swap(tmp_path):
    point(tmp_path, TASK, champion="tiny@1", candidate="tiny@2")
    with open_client(tmp_path) as client:
        assert client.http.get("/openapi.json").json()["info"]["version"] == "tiny@1"
        assert client.ask(model="tiny@1").status_code == 200
        assert client.ask(model="tiny@2").status_code == 404
        point(tmp_path, TASK, champion="tiny@2", candidate="tiny@2")
        client.await_model("tiny@2")
        old = client.ask(model="tiny@1")
        assert (old.status_code, old.json()["error"]["code"]) == (404, "model_not_found")
        assert old.json()["error"]["message"].endswith("ask for tiny@2.")
        for name in ("tiny@2", "tiny", "champion", None):
            assert client.ask(model=name).json()["model"] == "tiny@2"
        assert client.ask(model="candidate").status_code == 404  # it follows the champion, whatever else moves
        assert [card["id"] for card in client.http.get("/v1/models").json()["data"]] == ["tiny@2"]
        described = client.http.get("/openapi.json").json()
        assert described["info"]["version"] == "tiny@2"
        assert described["info"]["description"] == "I am tiny@2."
        route = described["paths"]["/v1/chat/completions"]["post"]["description"]
        assert route.count("The cap of `max_tokens` is 48.") == 1


@pytest.mark.usefixtures("quick")
def test_server_of_a_candidate_follows_the_candidate(tmp_path):
    point(tmp_path, TASK, champion="tiny@1", candidate="tiny@2")
    with open_client(tmp_path, "candidate") as client:
        assert client.model() == "tiny@2"
        point(tmp_path, TASK, champion="tiny@2", candidate="tiny@3")
        client.await_model("tiny@3")
        assert client.ask(model="candidate").json()["model"] == "tiny@3"


@pytest.mark.usefixtures("quick")
def test_server_of_a_version_never_swaps(tmp_path, caplog):
    point(tmp_path, TASK, champion="tiny@3")
    with open_client(tmp_path, "tiny@3") as client:
        point(tmp_path, TASK, champion="tiny@4")
        time.sleep(20 * swapping.POLL_S)
        assert client.ask().json()["model"] == "tiny@3"
        assert client.ask(model="champion").status_code == 404
    assert not errors_of(caplog)  # nor does it miss an alias


@pytest.mark.usefixtures("quick")
def test_promotion_while_the_server_starts_is_seen(tmp_path):
    def load_slowly(root, tasks_dir, task, name):
        release = fakes.load_named(root, tasks_dir, task, name)
        if name == "champion":
            point(root, TASK, champion="tiny@2")
        return release

    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path, load=load_slowly) as client:
        client.await_model("tiny@2")


@pytest.mark.usefixtures("quick")
def test_version_that_fails_to_answer_the_first_prompt_takes_no_traffic(tmp_path, caplog):
    class BrokenEngine(fakes.FakeEngine):
        def generate(self, prompts, **options):
            raise RuntimeError("a kernel is missing")

    def load(root, tasks_dir, task, name):
        changes = {"engine": BrokenEngine()} if name == "tiny@2" else {}
        return fakes.fake_release(task, model_version=name.replace("champion", "tiny@1"), **changes)

    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path, load=load) as client:
        point(tmp_path, TASK, champion="tiny@2")
        await_records(caplog, 1)
        assert client.ask().json()["model"] == "tiny@1"
        point(tmp_path, TASK, champion="tiny@3")
        client.await_model("tiny@3")
    (record,) = errors_of(caplog)
    assert "tiny@1 goes on answering" in record.getMessage()
    assert "a kernel is missing" in logging.Formatter().format(record)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"candidate": "tiny@2"}', None])
def test_aliases_that_are_damaged_or_gone_leave_the_version_in_place(tmp_path, caplog, text):
    point(tmp_path, TASK, champion="tiny@1")
    file = tmp_path / "registry" / f"{TASK}.json"
    with open_client(tmp_path) as client:
        client.await_model("tiny@1")
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        await_records(caplog, 1)
        assert client.ask().json()["model"] == "tiny@1"
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")


def test_look_at_unmoved_aliases_reads_no_file_and_loads_nothing(tmp_path, monkeypatch):
    point(tmp_path, TASK, champion="tiny@1")
    live = open_release(fakes.load_named, tmp_path, tmp_path, TASK, None)
    look = partial(live._load_if_moved, live.alias)
    assert look() is None

    def never(*arguments):
        raise AssertionError("nothing moved")

    monkeypatch.setattr("ev_platform.registry.read_aliases", never)
    started = time.perf_counter()
    for _ in range(100):
        assert look() is None
    # A whole second of looks, one each `POLL_S`, must cost well below a thousandth of it.
    assert (time.perf_counter() - started) / 100 < POLL_S / 1000
    live.close()


def test_release_without_an_alias_has_nothing_to_follow(tmp_path):
    live = open_release(fakes.load_named, tmp_path, tmp_path, TASK, "tiny@1")
    asyncio.run(asyncio.wait_for(live.follow(), 1))
    live.close()


def test_server_whose_first_version_cannot_be_loaded_does_not_start(tmp_path):
    with pytest.raises(UserError, match="no model of 'tiny' yet"):
        open_release(fakes.load_missing, tmp_path, tmp_path, TASK, None)
