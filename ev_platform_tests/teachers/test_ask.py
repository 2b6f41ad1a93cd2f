import asyncio
import signal
import sqlite3
import threading
import time
from dataclasses import replace

import pytest

from ev_platform.errors import UserError
from ev_platform.teachers.ask import Budget, Ledger, Pauses, ask
from ev_platform.teachers.calls import Usage
from ev_platform.teachers.prices import most_cost_of
from ev_platform_tests.teachers import fake_client
from ev_platform_tests.teachers.fake_client import PRICE, Fact, FakeClient, make_call, make_config

QUICK = Pauses(first_s=0.01, longest_s=0.05, appear_s=0.1)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name == "ask"]


@pytest.fixture
def asks(ledger, monkeypatch):
    monkeypatch.setattr("ev_platform.teachers.sending.FIRST_PAUSE_S", 0.01)

    def asks(calls, client, config=None, budget=None):
        return ask(
            calls,
            client,
            ledger,
            config or make_config(),
            teacher="fake:tiny-1",
            price=PRICE,
            spent=budget or Budget(1000),
            pauses=QUICK,
        )

    return asks


def numbers(n, start=0):
    return [make_call(i) for i in range(start, start + n)]


# ---- one by one ----


def test_ask_every_kind_of_end_keeps_order_reason_and_cost(asks, ledger):
    faults = {
        1: ["refusal"],
        2: ["truncated"],
        3: ["malformed"],
        4: ["misfit"],
        5: ["down"],
        6: ["timeout"],
        7: ["timeout"] * 3,
    }
    client = FakeClient(faults)
    calls = numbers(9)
    answers = list(asks(calls, client))
    assert [answered.call for answered in answers] == calls
    assert [answered.status for answered in answers] == [
        *("ok", "refused", "truncated", "invalid", "invalid", "failed", "ok", "failed", "ok")
    ]
    assert answers[0].value == Fact(fact="fact 0", number=0)
    assert answers[1].value is None and answers[1].detail == "the model declined"
    assert "reached max_tokens" in answers[2].detail
    assert answers[3].detail.startswith("the whole reply: Invalid JSON: EOF while parsing a string")
    assert answers[4].detail == "fact: String should have at least 1 character (and 1 more)"
    assert answers[5].detail == "529 overloaded" and answers[7].detail == "timed out"
    for answered in answers:  # what was counted was kept, also where the reply is of no use
        assert (answered.cost_usd > 0) == (answered.status != "failed")
    rows = ledger.calls([call.call_id for call in calls])
    assert [row.status for row in rows] == [answered.status for answered in answers]
    assert sum(row.cost_usd for row in rows) == pytest.approx(client.charged_usd)
    assert rows[7].detail == "timed out; 3 attempts broke off and may be charged too"
    assert (rows[0].model, rows[0].request_id, rows[0].teacher) == ("tiny-1-20260101", "req_0", "fake:tiny-1")


def test_ask_again_pays_nothing_and_asks_only_what_the_provider_failed_on(asks):
    client = FakeClient({1: ["refusal"], 2: ["truncated"], 3: ["misfit"], 4: ["down"]})
    first = list(asks(numbers(6), client))
    second = list(asks(numbers(6), client))
    assert all(count == 1 for count in client.charged.values())
    assert [answered.status for answered in second] == ["ok", "refused", "truncated", "invalid", "ok", "ok"]
    assert [answered.is_stored for answered in second] == [True, True, True, True, False, True]
    assert [replace(answered, is_stored=False) for answered in second if answered.call != first[4].call] == [
        answered for answered in first if answered.status != "failed"
    ]


def test_ask_equal_calls_are_paid_once(asks):
    client = FakeClient(delay_s=0.01)
    answers = list(asks([make_call(i % 3) for i in range(30)], client))
    assert client.charged == {f"Fact {i}": 1 for i in range(3)}
    assert [answered.value.number for answered in answers] == [i % 3 for i in range(30)]
    assert sum(not answered.is_stored for answered in answers) == 3


