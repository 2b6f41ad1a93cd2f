"""The marts on an evaluation: the figures of the tables, for whoever has a DuckDB client and nothing else."""

import duckdb
import pytest

from ev_platform.records import GateCheck, Promotion
from ev_platform_tests.evaluation.stored import AT, store_evaluation, store_surroundings


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
