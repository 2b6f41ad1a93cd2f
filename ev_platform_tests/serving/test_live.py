import asyncio
import contextlib
import itertools
import logging
import shutil
import statistics
import threading
import time
import weakref
from functools import partial

import pytest

from ev_platform.errors import UserError
from ev_platform.registry import load_release
from ev_platform.registry.promotion import promote, rollback
from ev_platform.serving import live as swapping
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask
from ev_platform.serving.live import POLL_S, load_from_registry, open_release, split_model
from ev_platform.serving.schemas import ApiError
from ev_platform.serving.worker import LocalBackend
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform_tests.serving import fakes, versions
from ev_platform_tests.serving.versions import TASK, point

QUESTION = "Which plug is usual?"
SEEN_WITHIN_S = 3


class Client:
    """Asks a backend that follows its alias, on an event loop in a thread of its own."""

    def __init__(self, loop, live, model):
        self.live, self._loop, self._model = live, loop, model
        self._backend = LocalBackend({model: live})
        self._numbers = itertools.count()

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def open(self):
        self.do(self._backend.__aenter__())

    def close(self):
        self.do(self._backend.__aexit__())

    def ask(self, question=QUESTION, **fields):
        return self.do(self._backend.answer(self._model, Ask(str(next(self._numbers)), question, **fields)))

    def described(self):
        return self.do(self._backend.describe(self._model))

    def await_model(self, version, within_s=SEEN_WITHIN_S):
        """Wait until the version answers; return the seconds it took."""
        started = time.monotonic()
        while self.described().model_version != version:
            assert time.monotonic() - started < within_s, f"{self.described().model_version} still answers"
            time.sleep(0.01)
        return time.monotonic() - started


@contextlib.contextmanager
def open_client(root, model=TASK, load=fakes.load_named, tasks_dir=None, config=None):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        opening = open_release(load, root, tasks_dir or root, model, config or ServingConfig())
        live = asyncio.run_coroutine_threadsafe(opening, loop).result(60)
        client = Client(loop, live, model)
        client.open()
        try:
            yield client
        finally:
            client.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def quick(monkeypatch):
    """Look often, and try again soon, where the test is not about how long that takes."""
    monkeypatch.setattr(swapping, "POLL_S", 0.02)
    monkeypatch.setattr(swapping, "RETRY_S", 0.2)


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


def test_promotion_and_rollback_under_load_fail_no_question_and_are_seen_within_three_seconds(registered):
    root, tasks_dir, answers = registered
    store = Store(root)
    promote_anyway = partial(promote, store, TASK, reason="to see it swap", by="tests", override=True)
    promote_anyway("tiny@1")
    replies, faults, stop = [], [], threading.Event()

    def ask_without_pause():
        while not stop.is_set():
            try:
                replies.append(client.ask())
            except Exception as error:
                faults.append(error)

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
        last = client.ask()
    assert not faults
    assert all(reply.text == answers[reply.model_version] for reply in replies)
    assert {reply.model_version for reply in replies} == {"tiny@1", "tiny@2"}
    assert last.model_version == "tiny@2"
    assert statistics.median(seconds) < SEEN_WITHIN_S  # one of them may meet a machine that is busy elsewhere
    print(f"\n{len(replies)} questions, 0 failed; swaps seen after {', '.join(f'{s:.2f}' for s in seconds)} s")


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
def test_version_that_cannot_be_loaded_is_logged_and_taken_once_it_is_put_right(registered, caplog, break_it, told):
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
            record = errors_of(caplog)[0]
            assert record.exc_info is None  # a sentence, not a traceback
            assert "tiny@1 goes on answering: " in record.getMessage()
            assert told in record.getMessage()
            reply = client.ask()
            assert (reply.model_version, reply.text) == ("tiny@1", answers["tiny@1"])
            # Put right, it is taken, though nobody writes the aliases again.
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            client.await_model("tiny@2", 10)
            assert client.ask().text == answers["tiny@2"]
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
    config = ServingConfig(max_waiting=4, max_batch=1)
    with open_client(tmp_path, config=config) as client:
        release = client.live.worker.release
        engine, gone = release.engine, weakref.ref(release)
        del release
        engine.may_answer.clear()
        replies, refusals = [], []

        def ask(number):
            try:
                replies.append(client.ask(f"question {number}"))
            except ApiError as error:
                refusals.append((error.status, error.code, error.retry_after_s))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        while not refusals:  # until some are running, some wait and some are refused
            time.sleep(0.01)
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")
        assert client.ask().model_version == "tiny@2"
        assert not replies
        assert gone() is not None
        engine.may_answer.set()
        for thread in threads:
            thread.join()
        assert set(refusals) == {(503, "overloaded", 1)}
        assert len(replies) >= config.max_waiting
        assert {reply.model_version for reply in replies} == {"tiny@1"}
        assert all("I am tiny@1." in reply.text for reply in replies)
        assert_gone(gone)


