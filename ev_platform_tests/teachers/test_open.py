import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import Task
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers import AnswerJob, Brief
from ev_platform.teachers.ask import Budget, Ledger
from ev_platform.teachers.calls import Reply, Usage
from ev_platform.teachers.language_model import LanguageModelTeacher
from ev_platform.teachers.ledger import ledger_path
from ev_platform.teachers.open import open_client, open_teacher
from ev_platform.teachers.recorded_client import RecordingClient

BRIEF = Brief("Answer questions about charging.", "open_book_qa")
JOB = AnswerJob("exm_1", "Which plug is usual?", ("The Type 2 plug is usual.",))
PRICE = {"input": 1, "output": 10}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Give each test settings of its own, and no key of the machine it runs on."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY"):
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
    """Serve both chat APIs on loopback; yield the address and the headers of the requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path.partition("?")[0], dict(self.headers), body))
            said = '{"answer": "Type 2"}'
            if self.path.startswith("/v1/messages"):
                answer = {
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
                answer = {
                    "id": "chat_1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
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
