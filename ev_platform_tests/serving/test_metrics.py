"""The figures: what a reply adds up to, and that clients cannot make labels."""

import dataclasses
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ev_platform.serving import metrics
from ev_platform.serving.exchange import Described, Reply
from ev_platform_tests.serving.rows import REPLY, cited, figure

MODEL = {"task": "figures", "model_version": "figures@3"}
GIVEN = dataclasses.replace(REPLY, model_version="figures@3")


@pytest.fixture
def answered():
    """Return a function that counts an answered request."""

    def answered(reply=GIVEN, **changes):
        metrics.begun()
        arguments = {"route": "/v1/answers", "status": 200, "task": "figures", "seconds": 0.2, "reply": reply}
        metrics.answered(**arguments | changes)

    return answered


def described(**changes):
    fields = {
        "model": "figures",
        "model_version": "figures@3",
        "task": "figures",
        "task_type": "open_book_qa",
        "labels": (),
        "max_new_tokens": 48,
        "window": 2048,
        "loaded_at": 1_795_000_000,
        "waiting": 5,
    }
    return Described(**fields | changes)


def grown(change, *wanted):
    """Run a change and return by how much each figure grew."""
    before = [figure(name, **labels) for name, labels in wanted]
    change()
    return [round(figure(name, **labels) - old, 6) for (name, labels), old in zip(wanted, before, strict=True)]


def test_reply_is_counted_in_every_figure(answered):
    wanted = {
        ("ev_requests_total", ("route", "/v1/answers"), ("status", "200"), ("task", "figures")): 1,
        ("ev_request_seconds_sum", ("route", "/v1/answers")): 0.2,
        ("ev_answers_total",): 1,
        ("ev_abstentions_total",): 0,
        ("ev_tokens_total", ("kind", "prompt")): 100,
        ("ev_tokens_total", ("kind", "completion")): 4,
        ("ev_first_token_seconds_sum",): 0.045,
        ("ev_queue_seconds_sum",): 0.002,
        ("ev_retrieve_seconds_sum",): 0.003,
        ("ev_batch_size_sum",): 2,
        ("ev_retrieval_top_score_sum",): 0.75,
        ("ev_question_similarity_sum",): 0.5,
        ("ev_requests_in_progress",): 0,
    }
    own = ("ev_requests", "ev_request_seconds")
    asked = [(name, dict(labels) if name.startswith(own) else MODEL | dict(labels)) for name, *labels in wanted]
    assert grown(answered, *asked) == list(wanted.values())


def test_abstention_has_scores_and_no_tokens(answered):
    said = Reply(text="No.", finish_reason="stop", model_version="figures@3", is_abstention=True)
    said = dataclasses.replace(said, citations=(cited("chk_1", 0.1),))
    counts = [("ev_abstentions_total", MODEL), ("ev_batch_size_count", MODEL), ("ev_retrieval_top_score_count", MODEL)]
    assert grown(lambda: answered(said), *counts) == [1, 0, 1]


def test_refusal_is_counted_by_its_code(answered):
    wanted = [
        ("ev_errors_total", {"code": "overloaded"}),
        ("ev_requests_total", {"route": "/v1/answers", "status": "503", "task": ""}),
        ("ev_answers_total", MODEL),
    ]
    refused = {"reply": None, "status": 503, "task": None, "error": "overloaded"}
    assert grown(lambda: answered(**refused), *wanted) == [1, 1, 0]


def test_models_show_what_stands_behind_their_names_now():
    metrics.set_models({"figures": described(), "figures@candidate": None})
    behind = {"model": "figures", **MODEL, "task_type": "open_book_qa"}
    assert figure("ev_model_info", **behind) == 1
    assert figure("ev_waiting", model="figures") == 5
    assert figure("ev_model_loaded_timestamp_seconds", model="figures") == 1_795_000_000
    assert (figure("ev_model_up", model="figures"), figure("ev_model_up", model="figures@candidate")) == (1, 0)
    metrics.set_models({"figures": described(model_version="figures@4")})
    assert metrics.REGISTRY.get_sample_value("ev_model_info", behind) is None
    assert figure("ev_model_info", **behind | {"model_version": "figures@4"}) == 1


def test_labels_take_a_bounded_number_of_values(answered):
    for n in range(200):
        answered(error=f"code_{n}", task=f"task_{n}", reply=None)
    families = {family.name: family for family in metrics.REGISTRY.collect()}
    assert len({sample.labels["code"] for sample in families["ev_errors"].samples}) <= 66  # one is there from the start
    assert len({sample.labels["task"] for sample in families["ev_requests"].samples}) <= 65
    metrics._codes.clear()
    metrics._tasks.clear()


def test_page_is_what_prometheus_reads():
    metrics.set_models({"figures": described()})
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"ev_requests", "ev_model_info", "ev_journal_lost_rows", "process_resident_memory_bytes"} <= names


def test_answer_that_was_cut_counts_its_tokens_and_is_no_answer(answered):
    cut = dataclasses.replace(GIVEN, finish_reason="cancelled", is_abstention=True)
    wanted = [("ev_answers_total", MODEL), ("ev_abstentions_total", MODEL)]
    wanted += [("ev_tokens_total", MODEL | {"kind": "prompt"})]
    assert grown(lambda: answered(cut), *wanted) == [0, 0, 100]


def test_first_fault_is_an_increase():
    done = subprocess.run(
        [sys.executable, "-c", "from ev_platform.serving import metrics; print(metrics.render()[0].decode())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'ev_errors_total{code="internal_error"} 0.0' in done.stdout
