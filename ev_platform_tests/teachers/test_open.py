import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ev_platform.errors import UserError
from ev_platform.identity import short_id
from ev_platform.settings import get_settings
from ev_platform.tasks import Task
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers import AnswerJob, Brief
from ev_platform.teachers.ask import Budget, Ledger
from ev_platform.teachers.calls import Reply, Usage, shape_of
from ev_platform.teachers.language_model import LanguageModelTeacher
from ev_platform.teachers.ledger import Settled, ledger_path
from ev_platform.teachers.open import open_client, open_teacher
from ev_platform.teachers.recorded_client import RecordingClient

BRIEF = Brief("Answer questions about charging.", "open_book_qa")
JOB = AnswerJob("exm_1", "Which plug is usual?", ("The Type 2 plug is usual.",))
PRICE = {"input": 1, "output": 10}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Give each test settings of its own, and no key of the machine it runs on."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # where no .env lies
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def task(tmp_path):
    def write(type="open_book_qa", **teacher):
        folder = tmp_path / "plugs"
        folder.mkdir(exist_ok=True)
        (folder / "job_description.json").write_text('{"task_description": "Answer questions."}')
        (folder / "config.yaml").write_text(json.dumps({"type": type, "teacher": teacher}))
        return Task("plugs", folder)

    return write


@pytest.fixture
def provider():
    with serving() as (url, seen):
        yield url, seen


