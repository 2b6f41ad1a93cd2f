import asyncio
import contextlib
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ev_platform.serving import limits as limits_module
from ev_platform.serving.keys import UNLIMITED, KeyInfo, KeyLimits
from ev_platform.serving.limits import MAX_FAILED_PER_MINUTE, FailedAttempts, Limits
from ev_platform.serving.schemas import ApiError

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Clocks:
    """Both clocks of `Limits`: the time of day may be set to anything, the other only goes on."""

    def __init__(self, at=NOON):
        self.at = at
        self.ms = 5_000

    def pass_s(self, seconds):
        self.at += timedelta(seconds=seconds)
        self.ms += int(seconds * 1000)

    def limits(self, **used_today):
        return Limits(used_today, clock=lambda: self.at, clock_ms=lambda: self.ms)


def key_with(key_id="aa", **limits):
    limits = UNLIMITED.model_copy(update=limits)
    return KeyInfo(key_id=key_id, name="n", salt="0" * 32, secret_hash="0" * 64, created_at=NOON, limits=limits)


def ask(limits, key, *, spends_tokens=True):
    """Make one request that ends at once; return the refusal, or None."""
    try:
        with limits.admit(key, spends_tokens=spends_tokens):
            return None
    except ApiError as error:
        assert error.status == 429
        return error


def test_retry_after_of_the_window_is_true_to_the_second():
    clocks, key = Clocks(), key_with(requests_per_minute=3)
    limits = clocks.limits()
    for _ in range(3):
        assert ask(limits, key) is None
        clocks.pass_s(10)
    refusal = ask(limits, key)
    assert (refusal.code, refusal.retry_after_s) == ("rate_limit_exceeded", 31)  # 30.001 s
    clocks.pass_s(refusal.retry_after_s - 1)
    assert ask(limits, key).retry_after_s == 1
    clocks.pass_s(1)
    assert ask(limits, key) is None


def test_refused_requests_use_nothing_up():
    clocks, key = Clocks(), key_with(requests_per_minute=1)
    limits = clocks.limits()
    assert ask(limits, key) is None
    for _ in range(59):
        clocks.pass_s(1)
        assert ask(limits, key) is not None
    clocks.pass_s(2)
    assert ask(limits, key) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 40_000), max_size=80))
def test_no_window_of_a_minute_holds_more_than_the_limit(limit, waits_ms):
    clocks, key = Clocks(), key_with(requests_per_minute=limit)
    limits, admitted = clocks.limits(), []
    for wait_ms in waits_ms:
        clocks.ms += wait_ms
        if ask(limits, key) is None:
            admitted.append(clocks.ms)
        for end in admitted:
            assert sum(end - 60_000 < at <= end for at in admitted) <= limit


def test_changed_limit_holds_from_the_next_request_on():
    clocks = Clocks()
    limits = clocks.limits()
    for _ in range(5):
        assert ask(limits, key_with(requests_per_minute=5)) is None
    assert ask(limits, key_with(requests_per_minute=5)) is not None
    assert ask(limits, key_with(requests_per_minute=6)) is None
    assert ask(limits, key_with(requests_per_minute=2)).retry_after_s == 61  # the fifth and sixth must leave
    assert ask(limits, key_with(requests_per_minute=None)) is None


def test_one_key_does_not_use_up_what_another_has():
    limits = Clocks().limits()
    first, second = (key_with(key_id, requests_per_minute=1, concurrent_requests=1) for key_id in ("aa", "bb"))
    with limits.admit(first, spends_tokens=True):
        assert ask(limits, first).code == "concurrency_limit"
        assert ask(limits, second) is None


def test_what_is_left_is_told():
    clocks, key = Clocks(), key_with(requests_per_minute=3, tokens_per_day=100)
    limits = clocks.limits(aa=90)
    with limits.admit(key, spends_tokens=True) as left:
        assert (left.requests, left.tokens) == (2, 10)
    limits.charge("aa", 30)
    with limits.admit(key, spends_tokens=False) as left:
        assert (left.requests, left.tokens) == (1, 0)
    clocks.pass_s(61)
    with limits.admit(key, spends_tokens=False) as left:
        assert left.requests == 2
    with limits.admit(key_with(), spends_tokens=True) as left:
        assert (left.requests, left.tokens) == (None, None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 6), max_size=60))