def test_ask_a_generator_holds_only_a_window_of_it_and_keeps_the_concurrency(asks):
    taken = []

    def calls():
        for i in range(160):
            taken.append(i)
            yield make_call(i)

    client = FakeClient(delay_s=0.002)
    ahead = [len(taken) - n for n, _ in enumerate(asks(calls(), client, make_config(concurrency=5)))]
    assert len(ahead) == 160
    assert client.most_under_way == 5
    assert max(ahead) <= 8 * 5


def test_ask_closed_early_stores_what_has_left_and_sends_nothing_more(asks, ledger):
    client = FakeClient(delay_s=0.05)
    answers = asks((make_call(i) for i in range(10_000)), client, make_config(concurrency=4))
    assert next(answers).status == "ok"
    answers.close()
    n_sent = len(client.charged)
    assert n_sent <= 8 * 4 + 1
    time.sleep(0.1)
    assert len(client.charged) == n_sent and client.n_closed == 1 and client.n_under_way == 0
    rows = ledger.calls([make_call(i).call_id for i in range(100)])
    assert len(rows) == n_sent and {row.status for row in rows} == {"ok"}


def test_ask_keyboard_interrupt_of_the_caller_stores_what_has_left(asks, ledger):
    client = FakeClient(delay_s=0.05)
    with pytest.raises(KeyboardInterrupt):
        for _ in asks((make_call(i) for i in range(1000)), client):
            raise KeyboardInterrupt
    rows = ledger.calls([make_call(i).call_id for i in range(1000)])
    assert len(rows) == len(client.charged) < 100 and {row.status for row in rows} == {"ok"}


def test_ask_within_a_running_loop_works(asks):
    async def inside():
        return [answered.status for answered in asks(numbers(3), FakeClient())]

    assert asyncio.run(inside()) == ["ok"] * 3


def test_ask_key_refused_raises_and_the_next_run_asks_again(asks, ledger):
    client = FakeClient({2: ["key"]})
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        list(asks(numbers(100), client))
    assert ledger.get(make_call(2).call_id).status == "failed"
    assert {answered.status for answered in asks(numbers(100), client)} == {"ok"}
    assert set(client.charged.values()) == {1}


def test_ask_error_of_the_client_is_raised_and_that_call_counts_as_interrupted(asks):
    client = FakeClient({2: ["bug"]})
    budget = Budget(1)
    with pytest.raises(ZeroDivisionError):
        list(asks(numbers(5), client, budget=budget))
    assert budget.spent_usd >= most_cost_of(PRICE, make_call(2))  # nobody knows whether it was charged
    assert budget.reserved_usd == pytest.approx(0)
    assert [answered.status for answered in asks(numbers(5), client)] == ["ok", "ok", "interrupted", "ok", "ok"]


def test_ask_interrupted_call_is_sent_again_on_request_only(asks, ledger):
    client = FakeClient()
    ledger.claim([make_call(1)], "fake:tiny-1")  # as a killed run leaves it
    (answered,) = asks([make_call(1)], client)
    assert answered.status == "interrupted" and "teacher.resend_interrupted" in answered.detail
    assert client.charged == {}
    assert [row.status for row in ledger.calls([make_call(1).call_id])] == ["interrupted"]
    (answered,) = asks([make_call(1)], client, make_config(resend_interrupted=True))
    assert answered.status == "ok" and not answered.is_stored


def test_ask_stored_reply_is_held_against_a_changed_validator(asks, ledger, monkeypatch):
    client = FakeClient({1: ["lie"]})
    (answered,) = asks([make_call(1)], client)
    assert (answered.status, answered.detail) == ("invalid", "fact: Value error, is a lie")
    monkeypatch.setattr(fake_client, "LIES", ["fib"])
    (answered,) = asks([make_call(1)], client)
    assert answered.status == "ok" and answered.value.fact == "lie 1"
    assert [row.status for row in ledger.calls([make_call(1).call_id])] == ["ok"]
    assert client.charged == {"Fact 1": 1}


# ---- the cap ----


def test_ask_cap_is_nearly_used_and_never_exceeded(asks):
    client, budget = FakeClient(delay_s=0.001), Budget(0.02)
    answers = list(asks(numbers(300), client, budget=budget))
    most_usd = most_cost_of(PRICE, make_call(999))
    assert budget.cap_usd - most_usd <= client.charged_usd <= budget.cap_usd
    statuses = [answered.status for answered in answers]
    assert statuses.count("ok") == len(client.charged) == 300 - statuses.count("over_budget")
    assert "of the run's $0.02 are spent" in answers[-1].detail and answers[-1].cost_usd == 0


