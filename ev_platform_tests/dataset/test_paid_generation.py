"""The dataset stage with a paid teacher, held against the count of a local Anthropic server over HTTP.

A thousand passages with every fault, a process killed in the middle, a cap over all purposes of a run, and the graph:
what it asks at first, when nothing changed, and when one page did. Run with `-s` for the figures. What does not belong
here: the money of single calls and of batches (`teachers.test_money`).
"""

import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import closing
from weakref import WeakSet

import numpy as np
import polars as pl
import pytest

from ev_platform.dataset import steps
from ev_platform.dataset.overlap import find_overlaps
from ev_platform.dataset.splits import build_splits
from ev_platform.errors import UserError
from ev_platform.lineage.catalogue import rows_of
from ev_platform.retrieval import embed_chunks
from ev_platform.settings import get_settings
from ev_platform.storage import Store
from ev_platform.tasks.types import get_task_type
from ev_platform.teachers.ask import WINDOW
from ev_platform.teachers.language_model import LanguageModelTeacher
from ev_platform.training.tokens import chats_counter
from ev_platform_tests.dataset import honest, paid
from ev_platform_tests.teachers.anthropic_server import AnthropicServer
from ev_platform_tests.teachers.test_money import FAULTS, Server, resident_bytes
from ev_platform_tests.test_graph import URL, Workspace, change_page, set_config
from ev_platform_tests.tiny import PAGES, TEST, write_tiny_model, write_tiny_task, write_tiny_tokenizer

CONCURRENCY = 16
TEACHER = {
    "provider": "anthropic",
    "model": "claude-haiku-4-5",
    "use_batches": False,
    "concurrency": CONCURRENCY,
    "max_tokens": 600,
    "timeout_s": 30.0,
}
TIMEOUT_S, STALL_S = 5.0, 60.0  # stalled replies never come in time, others do, however busy the machine


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ev_platform.teachers.sending.FIRST_PAUSE_S", 0.05)
        patch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.05)
        patch.setenv("ANTHROPIC_API_KEY", "test-key")
        yield patch


def point_to(patch, server):
    patch.setenv("ANTHROPIC_BASE_URL", server.url)
    get_settings.cache_clear()