def test_requests_at_once_never_exceed_the_limit_and_places_come_back(limit, steps):
    limits, key = Clocks().limits(), key_with(concurrent_requests=limit)
    running = []
    for step in steps:
        if step < len(running):
            running.pop(step).close()  # ends one of them
            continue
        held = contextlib.ExitStack()
        try:
            held.enter_context(limits.admit(key, spends_tokens=True))
            running.append(held)
        except ApiError as error:
            assert (error.code, len(running)) == ("concurrency_limit", limit)
        assert len(running) <= limit
    for held in running:
        held.close()
    with contextlib.ExitStack() as held:
        for _ in range(limit):
            held.enter_context(limits.admit(key, spends_tokens=True))


def test_place_comes_back_when_the_request_fails_or_is_cancelled():
    limits, key = Clocks().limits(), key_with(concurrent_requests=1)

    async def answer(seconds):
        with limits.admit(key, spends_tokens=True):
            await asyncio.sleep(seconds)
            raise RuntimeError("the engine failed")

    async def fail_and_cancel():
        with pytest.raises(RuntimeError):
            await answer(0)
        task = asyncio.create_task(answer(60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(fail_and_cancel())
    assert ask(limits, key) is None


def test_quota_refuses_answers_until_midnight_and_nothing_else():
    clocks, key = Clocks(), key_with(tokens_per_day=100)
    limits = clocks.limits(aa=60)
    assert ask(limits, key) is None
    limits.charge("aa", 70)  # an answer may end above it
    refusal = ask(limits, key)
    assert (refusal.code, refusal.retry_after_s) == ("quota_exceeded", 12 * 3600)
    assert ask(limits, key, spends_tokens=False) is None
    clocks.pass_s(refusal.retry_after_s - 1)
    assert ask(limits, key).retry_after_s == 1
    clocks.pass_s(1)
    assert ask(limits, key) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3 * 86_400, 3 * 86_400), max_size=20))
def test_clock_that_is_set_locks_nobody_out_for_longer_than_it_says(moves_s):
    clocks, key = Clocks(), key_with(tokens_per_day=10, requests_per_minute=1)
    limits = clocks.limits()
    for move_s in moves_s:
        clocks.at += timedelta(seconds=move_s)  # nobody waited: only the time of day was set
        limits.charge("aa", 10)
        refusal = ask(limits, key)
        assert refusal.code == "quota_exceeded"
        assert 0 < refusal.retry_after_s <= 86_400
        clocks.pass_s(refusal.retry_after_s)
        refusal = ask(limits, key)
        if refusal is not None:
            assert refusal.code == "rate_limit_exceeded"
            assert refusal.retry_after_s <= 61


def test_clock_that_is_set_back_a_year_forgets_what_was_counted_then():
    clocks, key = Clocks(), key_with(tokens_per_day=10)
    limits = clocks.limits(aa=10)
    assert ask(limits, key) is not None
    clocks.at -= timedelta(days=365)
    assert ask(limits, key) is None


def test_address_without_a_valid_key_is_told_to_wait_and_others_are_not():
    clocks = Clocks()
    failed = FailedAttempts(lambda: clocks.ms)
    assert [failed.note("192.0.2.1") for _ in range(MAX_FAILED_PER_MINUTE)] == [None] * MAX_FAILED_PER_MINUTE
    assert failed.note("192.0.2.1") == 61
    assert failed.note("192.0.2.2") is None
    clocks.pass_s(61)
    assert failed.note("192.0.2.1") is None


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "no address", True),
    ],
)
def test_addresses_of_one_ipv6_network_count_as_one(first, second, is_one):
    failed = FailedAttempts()
    for _ in range(MAX_FAILED_PER_MINUTE):
        failed.note(first)
    assert (failed.note(second) is not None) is is_one


def test_memory_does_not_grow_with_addresses_nor_with_requests(monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_ADDRESSES", n_kept := 400)
    failed, limits = FailedAttempts(), Limits({})
    key = key_with(requests_per_minute=50)

    def attack(first):
        for number in range(first, first + n_kept + 100):
            failed.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
            ask(limits, key)

    attack(0)
    tracemalloc.start()
    try:
        attack(2 * n_kept)
        grown, _ = tracemalloc.get_traced_memory()
        attack(4 * n_kept)
        assert tracemalloc.get_traced_memory()[0] < 1.2 * grown
    finally:
        tracemalloc.stop()


def test_defaults_are_limits():
    assert None not in KeyLimits().model_dump().values()
