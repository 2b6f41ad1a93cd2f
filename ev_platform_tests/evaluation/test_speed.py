import polars as pl
import pytest

from ev_platform.decoding import Completion
from ev_platform.evaluation import speed
from ev_platform.evaluation.speed import chats_of, measure_inference
from ev_platform.records import Chunk, DatasetRow, schema_of, to_frame
from ev_platform.tasks.config import EvaluationConfig
from ev_platform.tasks.types import get_task_type

CHATS = [[{"role": "user", "content": f"question {n}"}] for n in range(5)]


class Clock:
    """Time that passes only while an engine works."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


class Labeller:
    """Answers one prompt after the other, each in half a second, after a second for the call."""

    window = 2048
    first_token_ms = None

    def __init__(self, name, clock, log):
        self.name, self.clock, self.log = name, clock, log

    def render(self, messages):
        return messages[-1]["content"]

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        self.log.append((self.name, [int(prompt.split()[-1]) for prompt in prompts], max_new_tokens))
        self.clock.now_s += 1 + 0.5 * len(prompts)
        return [
            Completion("x", 2, 10, 1500.0 + 500 * n, "stop", self.first_token_ms and self.first_token_ms + n)
            for n, _ in enumerate(prompts)
        ]


class Author(Labeller):
    first_token_ms = 100.0


def measure(kind, clock, chats=CHATS, **config):
    log = []
    engines = {name: (f"{name}_1", kind(name, clock, log)) for name in ("base", "tuned")}
    config = EvaluationConfig(max_new_tokens=40, machine_usd_per_hour=3.6, **config)
    return measure_inference(engines, chats, config), log


def test_base_and_tuned_answer_every_batch_in_turn_and_take_turns_in_beginning(clock):
    _, log = measure(Author, clock, CHATS[:4], concurrencies=(2,))
    assert log[:2] == [("base", [0], 2), ("tuned", [0], 2)]  # warm-up
    assert log[2:] == [("base", [0, 1], 40), ("tuned", [0, 1], 40), ("tuned", [2, 3], 40), ("base", [2, 3], 40)]


def test_every_batch_is_as_full_as_the_concurrency(clock):
    figures, log = measure(Author, clock, concurrencies=(1, 3, 8))
    sizes = [len(asked) for name, asked, _ in log[2:] if name == "base"]
    assert sizes == [1] * 5 + [3] * 2 + [8]
    assert figures.filter(model="base").select("concurrency", "n_requests").rows() == [(1, 5), (3, 6), (8, 8)]
    assert log[-1][1] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_figures_are_those_of_the_requests(clock):
    figures, _ = measure(Author, clock, CHATS[:4], concurrencies=(1, 4))
    one, four = figures.filter(model="tuned").to_dicts()
    # Each request waits for its own answer only: of four at once, the first 1.5 s and the last 3 s.
    assert (one["latency_ms_p50"], four["latency_ms_p50"]) == (1500, 2250)
    assert four["latency_ms_p99"] == pytest.approx(2985)
    assert one["tokens_per_second"] == pytest.approx(10 / 1.5, abs=1e-3)
    assert four["tokens_per_second"] == pytest.approx(40 / 3, abs=1e-3)
    assert (one["first_token_ms_p50"], four["first_token_ms_p50"]) == (100.0, 101.5)
    # 3.6 dollars an hour are 0.001 a second.
    assert one["usd_per_1000_answers"] == pytest.approx(1.5) and four["usd_per_1000_answers"] == pytest.approx(0.75)
    assert one["memory_bytes"] > 10_000_000
    assert figures["model_id"].to_list() == ["base_1", "tuned_1"] * 2


def test_encoder_has_latencies_but_no_tokens(clock):
    figures, _ = measure(Labeller, clock, concurrencies=(1,))
    assert figures.height == 2 and figures["latency_ms_p95"].to_list() == [1500, 1500]
    assert figures["first_token_ms_p50"].null_count() == figures["tokens_per_second"].null_count() == 2


def test_nothing_to_ask_gives_no_figures(clock):
    figures, log = measure(Author, clock, [])
    assert figures.is_empty() and log == []


CHUNKS = to_frame("chunks", [Chunk(f"chk_{n}", "d", "d", 0, 0, 1, "Head", None, f"Passage {n}.", 3) for n in range(6)])


def answered(n, system, found):
    known = dict.fromkeys(schema_of("predictions"))
    return known | {"example_id": f"exm_{n}", "system": system, "question": f"What is {n}?", "context_chunk_ids": found}


def tables(own=()):
    blank = dict.fromkeys(DatasetRow.__dataclass_fields__)
    blank |= {"is_answerable": True, "context_chunk_ids": [], "messages": [], "answers": []}
    benchmark = to_frame(
        "benchmark",
        [
            DatasetRow(**blank | {"example_id": f"exm_{n}", "context": "Own passage." if n in own else None})
            for n in range(6)
        ],
    )
    rows = [answered(n, s, [f"chk_{n}"] if "rag" in s else []) for n in range(6) for s in ("tuned", "tuned_rag")]
    return pl.DataFrame(rows, schema=schema_of("predictions")), benchmark


def asked(n, type_name="open_book_qa", own=()):
    predictions, benchmark = tables(own)
    if type_name == "classification":
        predictions = predictions.filter(system="tuned")
    chats = chats_of(predictions, benchmark, CHUNKS, get_task_type(type_name), "Be brief.", n)
    return [chat[-1]["content"] for chat in chats]


def test_chats_hold_the_passages_of_the_evaluation_spread_over_the_benchmark():
    assert asked(2) == [f"Head\nPassage {n}.\n\nQuestion: What is {n}?" for n in (0, 3)]
    assert len(asked(20)) == 6


def test_chats_hold_a_rows_own_passage_instead():
    assert asked(6, own=(1,))[1] == "Own passage.\n\nQuestion: What is 1?"


def test_chats_of_a_type_without_passages_hold_none():
    assert not any("assage" in chat for chat in asked(6, "classification", own=(1,)))