@contextmanager
def serving(answer="Type 2"):
    """Serve both chat APIs on loopback; yield the address and the headers of the requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path.partition("?")[0], dict(self.headers), body))
            said = json.dumps({"answer": answer})
            if self.path.startswith("/v1/messages"):
                reply = {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "model": body["model"],
                    "content": [{"type": "text", "text": said}],
                    "stop_reason": "end_turn",
                    "stop_sequence": None,
                    "usage": {"input_tokens": 100, "output_tokens": 10},
                }
            else:
                message = {"role": "assistant", "content": said}
                reply = {
                    "id": "chat_1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def answer(teacher):
    (outcome,) = teacher.answer(BRIEF, [JOB])
    return outcome


def test_anthropic_teacher_asks_the_address_of_the_environment_with_its_key(task, tmp_path, monkeypatch, provider):
    url, seen = provider
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-the-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    teacher = open_teacher(task(provider="anthropic", model="m-1", price=PRICE, use_batches=False), tmp_path)
    assert teacher.name == "anthropic:m-1"
    outcome = answer(teacher)
    assert (outcome.status, outcome.value) == ("ok", "Type 2")
    assert outcome.cost_usd == pytest.approx(100 / 1e6 + 10 * 10 / 1e6)
    ((path, headers, body),) = seen
    assert (path, body["model"]) == ("/v1/messages", "m-1")
    assert "key-of-the-test" in " ".join(headers.values())
    (row,) = Ledger(ledger_path(tmp_path)).calls([outcome.call_id])  # the ledger lies in the data folder
    assert (row.purpose, row.teacher, row.cost_usd) == ("answer", "anthropic:m-1", outcome.cost_usd)


def test_server_that_asks_for_no_key_needs_none(task, tmp_path, provider):
    url, seen = provider
    settings = {"provider": "openai_compatible", "model": "m-2", "base_url": f"{url}/v1", "price": PRICE}
    outcome = answer(open_teacher(task(**settings), tmp_path))
    assert (outcome.status, outcome.value) == ("ok", "Type 2")
    assert [path for path, _, _ in seen] == ["/v1/chat/completions"]


def test_key_of_the_environment_goes_to_the_address_beside_it_and_to_no_other(task, tmp_path, monkeypatch, provider):
    url, seen = provider
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    settings = {"provider": "openai_compatible", "model": "m-2", "base_url": f"{url}/v1", "price": PRICE}
    for address in (None, "http://127.0.0.1:1/v1", f"{url}/v1"):
        if address is not None:
            monkeypatch.setenv("OPENAI_BASE_URL", address)
        get_settings.cache_clear()
        with_question = {"max_tokens": 100 + len(address or "")}  # else the stored reply answers
        assert answer(open_teacher(task(**settings, **with_question), tmp_path)).status == "ok"
    assert ["key-of-the-test" in " ".join(headers.values()) for _, headers, _ in seen] == [False, False, True]


def test_cap_of_the_configuration_holds(task, tmp_path, provider):
    url, seen = provider
    settings = {"provider": "openai_compatible", "model": "m-2", "base_url": f"{url}/v1", "price": PRICE}
    outcome = answer(open_teacher(task(**settings, max_cost_usd=0.0001), tmp_path))
    assert (outcome.status, seen) == ("over_budget", [])


def test_recorded_teacher_replays_its_file(task, tmp_path):
    class Speaking:
        provider = "recorded"
        has_batches = False

        async def send(self, call):
            return Reply("ok", '{"answer": "Type 2"}', usage=Usage(5, 5), model="m-3")

        async def aclose(self):
            pass

    folder = task(provider="recorded", model="m-3", recording="replies.jsonl").folder
    config = TeacherConfig(provider="recorded", model="m-3", use_batches=False)
    recording = RecordingClient(Speaking(), folder / "replies.jsonl")
    first = LanguageModelTeacher(recording, Ledger(tmp_path / "l"), config, Price(input=0, output=0), Budget(1))
    assert answer(first).value == "Type 2"
    replayed = open_teacher(Task("plugs", folder), tmp_path)
    assert replayed.name == "recorded:m-3"
    assert answer(replayed).value == "Type 2"
    (unknown,) = replayed.answer(BRIEF, [AnswerJob("exm_2", "Another?")])
    assert unknown.status == "failed" and "replies.jsonl has no reply" in unknown.detail


def test_replies_of_one_server_are_not_taken_for_those_of_another(task, tmp_path, monkeypatch):
    with serving("weak") as (weak, asked_weak), serving("strong") as (strong, asked_strong):
        settings = {"provider": "openai_compatible", "model": "default", "price": PRICE}
        for _ in range(2):  # what each has answered stays stored
            said = [answer(open_teacher(task(**settings, base_url=f"{url}/v1"), tmp_path)) for url in (weak, strong)]
            assert [outcome.value for outcome in said] == ["weak", "strong"]
            assert (len(asked_weak), len(asked_strong)) == (1, 1)
        rows = Ledger(ledger_path(tmp_path)).calls([outcome.call_id for outcome in said])
        assert [row.call_id for row in rows] == [outcome.call_id for outcome in said]
        # A server is its address, wherever that is set and however it ends.
        for base_url, of_the_environment in ((f"{strong}/v1/", None), (None, f"{strong}/v1")):
            if of_the_environment:
                monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
                monkeypatch.setenv("OPENAI_BASE_URL", of_the_environment)
                get_settings.cache_clear()
            same = answer(open_teacher(task(**settings, base_url=base_url), tmp_path))
            assert (same.value, same.call_id) == ("strong", said[1].call_id)
        assert len(asked_strong) == 1


def record(folder, said, model="m-1"):
    """Write the recording of an answer to the question that all tests ask."""

    class Speaking:
        provider = "anthropic"
        has_batches = False

        async def send(self, call):
            return Reply("ok", json.dumps({"answer": said}), usage=Usage(5, 5), model=model)

        async def aclose(self):
            pass

    config = TeacherConfig(provider="anthropic", model=model, use_batches=False)
    client, ledger = RecordingClient(Speaking(), folder / "replies.jsonl"), Ledger(folder / f"{said}.sqlite")
    answer(LanguageModelTeacher(client, ledger, config, Price(input=0, output=0), Budget(1)))


def test_recording_is_not_taken_for_the_provider_nor_for_what_it_was_before(task, tmp_path, monkeypatch, provider):
    url, seen = provider
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-the-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    recorded = task(provider="recorded", model="m-1", recording="replies.jsonl")
    record(recorded.folder, "recorded")
    assert answer(open_teacher(recorded, tmp_path)).value == "recorded"
    record(recorded.folder, "again")  # the last line of a call counts
    again = answer(open_teacher(recorded, tmp_path))
    assert again.value == "again"
    paid = answer(open_teacher(task(provider="anthropic", model="m-1", price=PRICE, use_batches=False), tmp_path))
    assert (paid.value, len(seen)) == ("Type 2", 1)
    recorded = task(provider="recorded", model="m-1", recording="replies.jsonl")
    assert answer(open_teacher(recorded, tmp_path)).value == "again"
    rows = Ledger(ledger_path(tmp_path)).calls([again.call_id, paid.call_id])
    assert [row.teacher for row in rows] == ["recorded:m-1", "anthropic:m-1"]


def test_recording_of_one_server_replays_without_it(task, tmp_path, provider):
    url, seen = provider
    asked = task(provider="openai_compatible", model="m-2", base_url=f"{url}/v1", price=PRICE)
    client = RecordingClient(open_client(asked), asked.folder / "replies.jsonl")
    ledger = Ledger(tmp_path / "l")
    first = answer(LanguageModelTeacher(client, ledger, asked.config.teacher, Price(input=0, output=0), Budget(1)))
    replayed = answer(open_teacher(task(provider="recorded", model="m-2", recording="replies.jsonl"), tmp_path))
    assert (first.value, replayed.value, len(seen)) == ("Type 2", "Type 2", 1)
    # The recording client stands for the server: what it paid is the server's.
    again = LanguageModelTeacher(open_client(asked), ledger, asked.config.teacher, Price(input=0, output=0), Budget(1))
    assert (answer(again).call_id, len(seen)) == (first.call_id, 1)


@pytest.mark.parametrize(
    "teacher",
    [
        {"provider": "anthropic"},
        {"provider": "openai_compatible"},
        {"provider": "openai_compatible", "base_url": "https://api.openai.com/v1/"},
    ],
)
def test_what_earlier_releases_paid_to_a_provider_is_not_paid_again(task, tmp_path, monkeypatch, teacher):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-the-test")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    opened = open_teacher(task(**teacher, model="m-1", price=PRICE, use_batches=False), tmp_path)
    call = next(opened._calls("answer", BRIEF, [JOB]))
    # As earlier releases made it.
    id_of_old = short_id("call", "m-1", call.system, call.prompt, shape_of(call.schema), call.max_tokens)
    ledger = Ledger(ledger_path(tmp_path))
    ledger.claim([call], opened.name)
    ledger.store([Settled(id_of_old, "ok", None, Reply("ok", '{"answer": "Paid"}'), 0.5)])
    ledger._db.execute("PRAGMA user_version=1")
    ledger.close()
    outcome = answer(open_teacher(task(**teacher, model="m-1", price=PRICE, use_batches=False), tmp_path))
    assert (outcome.value, outcome.cost_usd, outcome.call_id) == ("Paid", 0.5, id_of_old)


def test_offline_teacher_needs_nothing(task, tmp_path):
    assert open_teacher(task(), tmp_path).name == "offline"
    assert not ledger_path(tmp_path).exists()


def test_offline_teacher_labels_by_the_train_rows_without_those_that_are_tested(task, tmp_path):
    folder = task("classification").folder
    fees = [f"What is the fee of card {n}?,fee" for n in range(4)]
    losses = [f"I lost card number {n} on a trip,loss" for n in range(4)]
    (folder / "train.csv").write_text("\n".join(["question,answer", *fees, *losses, "Tested one,fee"]))
    (folder / "test.csv").write_text("question,answer\ntested ONE,fee\n")
    teacher = open_teacher(Task("plugs", folder), tmp_path)
    # Not by what it labels: its classifier takes many seconds to load.
    assert [shot.answer for shot in teacher._train_rows] == ["fee"] * 4 + ["loss"] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"provider": "anthropic", "model": "m-1", "price": PRICE},
            "needs a key: set ANTHROPIC_API_KEY in the environment or in .env",
        ),
        (
            {"provider": "openai_compatible", "model": "m-1", "price": PRICE},
            "needs a key: set OPENAI_API_KEY in the environment or in .env",
        ),
        ({"provider": "anthropic", "price": PRICE}, "teacher.model is missing: name the model that anthropic"),
        ({"provider": "recorded", "model": "m-1"}, "teacher.recording is missing: name the JSONL file to replay"),
        ({"provider": "recorded", "recording": "x.jsonl"}, "teacher.model is missing: name the model that recorded"),
    ],
)
def test_what_a_teacher_lacks_is_told_in_one_sentence(task, tmp_path, settings, said):
    with pytest.raises(UserError, match=said) as error:
        open_teacher(task(**settings), tmp_path)
    assert "config.yaml" in str(error.value) and "\n" not in str(error.value)


def test_empty_key_is_no_key(task, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    with pytest.raises(UserError, match="set ANTHROPIC_API_KEY"):
        open_teacher(task(provider="anthropic", model="m-1", price=PRICE), tmp_path)


def test_offline_teacher_has_no_client(task):
    with pytest.raises(UserError, match=r"asks no model: set teacher\.provider to one of anthropic, openai_compatible"):
        open_client(task())
