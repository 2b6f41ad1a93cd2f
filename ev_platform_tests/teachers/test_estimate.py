from dataclasses import replace

import pytest

from ev_platform.teachers.ask import Budget, Ledger, ask
from ev_platform.teachers.estimate import estimate
from ev_platform.teachers.prices import most_cost_of
from ev_platform_tests.teachers.fake_client import PRICE, FakeClient, make_call, make_config


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def pay(calls, client, ledger):
    return list(ask(calls, client, ledger, make_config(), teacher="t", price=PRICE, spent=Budget(10)))


def test_estimate_before_any_reply_assumes_half_of_the_longest_and_says_so(ledger):
    calls = [make_call(i, prompt=f"Fact {i} " + "word " * (i % 50), max_tokens=200) for i in range(1000)]
    client = FakeClient()
    told = estimate(calls, client, ledger, PRICE, make_config(max_cost_usd=0.05))
    exact = sum(client.count_tokens(call) for call in calls)
    assert told.n_input_tokens == pytest.approx(exact, rel=0.15)  # twenty calls were counted, not a thousand
    assert told.n_output_tokens == 100 * 1000 and told.output_basis.startswith("half of the longest reply allowed")
    assert told.expected_usd == pytest.approx((told.n_input_tokens * 1 + told.n_output_tokens * 5) / 1e6)
    assert told.worst_usd == pytest.approx(sum(most_cost_of(PRICE, call) for call in calls))
    assert told.expected_usd < told.worst_usd
    assert (told.n_calls, told.n_asked, told.n_stored, told.is_batch) == (1000, 1000, 0, False)
    assert told.n_within_cap == int(1000 * 0.05 / told.expected_usd) < 1000


def test_estimate_with_earlier_replies_foretells_what_is_charged(ledger):
    client = FakeClient(n_output_tokens=37)
    pay([make_call(i) for i in range(10)], client, ledger)
    calls = [make_call(i) for i in range(200)]
    told = estimate(calls, client, ledger, PRICE, make_config())
    assert (told.n_calls, told.n_stored, told.n_asked) == (200, 10, 190)
    assert told.output_basis == "10 earlier replies" and told.n_within_cap == 190
    before = client.charged_usd
    pay(calls, client, ledger)
    assert client.charged_usd - before == pytest.approx(told.expected_usd, rel=0.05)
    nothing = estimate(calls, client, ledger, PRICE, make_config())
    assert (nothing.n_asked, nothing.n_stored, nothing.expected_usd, nothing.worst_usd) == (0, 200, 0, 0)


def test_estimate_shows_what_a_killed_run_left_under_way(ledger):
    calls = [make_call(i) for i in range(5)]
    ledger.claim(calls[:2], "t")
    told = estimate(calls, FakeClient(), ledger, PRICE, make_config())
    assert (told.n_interrupted, told.n_asked) == (2, 3)
    again = estimate(calls, FakeClient(), ledger, PRICE, make_config(resend_interrupted=True))
    assert (again.n_interrupted, again.n_asked) == (2, 5)


def test_estimate_in_batches_is_half(ledger):
    calls = [make_call(i) for i in range(100)]
    single = estimate(calls, FakeClient(), ledger, PRICE, make_config(use_batches=True))
    batch = estimate(calls, FakeClient(has_batches=True), ledger, PRICE, make_config(use_batches=True))
    assert batch == replace(
        single, is_batch=True, expected_usd=single.expected_usd / 2, worst_usd=pytest.approx(single.worst_usd / 2)
    )
