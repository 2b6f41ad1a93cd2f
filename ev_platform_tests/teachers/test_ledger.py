import sqlite3
import subprocess
import sys
import threading

import pytest

from ev_platform.errors import UserError
from ev_platform.records import to_frame
from ev_platform.teachers.calls import Reply, Usage
from ev_platform.teachers.ledger import Ledger, Settled, ledger_path
from ev_platform_tests.teachers.fake_client import make_call


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(ledger_path(tmp_path))
    yield ledger
    ledger.close()


def settled(call, status="ok", **fields):
    reply = Reply(status, text='{"fact": "f", "number": 1}', usage=Usage(10, 20, 30, 40), request_id="req_1", **fields)
    return Settled(call.call_id, status, fields.get("detail"), reply, 0.25)


def test_ledger_call_goes_from_unknown_over_under_way_to_stored(ledger):
    call = make_call(1)
    assert ledger.get(call.call_id) is None and ledger.calls([call.call_id]) == []
    assert ledger.claim([call], "t") == [call]
    assert ledger.get(call.call_id).status is None
    assert ledger.claim([call], "t") == []  # it may be under way
    ledger.store([settled(call, model="tiny-1-2026")])
    assert ledger.claim([call], "t", resend=True) == []  # it is answered
    (row,) = ledger.calls([call.call_id, "call_unknown"])
    assert (row.status, row.model, row.teacher, row.prompt_version, row.cost_usd) == (
        "ok",
        "tiny-1-2026",
        "t",
        "v1",
        0.25,
    )
    usage = (row.n_input_tokens, row.n_output_tokens, row.n_cache_write_tokens, row.n_cache_read_tokens)
    assert usage == (10, 20, 30, 40) and row.is_batch is False and row.request_id == "req_1"
    assert to_frame("teacher_calls", [row]).height == 1


def test_ledger_what_a_repeated_call_cost_adds_up(ledger):
    call = make_call(1)
    for status in ("failed", "ok"):
        ledger.claim([call], "t")
        ledger.store([settled(call, status, n_unsettled=1)])
    (row,) = ledger.calls([call.call_id])
    assert row.cost_usd == 0.5 and row.detail == "2 attempts broke off and may be charged too"


def test_ledger_reply_that_two_processes_waited_for_is_stored_once(ledger):
    calls = [make_call(i) for i in range(3)]
    ledger.claim(calls, "t", batch="b")
    for _ in range(2):
        ledger.store([settled(call) for call in calls], batch="b")
    assert [row.cost_usd for row in ledger.calls([call.call_id for call in calls])] == [0.25] * 3


def test_ledger_batch_is_known_from_its_intent_until_it_is_stored(ledger):
    calls = [make_call(i) for i in range(3)]
    ledger.claim(calls, "t", batch="b")
    assert ledger.batch("b").batch_id is None and ledger.batch_ids() == set()
    assert ledger.batch("b").call_ids == {call.call_id for call in calls}
    ledger.set_batch_id("b", "msgbatch_1")
    assert ledger.batch("b").batch_id == "msgbatch_1"
    ledger.store([settled(call) for call in calls], batch="b")
    assert ledger.batch("b") is None and ledger.batch_ids() == {"msgbatch_1"}
    assert all(row.is_batch for row in ledger.calls([call.call_id for call in calls]))


def test_ledger_batch_that_was_never_made_leaves_its_calls_to_be_asked(ledger):
    calls = [make_call(i) for i in range(3)]
    ledger.claim(calls, "t", batch="b")
    ledger.forget_batch("b", "never made")
    assert ledger.claim(calls, "t") == calls


def test_ledger_of_another_kind_or_a_newer_release_is_refused_by_name(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one by its size" * 20)
    with pytest.raises(UserError, match="text cannot be read as a ledger"):
        Ledger(tmp_path / "text")
    Ledger(tmp_path / "new").close()
    with sqlite3.connect(tmp_path / "new") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="written by a newer release"):
        Ledger(tmp_path / "new")


def test_ledger_of_an_earlier_release_keeps_what_was_paid_and_takes_no_recording_for_it(ledger):
    paid, recorded, waiting = (make_call(i) for i in range(3))
    for call, teacher in ((paid, "anthropic:m"), (recorded, "recorded:m"), (waiting, "anthropic:m")):
        ledger.claim([call], teacher)
    ledger.store([settled(paid), settled(recorded)])
    ledger._db.execute("PRAGMA user_version=1")
    upgraded = Ledger(ledger.path)
    assert upgraded.claim([paid, recorded, waiting], "anthropic:m") == [recorded]
    upgraded.store([settled(recorded)])
    upgraded.close()
    again = Ledger(ledger.path)
    assert again.claim([paid, recorded, waiting], "anthropic:m") == []
    again.close()


def test_ledger_keeps_the_replies_of_a_recording_from_one_start_to_the_next(ledger):
    call = make_call(1)
    ledger.claim([call], "recorded:m")
    ledger.store([settled(call)])
    again = Ledger(ledger.path)
    assert again.get(call.call_id).status == "ok"
    again.close()


OTHER = """
import sys
from pathlib import Path
from ev_platform.teachers.ledger import Ledger
from ev_platform_tests.teachers.fake_client import make_call
ledger = Ledger(Path(sys.argv[1]))
print(sum(len(ledger.claim([make_call(i)], sys.argv[2])) for i in range(300)))
"""


def test_ledger_two_processes_and_two_threads_claim_each_call_once(ledger):
    counts = []

    def claim():
        counts.append(sum(len(ledger.claim([make_call(i)], "thread")) for i in range(300)))

    processes = [
        subprocess.Popen([sys.executable, "-c", OTHER, ledger.path, str(n)], stdout=subprocess.PIPE) for n in range(2)
    ]
    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts += [int(process.communicate()[0]) for process in processes]
    assert sum(counts) == 300 and [process.returncode for process in processes] == [0, 0]


def test_ledger_half_a_transaction_of_a_dead_process_is_not_there(ledger, tmp_path):
    calls = [make_call(i) for i in range(3)]
    ledger.claim(calls, "t")
    broken = [settled(calls[0]), Settled(calls[1].call_id, "ok", None, None, 0.0)]  # fails on the second
    with pytest.raises(AttributeError):
        ledger.store(broken)
    assert [ledger.get(call.call_id).status for call in calls] == [None] * 3
    ledger.store([settled(calls[0])])
    again = Ledger(ledger.path)
    assert [again.get(call.call_id).status for call in calls] == ["ok", None, None]
    again.close()
