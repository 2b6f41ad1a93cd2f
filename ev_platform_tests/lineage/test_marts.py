"""The marts on an evaluation: the figures of the tables, for whoever has a DuckDB client and nothing else."""

from datetime import timedelta
from types import SimpleNamespace

import duckdb
import pytest

from ev_platform.records import GateCheck, Promotion
from ev_platform.serving.journal import Journal
from ev_platform_tests.evaluation.stored import AT, LazyStore, store_evaluation, store_surroundings
from ev_platform_tests.serving.rows import judged, served


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    made = store_evaluation(tmp_path_factory.mktemp("marts"))
    store_surroundings(made)
    return made


def query(stored, sql):
    with duckdb.connect(str(stored.store.catalogue), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_systems_have_the_intervals_of_the_report(stored):
    found = query(stored, "SELECT system, token_f1, token_f1_low, token_f1_high, n_rows FROM systems")
    rows = stored.read("eval_report").to_dicts()
    assert sorted(found) == sorted(
        (row["system"], row["value"], row["low"], row["high"], row["n_rows"])
        for row in rows
        if row["metric"] == "token_f1" and row["compared_to"] is None
    )
    assert len(found) == 7


def test_gate_shows_each_decision_with_the_checks_of_its_version(stored):
    assert query(
        stored,
        'SELECT decision, model_version, champion_after, "check", passed, value, "limit" FROM gate ORDER BY passed',
    ) == [
        ("kept", "charging@2", "charging@1", "not_worse_than_champion", False, -0.11, -0.02),
        ("kept", "charging@2", "charging@1", "enough_rows", True, 24.0, 20.0),
    ]


def test_gate_keeps_the_checks_of_versions_that_were_judged_before(tmp_path):
    stored = store_evaluation(tmp_path)
    store_surroundings(stored)
    check = GateCheck("charging@3", "charging@1", "enough_rows", True, 24, 20, "24 rows of at least 20.")
    stored.publish("promotion_gate", [check])
    said = Promotion(AT, "overridden", "charging@2", "charging@1", "charging@2", "It is better.", [], "me")
    stored.publish("promotions", [*(Promotion(**row) for row in stored.read("promotions").to_dicts()), said])
    found = query(stored, 'SELECT decision, "check" FROM gate ORDER BY ALL')
    assert found == [
        ("kept", "enough_rows"),
        ("kept", "not_worse_than_champion"),
        ("overridden", "enough_rows"),
        ("overridden", "not_worse_than_champion"),
    ]


def test_retrieval_has_one_line_for_each_search(stored):
    found = query(stored, "SELECT method, level, recall_at_1, recall_at_5, recall_at_5_low, mrr, n_rows FROM retrieval")
    assert found == [
        (method, "chunk", 0.5, 0.9, pytest.approx(0.8), 0.7, 24) for method in ("embedding", "hybrid", "lexical")
    ]


def days(root, requests, feedback):
    """Serve requests and take feedback; return day, version, requests, thumbs up and thumbs down."""
    store = LazyStore(root)
    for table, rows in (("requests", requests), ("feedback", feedback)):
        journal = Journal(store.root, table)
        for row in rows:
            journal.add(row)
        journal.close()
    return query(
        SimpleNamespace(store=store),
        "SELECT day - DATE '2026-11-21', model_version, n_requests, n_up, n_down FROM serving_days ORDER BY ALL",
    )


def later(hours):
    return AT + timedelta(hours=hours)


VERSION, NEXT = "fake_task@3", "fake_task@4"


def test_days_count_what_was_said_of_each_question_of_one_request_id(tmp_path):
    requests = [served("chat", later(n), question=question) for n, question in enumerate(("Q1", "Q2"))]
    said = [
        judged("fdb_1", later(2), request_id="chat", question="Q1", rating="down"),
        judged("fdb_2", later(3), request_id="chat", question="Q2", rating="down"),
        judged("fdb_3", later(4), request_id="chat", question="Q1", rating="up"),  # replaces the first
    ]
    assert days(tmp_path, requests, said) == [(0, VERSION, 2, 1, 1)]


def test_days_count_a_rating_once_where_a_request_was_sent_again_under_its_id(tmp_path):
    failed = {"status": 503, "error": "overloaded", "answer": None, "answer_hash": None}
    requests = [
        served("again", later(0), **failed),
        served("again", later(24), model_version=NEXT),
        served("again", later(48), model_version=NEXT),  # asked once more after it was judged
        served("twice", later(0)),
        served("twice", later(24)),
    ]
    said = [
        judged("fdb_1", later(25), request_id="again", model_version=NEXT, rating="up"),
        judged("fdb_2", later(25), request_id="twice", rating="up"),
    ]
    assert days(tmp_path, requests, said) == [
        (0, VERSION, 2, 0, 0),
        (1, VERSION, 1, 1, 0),
        (1, NEXT, 1, 1, 0),
        (2, NEXT, 1, 0, 0),
    ]


def test_days_count_a_rating_for_the_version_that_it_is_of_where_the_log_keeps_no_questions(tmp_path):
    requests = [
        served("chat", later(0), question=None, answer=None),
        served("chat", later(1), question=None, answer=None, model_version=NEXT),
    ]
    said = [
        judged("fdb_1", later(2), request_id="chat", question="Q1", rating="up"),
        judged("fdb_2", later(2), request_id="chat", question="Q2", model_version=NEXT, rating="down"),
    ]
    assert days(tmp_path, requests, said) == [(0, VERSION, 1, 1, 0), (0, NEXT, 1, 0, 1)]


def test_days_count_what_several_keys_said_of_one_answer_and_the_request_once(tmp_path):
    """An administrator may judge the request of another key; of two requests of one id each key judges its own."""
    requests = [served("mine", later(0), key_id="anne"), served("mine", later(24), key_id="bert")]
    said = [
        judged("fdb_1", later(25), request_id="mine", key_id="anne", rating="up"),
        judged("fdb_2", later(25), request_id="mine", key_id="bert", rating="up"),
        judged("fdb_3", later(25), request_id="mine", key_id="admin", rating="down"),
    ]
    assert days(tmp_path, requests, said) == [(0, VERSION, 1, 1, 0), (1, VERSION, 1, 1, 1)]