def test_ask_cap_holds_when_every_attempt_breaks_off_after_it_was_counted(asks):
    client, budget = FakeClient({i: ["counted timeout"] * 9 for i in range(200)}), Budget(0.02)
    answers = list(asks(numbers(200), client, budget=budget))
    assert {answered.status for answered in answers} == {"failed", "over_budget"}
    assert 0 < client.charged_usd <= budget.spent_usd <= budget.cap_usd


def test_ask_cap_is_shared_by_two_that_are_open_at_once(ledger):
    client, budget = FakeClient(), Budget(0.015)
    settings = {"teacher": "fake:tiny-1", "price": PRICE, "spent": budget}
    one = ask(numbers(150), client, ledger, make_config(), **settings)
    two = ask(numbers(150, 150), client, ledger, make_config(), **settings)
    pairs = list(zip(one, two, strict=True))
    assert len(pairs) == 150
    assert 0.015 - 2 * most_cost_of(PRICE, make_call(999)) <= client.charged_usd <= 0.015


def test_ask_cap_lets_stored_replies_through(asks):
    client = FakeClient()
    list(asks(numbers(5), client))
    answers = list(asks(numbers(8), client, budget=Budget(1e-9)))
    assert [answered.status for answered in answers] == ["ok"] * 5 + ["over_budget"] * 3


def test_ask_prompt_beyond_its_price_is_not_asked(ledger):
    price = PRICE.model_copy(update={"max_prompt_tokens": 3000})
    calls = [make_call(1), make_call(2, prompt="Fact 2 " + "word " * 1000), make_call(3)]
    answers = list(ask(calls, FakeClient(), ledger, make_config(), teacher="f", price=price, spent=Budget(1)))
    assert [answered.status for answered in answers] == ["ok", "over_budget", "ok"]
    assert answers[1].detail == "its prompt may be longer than the 3000 tokens its price holds for"


# ---- batches ----


BATCHED = {"use_batches": True, "batch_size": 40}


def test_ask_many_go_in_batches_at_half_price_and_in_order(asks, ledger):
    client = FakeClient({3: ["refusal"], 50: ["down"], 60: ["misfit"]}, has_batches=True)
    budget = Budget(1)
    answers = list(asks(numbers(90), client, make_config(**BATCHED), budget))
    assert [len(batch["results"]) for batch in client.batches.values()] == [40, 40]  # and ten one by one
    assert [answered.call.prompt for answered in answers] == [f"Fact {i}" for i in range(90)]
    assert {i: answered.status for i, answered in enumerate(answers) if answered.status != "ok"} == {
        3: "refused",
        50: "failed",
        60: "invalid",
    }
    assert budget.spent_usd == pytest.approx(client.charged_usd)
    rows = ledger.calls([call.call_id for call in numbers(90)])
    assert [row.is_batch for row in rows] == [True] * 80 + [False] * 10
    assert rows[0].cost_usd == pytest.approx(rows[-1].cost_usd / 2)
    again = list(asks(numbers(90), client, make_config(**BATCHED)))
    assert [answered.is_stored for answered in again].count(False) == 1 and again[50].status == "ok"
    assert set(client.charged.values()) == {1}


def test_ask_a_handful_goes_one_by_one(asks):
    client = FakeClient(has_batches=True)
    assert len(list(asks(numbers(16), client, make_config(**BATCHED)))) == 16
    assert client.batches == {}


def test_ask_batch_is_cut_to_the_cap_and_the_rest_of_it_used(asks):
    client, budget = FakeClient(has_batches=True, polls=1), Budget(0.02)
    answers = list(asks(numbers(400), client, make_config(**BATCHED), budget))
    most_usd = most_cost_of(PRICE, make_call(999))
    assert budget.cap_usd - most_usd <= client.charged_usd <= budget.cap_usd
    assert set(client.charged.values()) == {1}
    assert {answered.status for answered in answers} == {"ok", "over_budget"}
    assert max(len(batch["results"]) for batch in client.batches.values()) <= 40