def assert_gone(release):
    # Threads of the batcher may need a moment to end.
    deadline = time.monotonic() + 3
    while release() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_old_version_is_dropped_also_where_it_failed_to_answer(tmp_path):
    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path) as client:
        gone = weakref.ref(client.live.worker.release)
        for fields in ({"question": "explode"}, {"max_tokens": 49}, {"question": "word " * 200}):
            with pytest.raises(ApiError):
                client.ask(**fields)
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")
        client.ask()
        assert_gone(gone)


@pytest.mark.usefixtures("quick")
def test_description_follows_the_swap_and_the_version_before_is_refused(tmp_path):
    point(tmp_path, TASK, champion="tiny@1", candidate="tiny@2")
    with open_client(tmp_path) as client:
        assert (client.described().model, client.described().model_version) == (TASK, "tiny@1")
        assert client.ask(version="tiny@1").model_version == "tiny@1"
        point(tmp_path, TASK, champion="tiny@2", candidate="tiny@2")
        client.await_model("tiny@2")
        assert (client.described().model, client.described().model_version) == (TASK, "tiny@2")
        with pytest.raises(ApiError, match="ask for tiny@2") as refused:
            client.ask(version="tiny@1")
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
        assert client.ask(version="tiny@2").model_version == "tiny@2"


@pytest.mark.usefixtures("quick")
def test_server_of_a_candidate_follows_the_candidate(tmp_path):
    point(tmp_path, TASK, champion="tiny@1", candidate="tiny@2")
    with open_client(tmp_path, "tiny@candidate") as client:
        assert client.described().model_version == "tiny@2"
        point(tmp_path, TASK, champion="tiny@2", candidate="tiny@3")
        client.await_model("tiny@3")


@pytest.mark.usefixtures("quick")
def test_server_of_a_version_never_swaps(tmp_path, caplog):
    point(tmp_path, TASK, champion="tiny@3")
    with open_client(tmp_path, "tiny@3") as client:
        point(tmp_path, TASK, champion="tiny@4")
        time.sleep(20 * swapping.POLL_S)
        assert client.ask().model_version == "tiny@3"
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


class BrokenEngine(fakes.FakeEngine):
    def generate(self, prompts, **options):
        raise RuntimeError("a kernel is missing")


class FickleEngine(fakes.FakeEngine):
    """Answers every time with other words, as an engine would whose ways of serving and of evaluating differ."""

    def __init__(self):
        super().__init__()
        self._numbers = itertools.count()

    def generate(self, prompts, **options):
        return [
            type(made)(f"{next(self._numbers)} {made.text}", 1, 1, 1.0, "stop")
            for made in super().generate(prompts, **options)
        ]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("engine", "told"),
    [(BrokenEngine, "a kernel is missing"), (FickleEngine, "answers otherwise when it serves than when it is")],
)
def test_version_that_fails_to_answer_or_answers_otherwise_takes_no_traffic(tmp_path, caplog, engine, told):
    def load(root, tasks_dir, task, name):
        changes = {"engine": engine()} if name == "tiny@2" else {}
        return fakes.fake_release(task, model_version=name.replace("champion", "tiny@1"), **changes)

    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path, load=load) as client:
        point(tmp_path, TASK, champion="tiny@2")
        await_records(caplog, 1)
        assert client.ask().model_version == "tiny@1"
        point(tmp_path, TASK, champion="tiny@3")
        client.await_model("tiny@3")
    record = errors_of(caplog)[0]
    assert "tiny@1 goes on answering" in record.getMessage()
    assert told in logging.Formatter().format(record)


