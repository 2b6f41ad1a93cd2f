"""A small store with planted relations: a trace reaches what was planted, and nothing else."""

import json
import shutil
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.errors import UserError
from ev_platform.lineage.trace import trace
from ev_platform.lineage.trace_show import page, print_trace
from ev_platform.records import TABLES, to_frame
from ev_platform.serving.journal import Journal
from ev_platform.settings import get_settings
from ev_platform.terminal import console
from ev_platform_tests.evaluation.stored import HOSTILE, LazyStore
from ev_platform_tests.serving.rows import judged, served

TASK = "charging"
AT = datetime(2026, 11, 21, 16, 30, tzinfo=UTC)
A, B = "https://plugs.example/a", "https://plugs.example/b"


def rows(table, *changes, **common):
    """Return a frame whose rows hold what is given, and nothing where nothing is."""
    known = dict.fromkeys(TABLES[table].__dataclass_fields__) | common
    return to_frame(table, [TABLES[table](**known | change) for change in changes])


def publish(store, table, *changes, task=TASK, inputs=None, **common):
    return store.publish(table, task, rows(table, *changes, **common), inputs=inputs)


def publish_source(store, letter, url, n_chunks, task=TASK, title="Plugs"):
    """Store a page, its document and its passages."""
    sha = letter * 64
    body = {"url": url, "final_url": url, "content_sha256": sha, "fetched_at": AT, "licence": "CC-BY-4.0"}
    page_ = {"document_id": f"doc_{letter}", "url": url, "fetched_url": url, "content_sha256": sha, "title": title}
    passages = [
        {"chunk_id": f"chk_{letter}{n}", "document_id": f"doc_{letter}", "heading_path": f"{title} > {n}", "text": "T"}
        for n in range(n_chunks)
    ]
    return body, page_, passages


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Page a led to rows, a model and an answer; page b only to a passage and a test row. Only to be read."""
    store = LazyStore(tmp_path_factory.mktemp("planted"))
    of_a, of_b = publish_source(store, "a", A, 3), publish_source(store, "b", B, 1)
    publish(store, "raw_pages", of_a[0], of_b[0], publisher="Plug Press")
    publish(store, "documents", of_a[1], of_b[1])
    publish(store, "chunks", *of_a[2], *of_b[2])
    made = {"question": "How much?", "answer": "32 A", "origin": "generated"}
    publish(
        store,
        "examples",
        {"example_id": "exm_train", "chunk_id": "chk_a0", "call_id": "call_1"},
        {"example_id": "exm_test", "chunk_id": "chk_b0"},
        **made,
    )
    publish(store, "teacher_calls", {"call_id": "call_1", "model": "claude", "cost_usd": 0.01, "asked_at": AT})
    trained = publish(
        store,
        "training_set",
        {"example_id": "exm_train", "chunk_id": "chk_a0", "context_chunk_ids": ["chk_a0", "chk_a1"]},
        **made,
    )
    tested = publish(
        store, "benchmark", {"example_id": "exm_test", "chunk_id": "chk_b0", "context_chunk_ids": ["chk_b0"]}, **made
    )
    publish(store, "adapter", {"artifact_id": "adapter_1"}, inputs={"training_set": trained.fingerprint})
    publish(
        store,
        "registered_model",
        {
            "model_version": f"{TASK}@1",
            "adapter_id": "adapter_1",
            "serving_model_id": "serving_1",
            "benchmark_fingerprint": tested.fingerprint,
            "chunks_fingerprint": "0" * 64,
            "registered_at": AT,
        },
    )
    publish(store, "promotions", {"model_version": f"{TASK}@1", "decision": "promoted", "decided_at": AT})
    publish(
        store,
        "predictions",
        {"prediction_id": "prd_1", "example_id": "exm_test", "context_chunk_ids": ["chk_b0"], "model_id": "serving_1"},
        {"prediction_id": "prd_2", "example_id": "exm_test", "context_chunk_ids": [], "model_id": "serving_base"},
    )
    journals = Journal(store.root, "requests"), Journal(store.root, "feedback")
    journals[0].add(served("req_1", task=TASK, chunk_ids=["chk_a2"], scores=[0.5], model_version=f"{TASK}@1"))
    journals[0].add(served("req_2", task=TASK, chunk_ids=[], scores=[], model_version=f"{TASK}@1"))
    journals[1].add(judged("fdb_1", task=TASK))
    for journal in journals:
        journal.close()
    return store


@pytest.fixture
def store(planted, tmp_path):
    """Return a copy, to be changed."""
    shutil.copytree(planted.root, tmp_path / "data")
    return LazyStore(tmp_path / "data")


def reached(store, name, direction, **options):
    (found,) = trace(store, name, direction=direction, limit=100, **options)
    side = getattr(found, direction)
    names = {}
    for node in side.nodes:
        names.setdefault(node.kind, set()).add(node.id)
    assert side.counts == {kind: len(ids) for kind, ids in names.items()}
    assert side.unlisted == []
    return names


def dataset(store, table):
    return f"{table}@{store.current(table, TASK).fingerprint[:12]}"


def test_address_leads_to_all_that_was_made_of_it_and_nothing_else(planted):
    trained = dataset(planted, "training_set")
    assert reached(planted, A, "forward") == {
        "body": {f"{A}#sha256={'a' * 64}"},
        "document": {"doc_a"},
        "chunk": {"chk_a0", "chk_a1", "chk_a2"},
        "example": {"exm_train"},
        "row": {f"{trained}/exm_train"},
        "dataset": {trained, dataset(planted, "chunks")},
        "adapter": {"adapter_1"},
        "weights": {"serving_1"},
        "model": {f"{TASK}@1"},
        "promotion": {f"{TASK}@1#1"},
        "request": {"req_1"},
        "feedback": {"fdb_1"},
    }


def test_test_row_leads_to_what_was_scored_on_it(planted):
    tested = dataset(planted, "benchmark")
    assert reached(planted, "exm_test", "forward") == {
        "row": {f"{tested}/exm_test"},
        "dataset": {tested},
        "model": {f"{TASK}@1"},
        "promotion": {f"{TASK}@1#1"},
        "prediction": {"prd_1", "prd_2"},
    }


def test_request_comes_from_its_passages_and_from_what_its_model_was_trained_on(planted):
    trained = dataset(planted, "training_set")
    assert reached(planted, "req_1", "back") == {
        "url": {A},
        "body": {f"{A}#sha256={'a' * 64}"},
        "document": {"doc_a"},
        "chunk": {"chk_a0", "chk_a1", "chk_a2"},
        "call": {"call_1"},
        "example": {"exm_train"},
        "row": {f"{trained}/exm_train"},
        "dataset": {trained},
        "adapter": {"adapter_1"},
        "weights": {"serving_1"},
        "model": {f"{TASK}@1"},
    }
    assert reached(planted, "fdb_1", "back", depth=1) == {"request": {"req_1"}}


def test_model_led_to_every_answer_that_it_gave(planted):
    assert reached(planted, f"{TASK}@1", "forward") == {
        "promotion": {f"{TASK}@1#1"},
        "request": {"req_1", "req_2"},
        "feedback": {"fdb_1"},
    }
    assert reached(planted, "serving_1", "forward")["prediction"] == {"prd_1"}


def test_document_of_every_version_of_a_page_is_found(store):
    body, page_, passages = publish_source(store, "c", A, 1)
    publish(store, "raw_pages", body)
    publish(store, "documents", page_)
    publish(store, "chunks", *passages)
    found = reached(store, A, "forward")
    assert found["document"] == {"doc_a", "doc_c"}
    assert found["chunk"] == {"chk_a0", "chk_a1", "chk_a2", "chk_c0"}


def test_labelled_text_comes_from_its_call_and_from_no_passage(store):
    publish(store, "generation_log", {"source_id": "txt_1", "call_id": "call_2"}, {"source_id": "chk_b0"})
    publish(store, "examples", {"example_id": "exm_label", "call_id": "call_2", "origin": "labelled"})
    assert reached(store, "exm_label", "back") == {"call": {"call_2"}}


def learn(store, judgements, reviews, examples, rejected=()):
    """Store what was said of requests, how it was decided on, and what came of that."""
    journal = Journal(store.root, "feedback")
    for feedback_id, request_id, *_ in judgements:
        journal.add(judged(feedback_id, task=TASK, request_id=request_id))
    journal.close()
    candidates = [
        {
            "example_id": f"fbk_{name}",
            "feedback_id": name,
            "request_id": request_id,
            "question": "Q",
            "answer": answer,
            "given_at": AT,
        }
        for name, request_id, answer in judgements
    ]
    publish(store, "feedback_candidates", *candidates)
    publish(store, "reviews", *reviews, reviewed_at=AT, question="Q", reviewer="Ada")
    publish(store, "examples", *examples, question="Q")
    publish(store, "rejected_examples", *rejected, question="Q")


def test_feedback_led_to_the_examples_that_a_reviewer_made_of_it_and_to_all_that_followed(store):
    learn(
        store,
        [("fdb_like", "req_1", "A"), ("fdb_fix", "req_1", "B"), ("fdb_wait", "req_1", "C"), ("fdb_bad", "req_2", "D")],
        [
            {"example_id": "fbk_fdb_like", "decision": "accept", "answer": "A"},
            {"example_id": "fbk_fdb_fix", "decision": "edit", "answer": "B, at most"},
            {"example_id": "fbk_fdb_bad", "decision": "reject", "answer": "D"},
        ],
        [
            {"example_id": "exm_like", "answer": "A", "request_id": "req_1"},
            {"example_id": "exm_fix", "answer": "B, at most", "request_id": "req_1"},
            {"example_id": "exm_other", "answer": "A"},
        ],
        [{"example_id": "fbk_fdb_bad", "answer": "D", "request_id": "req_2"}],
    )
    trained = publish(store, "training_set", {"example_id": "exm_like", "question": "Q", "request_id": "req_1"})
    publish(store, "adapter", {"artifact_id": "adapter_2"}, inputs={"training_set": trained.fingerprint})
    rows_ = f"training_set@{trained.fingerprint[:12]}"
    assert reached(store, "fdb_like", "forward") == {
        "example": {"exm_like"},
        "row": {f"{rows_}/exm_like"},
        "dataset": {rows_},
        "adapter": {"adapter_2"},
    }
    assert reached(store, "fdb_fix", "forward") == {"example": {"exm_fix"}}
    assert reached(store, "fdb_wait", "forward") == {}
    assert reached(store, "fdb_bad", "forward") == {"example": {"fbk_fdb_bad"}}
    assert reached(store, "exm_fix", "back", depth=1) == {"request": {"req_1"}, "feedback": {"fdb_fix"}}
    behind = reached(store, "adapter_2", "back")
    assert (behind["feedback"], behind["request"]) == ({"fdb_like"}, {"req_1"})
    assert reached(store, "exm_other", "back") == {}


def test_feedback_behind_an_example_is_found_after_its_candidate_and_its_review_have_changed(store):
    """What somebody decided on stays as it was then, though later versions of both tables may no longer show it."""
    learn(
        store,
        [("fdb_2", "req_1", "A")],
        [{"example_id": "fbk_fdb_2", "decision": "accept", "answer": "A"}],
        [{"example_id": "exm_2", "answer": "A", "request_id": "req_1"}],
    )
    publish(store, "feedback_candidates")
    publish(store, "reviews", {"example_id": "fbk_fdb_2", "decision": "reject", "answer": "A", "reviewed_at": AT})
    assert reached(store, "fdb_2", "forward") == {"example": {"exm_2"}}


def test_lists_are_capped_and_counts_are_not(planted):
    (found,) = trace(planted, "doc_a", direction="forward", limit=1)
    assert found.forward.counts["chunk"] == 3
    assert [(left.id, left.kind, left.n) for left in found.forward.unlisted if left.kind == "chunk"] == [
        ("doc_a", "chunk", 2)
    ]
    assert sum(node.kind == "chunk" for node in found.forward.nodes) == 1


def test_beginning_of_an_id_is_enough_where_it_is_the_only_one(planted):
    assert trace(planted, "exm_tr")[0].root.id == "exm_train"
    assert trace(planted, "b" * 10)[0].root.id == f"{B}#sha256={'b' * 64}"
    with pytest.raises(UserError, match=r"Several ids begin with chk_a: chk_a0, chk_a1, chk_a2; give more of it\."):
        trace(planted, "chk_a")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chk_zzz", "No passage in .* is, or begins with, chk_zzz"),
        ("https://other.example/", "No address that was fetched or linked in "),
        ("charging@9", "No model version in "),
        ("'; DROP TABLE chunks --", "Nothing in "),
        ("", "has 1 to 2000 characters, and this one 0"),
    ],
)
def test_unknown_id_is_told_in_a_sentence(planted, name, said):
    with pytest.raises(UserError, match=said):
        trace(planted, name)


def test_address_of_two_tasks_is_traced_in_each(store):
    body, page_, passages = publish_source(store, "a", A, 1)
    publish(store, "raw_pages", body, task="other")
    publish(store, "documents", page_, task="other")
    publish(store, "chunks", *passages, task="other")
    found = trace(store, A, direction="forward")
    assert [(one.task, one.forward.counts["chunk"]) for one in found] == [(TASK, 3), ("other", 1)]
    assert found[1].forward.counts.keys() == {"body", "document", "chunk", "dataset"}
    assert [one.task for one in trace(store, A, task="other")] == ["other"]


def test_request_that_named_no_task_is_found(store):
    journal = Journal(store.root, "requests")
    journal.add(served("req_lost", task=None, model_version=None, chunk_ids=[], scores=[]))
    (found,) = trace(store, "req_lost")
    journal.close()
    assert (found.task, found.root.kind, found.back.counts) == ("", "request", {})


def test_passage_whose_version_is_gone_is_known_by_name(store):
    (store.root / "tables" / "chunks" / TASK / f"{store.current('chunks', TASK).version}.json").unlink()
    (found,) = trace(store, "req_1", direction="back", depth=1)
    (passage,) = [node for node in found.back.nodes if node.kind == "chunk"]
    assert (passage.id, passage.is_stored) == ("chk_a2", False)


def test_words_of_strangers_are_text_in_the_terminal_and_in_the_page(store):
    evil = f"{HOSTILE}[bold]\x1b[31mred"
    body, page_, passages = publish_source(store, "d", "https://plugs.example/d", 1, title=evil)
    publish(store, "raw_pages", body)
    publish(store, "documents", page_)
    publish(store, "chunks", *passages)
    found = trace(store, "doc_d")
    html = page(found)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    with console.capture() as printed:
        print_trace(console, found[0])
    assert "[bold]" in printed.get()
    assert "\x1b[31mred" not in printed.get()


def test_command_prints_a_tree_writes_json_and_a_page(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("EV_DATA_DIR", str(planted.root))
    get_settings.cache_clear()
    runner = CliRunner()
    tree = runner.invoke(app, ["trace", A, "--direction", "forward"])
    assert tree.exit_code == 0, tree.output
    assert "passage chk_a0" in tree.output
    assert "Comes from" not in tree.output
    html = tmp_path / "trace.html"
    written = runner.invoke(app, ["trace", "req_1", "--json", "--html", str(html)])
    (stated,) = json.loads(written.stdout)
    assert {"schema", "task", "id", "kind", "nodes", "edges", "back", "forward"} == stated.keys()
    names = {node["id"] for node in stated["nodes"]}
    assert all(edge["parent"] in names and edge["child"] in names for edge in stated["edges"])
    assert {"parent": "chk_a2", "child": "req_1"} in stated["edges"]
    assert "chk_a2" in html.read_text()
    lost = runner.invoke(app, ["trace", "chk_nowhere"])
    get_settings.cache_clear()
    assert lost.exit_code == 1