def test_ask_closed_while_a_batch_is_under_way_takes_it_up_in_the_next_run(asks):
    client = FakeClient(has_batches=True, polls=10**9)
    answers = asks(numbers(80), client, make_config(**BATCHED))
    timer = threading.Timer(0.3, client.__setattr__, ("polls", 0))  # ends after the run was given up

    def press_ctrl_c():
        while len(client.batches) < 2:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    press = threading.Thread(target=press_ctrl_c)
    press.start()
    with pytest.raises(KeyboardInterrupt):
        next(answers)
    press.join()
    timer.start()
    assert len(client.batches) == 2
    budget = Budget(1)
    again = list(asks(numbers(80), client, make_config(**BATCHED), budget))
    assert {answered.status for answered in again} == {"ok"} and all(answered.is_stored for answered in again)
    assert len(client.batches) == 2 and set(client.charged.values()) == {1}
    assert budget.spent_usd == 0  # the earlier run has paid
    timer.join()


def _left_by_a_killed_run(ledger, calls, batch_id=None):
    ledger.claim(calls, "fake:tiny-1", batch="b1")
    if batch_id:
        ledger.set_batch_id("b1", batch_id)


def test_ask_batch_intended_and_never_made_is_made_now(asks, ledger):
    client = FakeClient(has_batches=True)
    _left_by_a_killed_run(ledger, numbers(40))
    answers = list(asks(numbers(40), client, make_config(**BATCHED)))
    assert {answered.status for answered in answers} == {"ok"} and not any(answered.is_stored for answered in answers)
    assert set(client.charged.values()) == {1} and len(client.batches) == 1


def test_ask_batch_made_without_its_name_recorded_is_found_among_others(asks, ledger):
    client = FakeClient(has_batches=True)
    _left_by_a_killed_run(ledger, numbers(40))
    client.create_batch(numbers(40))
    client.create_batch(numbers(40, 500))  # as large, and somebody else's
    client.create_batch(numbers(41, 700))
    answers = list(asks(numbers(40), client, make_config(**BATCHED)))
    assert {answered.status for answered in answers} == {"ok"} and all(answered.is_stored for answered in answers)
    assert set(client.charged.values()) == {1} and len(client.batches) == 3


def test_ask_batch_that_is_known_is_polled_and_its_failures_asked_again(asks, ledger):
    client = FakeClient({7: ["down"]}, has_batches=True)
    made = client.create_batch(numbers(40))
    _left_by_a_killed_run(ledger, numbers(40), made.batch_id)
    answers = list(asks(numbers(40), client, make_config(**BATCHED)))
    assert {answered.status for answered in answers} == {"ok"}
    assert [i for i, answered in enumerate(answers) if not answered.is_stored] == [7]
    assert set(client.charged.values()) == {1} and client.n_lists == 0


def test_ask_batch_of_an_earlier_run_is_stored_whole_though_half_is_asked_for(asks, ledger):
    client = FakeClient({30: ["misfit"]}, has_batches=True)
    made = client.create_batch(numbers(40))
    _left_by_a_killed_run(ledger, numbers(40), made.batch_id)
    assert len(list(asks(numbers(20), client, make_config(**BATCHED)))) == 20
    answers = list(asks(numbers(40), client, make_config(**BATCHED)))
    assert [i for i, answered in enumerate(answers) if answered.status != "ok"] == [30]
    assert answers[30].status == "invalid" and set(client.charged.values()) == {1}


@pytest.mark.parametrize("fault", ["lost", "made and lost"])
def test_ask_batch_whose_creation_breaks_off_is_paid_once(asks, fault):
    client = FakeClient({"create": [fault]}, has_batches=True)
    budget = Budget(1)
    answers = list(asks(numbers(40), client, make_config(**BATCHED), budget))
    assert {answered.status for answered in answers} == {"ok"}
    assert set(client.charged.values()) == {1} and len(client.batches) == 1
    assert budget.spent_usd == pytest.approx(client.charged_usd)


def test_ask_batch_that_cannot_be_made_fails_each_call_and_costs_nothing(asks):
    client = FakeClient({"create": ["lost"] * 3}, has_batches=True)
    budget = Budget(1)
    answers = list(asks(numbers(40), client, make_config(**BATCHED), budget))
    assert {(answered.status, answered.detail) for answered in answers} == {
        ("failed", "the provider did not take the batch")
    }
    assert (budget.spent_usd, budget.reserved_usd) == (0, pytest.approx(0))
    assert {answered.status for answered in asks(numbers(40), client, make_config(**BATCHED))} == {"ok"}