def test_first_version_that_fails_to_answer_does_not_start(tmp_path):
    def load(root, tasks_dir, task, name):
        return fakes.fake_release(task, engine=FickleEngine())

    with pytest.raises(UserError, match="answers otherwise"), open_client(tmp_path, load=load):
        pass


def test_pauses_between_tries_of_a_bad_version_grow_and_end_with_the_next_promotion(tmp_path, monkeypatch):
    tries = []

    def load(root, tasks_dir, task, name):
        if name == "tiny@2":
            tries.append(time.monotonic())
            raise UserError("not yet")
        return fakes.load_named(root, tasks_dir, task, name)

    monkeypatch.setattr(swapping, "POLL_S", 0.01)
    monkeypatch.setattr(swapping, "RETRY_S", 0.1)
    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path, load=load) as client:
        point(tmp_path, TASK, champion="tiny@2")
        time.sleep(1.2)
        assert 3 <= len(tries) <= 4  # at 0, 0.1, 0.3 and 0.7 s
        first, second, third = tries[:3]
        assert third - second > 1.5 * (second - first)
        point(tmp_path, TASK, champion="tiny@3")
        client.await_model("tiny@3")


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
        assert client.ask().model_version == "tiny@1"
        point(tmp_path, TASK, champion="tiny@2")
        client.await_model("tiny@2")


def test_look_at_unmoved_aliases_reads_no_file_and_loads_nothing(tmp_path, monkeypatch):
    point(tmp_path, TASK, champion="tiny@1")

    async def look_often():
        live = await open_release(fakes.load_named, tmp_path, tmp_path, TASK, ServingConfig())
        assert not await live._swap_if_moved(live.alias)

        def never(*arguments):
            raise AssertionError("nothing moved")

        monkeypatch.setattr("ev_platform.registry.read_aliases", never)
        started = time.perf_counter()
        for _ in range(100):
            assert not await live._swap_if_moved(live.alias)
        live.close()
        return (time.perf_counter() - started) / 100

    # A whole second of looks, one each `POLL_S`, must cost well below a thousandth of it.
    assert asyncio.run(look_often()) < POLL_S / 1000


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("model", [TASK, "tiny@1"])
def test_version_in_place_is_loaded_anew_when_something_was_taken_down(tmp_path, model):
    point(tmp_path, TASK, champion="tiny@1")
    with open_client(tmp_path, model=model) as client:
        before = client.live.worker
        pointer = tmp_path / "tables" / "takedowns" / TASK / "CURRENT"
        pointer.parent.mkdir(parents=True)
        pointer.write_text("a version")
        started = time.monotonic()
        while client.live.worker is before:
            assert time.monotonic() - started < SEEN_WITHIN_S
            time.sleep(0.01)
        assert client.ask().model_version == "tiny@1"
        after = client.live.worker
        time.sleep(5 * swapping.POLL_S)
        assert client.live.worker is after  # once


def test_server_whose_first_version_cannot_be_loaded_does_not_start(tmp_path):
    with pytest.raises(UserError, match="no model of 'tiny' yet"), open_client(tmp_path, load=fakes.load_missing):
        pass


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ev_charging", ("ev_charging", "champion")),
        ("ev_charging@candidate", ("ev_charging", "candidate")),
        ("ev_charging@12", ("ev_charging", "ev_charging@12")),
    ],
)
def test_name_of_a_served_model_is_a_task_with_an_alias_or_a_version(model, expected):
    assert split_model(model) == expected


@pytest.mark.parametrize("model", ["", "@3", "ev_charging@"])
def test_name_of_no_model_is_told(model):
    with pytest.raises(UserError, match="names no model: write TASK"):
        split_model(model)