def embed_words(texts):
    """Embed texts as their words, hashed; the real embedder takes longer than all of the calls.

    Likeness of questions, which is what it serves for in these tests, is `test_overlap`'s subject.
    """
    vectors = np.zeros((len(texts), 384), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % 384] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Return a function that starts a server whose model reads honestly, and points the settings to it."""
    servers = []
    monkeypatch.setattr("ev_platform.retrieval.embed", embed_words)

    def serve(patch, **options):
        answerer = "ev_platform_tests.dataset.honest.reply"
        servers.append(Server(tmp_path / f"server-{len(servers)}.jsonl", {"answerer": answerer, **options}))
        point_to(patch, servers[-1])
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
    get_settings.cache_clear()


def reasons_of(made):
    """Check that the tables of a made dataset agree with each other; return its sources by status."""
    log, coverage = made["generation_log"], made["coverage"]
    candidates, examples, rejected = (made[t] for t in ("qa_candidates", "examples", "rejected_examples"))
    assert coverage["source_id"].to_list() == log["source_id"].to_list()
    assert candidates.height == examples.height + rejected.height
    assert Counter(examples["origin"])["human"] == 4 * paid.TEST_PAGES + paid.N_TRAIN
    bare = coverage.filter(pl.col("n_examples") == 0)
    assert not set(bare["status"]) & {"covered", "ok"}
    # A reply whose list of questions is empty needs no words, and `all_rejected` names its reasons.
    assert bare.filter(pl.col("detail").is_null()).is_empty()
    generated = examples.filter(pl.col("origin") == "generated")
    assert coverage["n_made"].sum() == candidates.filter(pl.col("origin") == "generated").height
    assert coverage["n_examples"].sum() == generated.height
    assert coverage["n_rejected"].sum() == rejected.height
    assert (coverage["n_made"] == coverage["n_examples"] + coverage["n_rejected"]).all()
    per_chunk = Counter(generated["chunk_id"])
    assert {s: n for s, n in coverage.select("source_id", "n_examples").rows() if n} == per_chunk
    return Counter(coverage["status"])


# ---- a thousand passages ----


@pytest.mark.slow  # the same faults at hundreds of calls are in teachers/test_money
def test_thousand_passages_with_every_fault_have_examples_or_a_reason(serve, module_patch, monkeypatch, tmp_path):
    server = serve(module_patch, faults=FAULTS, stall_s=STALL_S, retry_after_s=0.1, latency_s=0.1)
    n_pages = 252
    teacher = TEACHER | {"is_checking": False, "timeout_s": TIMEOUT_S}  # the other runs check
    task = paid.write_task(tmp_path / "county", n_pages, teacher, {"max_examples": 5000, "max_per_chunk": 1})
    held, most_held, resident, make = WeakSet(), 0, [], LanguageModelTeacher._call

    def watched(*arguments):
        nonlocal most_held
        call = make(*arguments)
        held.add(call)
        most_held = max(most_held, len(held))
        resident.append(resident_bytes())
        return call

    monkeypatch.setattr(LanguageModelTeacher, "_call", watched)
    started = time.monotonic()
    made = paid.make_dataset(task, tmp_path / "data", "faults")
    wall_s = time.monotonic() - started
    stats, statuses = server.stats(), reasons_of(made)
    rows = steps.paid_calls(Store(tmp_path / "data"), made.values())
    known_usd, stalled_usd = rows["cost_usd"].sum(), server.stalled_usd()
    grown_bytes = max(resident[250:]) - resident[250]  # from where the window is full
    print(f"\n{len(resident)} calls in {wall_s:.1f} s, at most {stats['most_under_way']} at once; {dict(statuses)}")
    print(f"server: {stats['by_status']}, {stats['by_fault']}, {stats['n_repeated']} paid twice")
    print(f"at most {most_held} calls held, memory of the last 750 calls {grown_bytes / 1e6:.1f} MB")
    print(f"ledger ${known_usd:.4f}, server ${stats['cost_usd']:.4f}, of them stalled ${stalled_usd:.4f}")
    assert len(resident) == 4 * (n_pages - paid.TEST_PAGES) == 1000
    assert statuses.total() == 4 * n_pages and statuses["held_out"] == 4 * paid.TEST_PAGES
    assert set(statuses) == {"covered", "held_out", "refused", "truncated", "invalid"} and statuses["covered"] > 800
    assert made["rejected_examples"].is_empty()  # what honest answers get from the filters
    assert {name: statuses[name] for name in ("refused", "truncated", "invalid")} == {
        name: stats["by_fault"][fault]
        for name, fault in (("refused", "refused"), ("truncated", "truncated"), ("invalid", "malformed"))
    }
    assert stats["by_fault"].keys() == FAULTS.keys() and stats["n_repeated"] == 0
    assert rows.height == 1000 and known_usd == pytest.approx(stats["cost_usd"] - stalled_usd)
    assert CONCURRENCY / 2 < stats["most_under_way"] <= CONCURRENCY  # it is reached where replies are slower, below
    assert most_held <= WINDOW * CONCURRENCY + 3 and grown_bytes < 40e6


# ---- a process that is killed ----


def test_killed_in_the_middle_and_run_again_asks_nothing_twice(serve, module_patch, tmp_path):
    # The price of a call depends on who came first to the provider's cache, so there is none here.
    options = {"faults": dict.fromkeys(("malformed", "refused", "truncated"), 0.05), "min_cache_tokens": 10**9}
    settings = TEACHER | {"concurrency": 8}, {"max_examples": 400, "max_per_chunk": 2, "unanswerable_fraction": 0.2}
    task = paid.write_task(tmp_path / "county", 17, *settings)
    undisturbed_server = serve(module_patch, **options)
    undisturbed = paid.make_dataset(task, tmp_path / "undisturbed", "undisturbed")
    reasons_of(undisturbed)

    server = serve(module_patch, latency_s=0.4, **options)
    command = [sys.executable, "-m", "ev_platform_tests.dataset.paid", str(task.folder), str(tmp_path / "data")]
    victim = subprocess.Popen(command, env={**os.environ})
    while server.stats()["n_answered"] < 20:
        assert victim.poll() is None
        time.sleep(0.03)
    victim.kill()
    assert victim.wait() == -9
    n_before = server.stats()["n_answered"]
    assert n_before < 60  # of those that generate
    assert server.stats()["most_under_way"] == 8
    again = paid.make_dataset(task, tmp_path / "data", "again")
    statuses, stats = reasons_of(again), server.stats()
    print(
        f"\nkilled after {n_before} replies, then run again: {dict(statuses)}; {stats['n_requests']} requests", end=""
    )
    print(f" of {stats['n_contents']} contents, {stats['n_repeated']} paid twice")
    assert stats["n_requests"] == stats["n_contents"] and stats["n_repeated"] == 0
    assert stats["most_under_way"] <= 16  # the server may still be at work for the killed one
    assert 0 < statuses["interrupted"] <= 8  # what was under way
    lost = again["coverage"].filter(pl.col("status") == "interrupted")["source_id"].to_list()
    assert not again["qa_candidates"].filter(pl.col("chunk_id").is_in(lost)).height
    for table in ("generation_log", "coverage", "qa_candidates", "examples", "rejected_examples"):
        key = "source_id" if table in ("generation_log", "coverage") else "chunk_id"
        of_others = ~pl.col(key).is_in(lost)
        assert again[table].filter(of_others).equals(undisturbed[table].filter(of_others)), table

    resend = paid.write_task(tmp_path / "again" / "county", 17, settings[0] | {"resend_interrupted": True}, settings[1])
    whole = paid.make_dataset(resend, tmp_path / "data", "resent")
    assert all(whole[table].equals(undisturbed[table]) for table in undisturbed)
    assert server.stats()["answered"].keys() == undisturbed_server.stats()["answered"].keys()


# ---- the cap ----


def test_cap_holds_over_all_purposes_of_a_run_and_leaves_a_dataset(serve, module_patch, tmp_path):
    # A dear model, so that few calls reach the cap.
    server = serve(module_patch, faults={"overloaded": 0.05}, input_usd=5, output_usd=25)
    teacher = TEACHER | {"model": "claude-opus-4-5", "max_cost_usd": 0.5}
    task = paid.write_task(tmp_path / "county", 57, teacher, {"max_examples": 400, "max_per_chunk": 1})
    chunks, documents, dropped = paid.read_corpus(task)
    store, vectors = Store(tmp_path / "data"), embed_chunks(chunks)
    examined = steps.examine(task, store, "capped", chunks, vectors, documents, dropped, "")
    made = paid.make_dataset(task, tmp_path / "data", "capped")
    statuses, stats = reasons_of(made), server.stats()
    (verdict,) = examined["teacher_evaluation"].to_dicts()
    calls = steps.paid_calls(store, [examined["teacher_answers"], *made.values()])
    by_purpose = dict(calls.group_by("purpose").agg(pl.col("cost_usd").sum().round(4)).sort("purpose").iter_rows())
    print(f"\ncap $0.50: server ${stats['cost_usd']:.4f} for {stats['n_answered']} replies, ledger {by_purpose}")
    print(f"examined: {verdict['verdict']} ({verdict['reason']}); {dict(statuses)}")
    assert verdict["verdict"] == "proceed" and not verdict["is_blocking"]
    assert 0.40 < stats["cost_usd"] <= 0.50
    assert calls["cost_usd"].sum() <= stats["cost_usd"] + 1e-9
    assert {"answer", "generate"} <= by_purpose.keys()
    assert statuses["over_budget"] > 0 and statuses["covered"] > 30
    told = made["coverage"].filter(pl.col("status") == "over_budget")["detail"]
    assert all(re.search(r"of the run's \$0\.50 are spent", detail) for detail in told)

    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    write_tiny_tokenizer(tokenizer)
    config, task_type = task.config, get_task_type(task.config.type)
    splits = build_splits(
        made["examples"],
        chunks,
        task_type,
        task.instructions,
        chats_counter(tokenizer),
        config.dataset,
        config.retrieval,
        vectors,
    )
    assert splits["benchmark"].height == 4 * paid.TEST_PAGES
    assert splits["training_set"].height + splits["validation_set"].height == statuses["covered"] + paid.N_TRAIN
    assert splits["training_set"].height > 20 and splits["validation_set"].height > 0
    trained_on = pl.concat([splits["training_set"], splits["validation_set"]])
    assert find_overlaps(trained_on, splits["benchmark"], chunks, config.dataset) == []
    # Another run has a cap of its own: it goes on with what was left, then checks, and pays for nothing twice.
    more = paid.make_dataset(task, tmp_path / "data", "next")
    checked, after = more["examples"]["check_call_id"].drop_nulls().len(), server.stats()
    print(f"next run: ${after['cost_usd'] - stats['cost_usd']:.4f}, {checked} checked, {dict(reasons_of(more))}")
    assert reasons_of(more)["covered"] > statuses["covered"] and checked > 10
    assert after["n_repeated"] == 0 and after["cost_usd"] - stats["cost_usd"] <= 0.50


# ---- the graph ----

HOOK = " A hook beside the station holds the cable."
# What stands in the tiny pages, with what it answers.
TINY_FACTS = {
    "a car with an empty battery of 60 kWh is full again after six hours": (
        "How long does it take at home until an empty battery of 60 kWh is full again?",
        "six hours",
    ),
    "a driver waits for about 25 minutes": ("How long does a driver wait beside the motorway?", "about 25 minutes"),
    "DC power of 150 kW or more": ("How much DC power do fast charging stations deliver?", "150 kW or more"),
    HOOK.strip(): ("What holds the cable beside a charging station?", "A hook"),
    "It carries up to 43 kW over three phases": (
        "How much power does the Type 2 connector carry over three phases?",
        "up to 43 kW",
    ),
    "a motor in the car locks it": ("What locks the Type 2 connector while current flows?", "a motor in the car"),
    "designed in Japan in 2010": ("In which year was the CHAdeMO plug designed?", "2010"),
    "A resistor of 220 ohm": TEST[0][:2],
    "is 10 metres": TEST[1][:2],
    "every 12 months": TEST[2][:2],
    "within 48 hours": TEST[3][:2],
}
STAGES = ["collect", "corpus", "dataset"]
SQL = """SELECT question, chunk_id, url, page, licence, teacher, teacher_model, prompt_version, cost_usd, call_id
FROM example_sources WHERE origin = 'generated' ORDER BY example_id"""


def read_tiny_facts(passage):
    said = " ".join(passage.split())
    return [(question, answer, words, {}) for words, (question, answer) in TINY_FACTS.items() if words in said]


@pytest.mark.slow  # the whole graph; the tests above pay the same teacher through the same functions
def test_graph_with_a_paid_teacher_asks_for_what_is_new_only(module_patch, tmp_path):
    asked = []  # (purpose, passages) of every request

    def answer(request):
        purpose = honest.purpose_of(request)
        asked.append((purpose, honest.parts_of(request, "passage")))
        if purpose == "answer" and "haiku" in request["model"]:
            return json.dumps({"answer": "a banana"})
        return honest.reply(request, read_tiny_facts)

    def run(stages=STAGES, **options):
        asked.clear()
        return materialize(defs, workspace.store.root, "tiny", stages, **options)

    def generated():
        rows = workspace.read("examples").filter(pl.col("origin") == "generated")
        return rows.join(workspace.read("chunks").select("chunk_id", "document_id"), on="chunk_id")

    workspace = Workspace(tmp_path)
    write_tiny_task(workspace.task, write_tiny_model(tmp_path / "model"))
    with (workspace.task / "config.yaml").open("a") as file:
        file.write("teacher: {provider: anthropic, model: claude-haiku-4-5, max_tokens: 600}\n")
    server = AnthropicServer(tmp_path / "server.jsonl", answerer=answer)
    point_to(module_patch, server)
    with closing(server), workspace.graph() as defs:
        from ev_platform.defs.run import materialize

        # A teacher that answers badly is stopped before it is paid for more, and let through by a person.
        with pytest.raises(UserError, match=r"^rethink: judge is 0\.000 over 4 test rows, .*--overrule WHY"):
            run()
        assert Counter(purpose for purpose, _ in asked) == {"answer": 4, "judge": 4}
        assert workspace.store.current("qa_candidates", "tiny") is None
        run(["dataset"], overrule="for a look at its questions")
        assert {purpose for purpose, _ in asked} == {"generate", "check"}
        (verdict,) = workspace.read("teacher_evaluation").to_dicts()
        assert (verdict["verdict"], verdict["overruled_by"]) == ("rethink", "for a look at its questions")
        assert set(generated()["teacher"]) == {"anthropic:claude-haiku-4-5"}

        # A better one goes on by itself.
        set_config(workspace, "claude-haiku-4-5", "claude-sonnet-4-5")
        run(["dataset"])
        assert workspace.read("teacher_evaluation").item(0, "verdict") == "proceed"
        first = generated()
        assert first.height >= 4 and set(first["teacher"]) == {"anthropic:claude-sonnet-4-5"}
        calls = {row["call_id"]: row for row in workspace.read("teacher_calls").to_dicts()}
        assert Counter(call["purpose"] for call in calls.values()) == Counter(purpose for purpose, _ in asked)

        # Each generated example is followed to its source and its cost by one query.
        documents = workspace.read("clean_documents")
        pages = dict(workspace.read("chunks").join(documents, on="document_id").select("chunk_id", "url").rows())
        rows = rows_of(workspace.store, SQL, [])
        assert [row[0] for row in rows] == first.sort("example_id")["question"].to_list()
        for question, chunk_id, url, page, licence, teacher, model, version, cost_usd, call_id in rows:
            assert (url, page, licence) == (pages[chunk_id], None, "CC-BY-4.0"), question
            assert (teacher, model) == ("anthropic:claude-sonnet-4-5", "claude-sonnet-4-5")
            assert version == calls[call_id]["prompt_version"] and cost_usd > 0
        per_call = pl.DataFrame(rows, orient="row", schema=[*"qcuplTmv", "cost_usd", "call_id"])
        per_call = per_call.group_by("call_id").agg(pl.col("cost_usd").sum())
        assert all(cost <= calls[call_id]["cost_usd"] + 1e-9 for call_id, cost in per_call.iter_rows())

        # Nothing changed: no call, no row, no version.
        before, n_requests = workspace.current(), server.stats()["n_requests"]
        assert run().computed == ()
        assert server.stats()["n_requests"] == n_requests and asked == []
        after = workspace.current()
        assert {t for t in after if after[t] != before[t]} <= {"raw_pages"}  # the hour of its last look

        # One page changed: its passages alone are asked about, and the other pages' examples are what they were.
        change_page(workspace, "index.html", PAGES["index.html"][2] + HOOK)
        run()
        chunks = workspace.read("chunks").join(workspace.read("clean_documents"), on="document_id")
        own = [" ".join(text.split()) for text in chunks.filter(pl.col("url") == URL["index.html"])["text"]]
        for purpose, passages in asked:
            assert any(text in " ".join(passage.split()) for passage in passages for text in own), (purpose, passages)
        assert {"generate"} <= {purpose for purpose, _ in asked}
        second, changed = generated(), {chunk for chunk, url in pages.items() if url == URL["index.html"]}
        others = first.filter(~pl.col("chunk_id").is_in(list(changed)))
        assert others.height and set(others["example_id"]) <= set(second["example_id"])
        new = second.filter(~pl.col("example_id").is_in(first["example_id"].to_list()))
        assert set(new["chunk_id"]) <= set(chunks.filter(pl.col("url") == URL["index.html"])["chunk_id"])
        assert new.height and not set(second["chunk_id"]) & changed
        print(f"\nchanged page: {dict(Counter(purpose for purpose, _ in asked))}; {new.height} new examples", end="")
        print(f" beside {others.height} others; server ${server.stats()['cost_usd']:.4f} in all")
        assert server.stats()["n_repeated"] == 0