class SlowToMake(FakeClient):
    """Takes a batch after a longer time than one that was made takes to be listed."""

    def create_batch(self, calls):
        time.sleep(0.8)
        return super().create_batch(calls)


def test_ask_batch_that_another_run_is_just_making_is_waited_for_and_not_made_again(asks, ledger):
    client, budgets, statuses = SlowToMake(has_batches=True), [Budget(1), Budget(1)], []

    def other_run():
        book = Ledger(ledger.path)
        settings = {"teacher": "fake:tiny-1", "price": PRICE, "spent": budgets[0], "pauses": QUICK}
        statuses.extend(a.status for a in ask(numbers(40), client, book, make_config(**BATCHED), **settings))
        book.close()

    thread = threading.Thread(target=other_run)
    thread.start()
    time.sleep(0.3)
    statuses.extend(a.status for a in asks(numbers(40), client, make_config(**BATCHED), budgets[1]))
    thread.join()
    assert statuses == ["ok"] * 80
    assert len(client.batches) == 1 and set(client.charged.values()) == {1}
    assert [budget.spent_usd for budget in budgets] == [pytest.approx(client.charged_usd), 0]
    assert [file.name for file in ledger.path.parent.iterdir() if "making" in file.name] == []


def test_ask_batch_out_of_reach_is_not_given_up_though_interrupted_calls_may_be_sent_again(asks, ledger):
    client = FakeClient(has_batches=True)
    made = client.create_batch(numbers(40))
    _left_by_a_killed_run(ledger, numbers(40), made.batch_id)
    look, n_broken = client.get_batch, iter(range(3))

    def get_batch(batch_id):
        if next(n_broken, None) is not None:
            raise ConnectionError("no route")
        return look(batch_id)

    client.get_batch = get_batch
    config = make_config(**BATCHED, resend_interrupted=True)
    with pytest.raises(UserError, match="run again later"):
        list(asks(numbers(40), client, config))
    assert {answered.status for answered in asks(numbers(40), client, config)} == {"ok"}
    assert len(client.batches) == 1 and set(client.charged.values()) == {1}


def test_ask_cap_holds_though_the_server_counts_nothing(asks):
    class Silent(FakeClient):
        def answer(self, call, factor=1.0):
            return replace(super().answer(call, factor), usage=Usage())

    client = Silent()
    statuses = [answered.status for answered in asks(numbers(300), client, budget=Budget(0.02))]
    assert statuses.count("ok") == len(client.charged) > 5 and set(statuses) == {"ok", "over_budget"}
    assert client.charged_usd <= 0.02


def test_ask_reply_after_a_failure_that_was_paid_costs_the_same_when_it_is_read_again(asks):
    class Pausing(FakeClient):
        def answer(self, call, factor=1.0):
            is_first = not self.charged
            reply = super().answer(call, factor)
            return replace(reply, status="failed", detail="the reply stopped for pause_turn") if is_first else reply

    client = Pausing()
    costs = [answered.cost_usd for _ in range(3) for answered in asks(numbers(1), client)]
    assert costs[1] == costs[2] == pytest.approx(2 * costs[0]) and client.charged == {"Fact 0": 2}


def test_budget_rounding_of_what_was_given_back_keeps_nobody_waiting():
    budget = Budget(0.7)

    async def reserve_all():
        assert await budget.reserve(0.1, 0.1, 0.4) == 3
        budget.settle(0.1 + (0.1 + 0.4), 0)  # a rounding step less than was set aside
        return await asyncio.wait_for(budget.reserve(0.7), 1)

    assert asyncio.run(reserve_all()) == 1


def test_ask_ledger_write_that_fails_is_raised_before_anything_is_sent(asks, ledger):
    client = FakeClient()
    ledger._db.execute("PRAGMA query_only=1")  # as a full disk does, every write fails
    with pytest.raises(sqlite3.OperationalError):
        list(asks(numbers(5), client))
    assert client.charged == {}
