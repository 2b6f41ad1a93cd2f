"""When the steps of a run ask a teacher again although nothing of their inputs has changed."""

import pytest

from ev_platform.dataset.steps import has_news, paid_calls
from ev_platform.records import Example, GenerationOutcome, TeacherAnswer, to_frame
from ev_platform.storage import Store
from ev_platform.teachers.calls import Reply
from ev_platform.teachers.ledger import Ledger, Settled, ledger_path
from ev_platform_tests.teachers.fake_client import make_call

CALL = make_call(1)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def ledger(store):
    ledger = Ledger(ledger_path(store.root))
    ledger.claim([CALL], "fake:tiny-1")
    yield ledger
    ledger.close()


def settle(ledger, status):
    ledger.store([Settled(CALL.call_id, status, None, Reply(status), 0.0)])


def publish(store, table, status):
    """Publish a table with one row that names the call."""
    if table == "generation_log":
        row = GenerationOutcome("chk_1", status, None, 1, 0, "fake:tiny-1", CALL.call_id, 0.0)
    elif table == "teacher_answers":
        fields = dict.fromkeys(TeacherAnswer.__slots__) | {"status": status, "cost_usd": 0.0, "call_id": CALL.call_id}
        row = TeacherAnswer(**fields | dict.fromkeys(("example_id", "question", "reference"), "x"))
    else:
        fields = dict.fromkeys(Example.__slots__) | {"is_answerable": True, "check_call_id": CALL.call_id}
        row = Example(**fields | {"answers": []})
    store.publish(table, "t", to_frame(table, [row]))


TABLES = ("generation_log", "teacher_answers", "examples")


@pytest.mark.parametrize("table", TABLES)
def test_what_the_provider_failed_at_is_asked_again_whoever_asked(store, ledger, table):
    settle(ledger, "failed")
    publish(store, table, "failed")
    assert has_news(store, "t", table)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("status", ["ok", "refused", "truncated", "invalid"])
def test_what_was_answered_is_not_asked_again(store, ledger, table, status):
    settle(ledger, status)
    publish(store, table, status)
    assert not has_news(store, "t", table)


@pytest.mark.parametrize("table", TABLES)
def test_call_of_another_run_is_news_once_it_is_answered(store, ledger, table):
    publish(store, table, "interrupted")
    store.publish("teacher_calls", "t", paid_calls(store, [store.read(table, "t")]))
    assert not has_news(store, "t", table)  # still under way, or left by a killed run
    settle(ledger, "ok")
    assert has_news(store, "t", table)


def test_tables_that_are_not_there_yet_are_no_news(store):
    assert not has_news(store, "t", *TABLES)
