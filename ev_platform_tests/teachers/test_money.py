"""The promise about money, held against the count of a local Anthropic server that the real SDK speaks to over HTTP.

Run with `-s` for the figures.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from multiprocessing import forkserver, get_context
from pathlib import Path
from weakref import WeakSet

import httpx
import pytest

from ev_platform.teachers.ask import Budget, Ledger
from ev_platform.teachers.prices import most_cost_of, price_of
from ev_platform_tests.teachers import asking
from ev_platform_tests.teachers.asking import connect, make_calls, make_config, start

KINDS = ("rate_limited", "server_error", "overloaded", "stalled", "malformed", "refused", "truncated")
FAULTS = dict.fromkeys(KINDS, 0.05)
STALLED = {"timeout_s": 5.0, "concurrency": 32}  # what is not stalled comes in time, however busy the machine
N_CALLS = 300  # `dataset.test_paid_generation` asks a thousand
POINTS = ("before create", "after create", "while polling", "before storing", "while storing")


class Server:
    """The local server in a process of its own: one interpreter for both would wait for itself most of the time."""

    def __init__(self, log, options):
        self._log = log
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", _text(value))]
        command = [sys.executable, "-m", "ev_platform_tests.teachers.anthropic_server", "--log", str(log), *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().strip()

    def stats(self):
        return httpx.get(f"{self.url}/_stats").json()

    def stalled_usd(self):
        events = [json.loads(line) for line in self._log.read_text().splitlines()]
        return sum(event["cost_usd"] for event in events if event.get("fault") == "stalled")

    def close(self):
        self._process.kill()
        self._process.communicate()


def _text(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def serve(**options):
        servers.append(Server(tmp_path / f"server-{len(servers)}.jsonl", options))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def quick_repeats(monkeypatch):
    monkeypatch.setattr("ev_platform.teachers.sending.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.05)


@pytest.fixture(scope="module")
def spawn():
    # The libraries are loaded once, in the server that the processes are forked from. A server that other tests have
    # started would not load them.
    context = get_context("forkserver")
    forkserver._forkserver._stop()
    context.set_forkserver_preload(["ev_platform_tests.teachers.asking"])

    def spawn(*arguments):
        process = context.Process(target=asking.main, args=arguments)
        process.start()
        return process

    yield spawn
    forkserver._forkserver._stop()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_money_hundreds_of_calls_with_every_fault_end_with_a_value_or_a_reason(serve, ledger):
    server = serve(faults=FAULTS, stall_s=60, retry_after_s=0.1)
    budget, statuses, held, most_held = Budget(5), Counter(), WeakSet(), 0
    config = make_config(**{**STALLED, "concurrency": 16})
    before_bytes, started = 0, time.monotonic()

    def calls():
        for call in make_calls(N_CALLS):
            held.add(call)
            yield call

    for n, answered in enumerate(start(calls(), connect(server.url, config), ledger, config, budget)):
        if n == 150:
            before_bytes = resident_bytes()
        statuses[answered.status] += 1
        assert (answered.value is not None) == (answered.status == "ok") == (answered.detail is None)
        most_held = max(most_held, len(held))
    n_bytes = resident_bytes() - before_bytes
    stats = server.stats()
    known_usd = sum(row.cost_usd for row in ledger.calls([call.call_id for call in make_calls(N_CALLS)]))
    stalled_usd = server.stalled_usd()
    print(f"\n{N_CALLS} calls in {time.monotonic() - started:.1f} s: {dict(statuses)}; server: {stats['by_status']}")
    print(f"{stats['by_fault']}; at most {most_held} calls held, memory after call 150 {n_bytes / 1e6:.1f} MB")
    print(f"ledger ${known_usd:.4f}, server ${stats['cost_usd']:.4f}, of them stalled ${stalled_usd:.4f}")
    assert sum(statuses.values()) == N_CALLS and statuses["ok"] > 0.8 * N_CALLS and statuses["failed"] == 0
    assert {"malformed", "refused", "truncated", "stalled", "overloaded"} <= stats["by_fault"].keys()
    assert (
        statuses["refused"] == stats["by_fault"]["refused"] and statuses["truncated"] == stats["by_fault"]["truncated"]
    )
    assert statuses["invalid"] == stats["by_fault"]["malformed"]
    assert stats["n_repeated"] == 0
    # The provider counted what stalled, and nobody could know; it was set aside in full.
    assert known_usd == pytest.approx(stats["cost_usd"] - stalled_usd)
    assert known_usd < stats["cost_usd"] < budget.spent_usd < budget.cap_usd
    assert most_held <= 8 * 16 + 3  # the window, and what the loops' variables still name
    assert n_bytes < 40e6


def test_money_killed_in_the_middle_and_run_again_counts_nothing_twice(serve, spawn, ledger):
    server = serve(latency_s=0.05)
    victim = spawn(server.url, ledger.path, 60, {"concurrency": 8})
    while server.stats()["n_answered"] < 20:
        assert victim.is_alive()
        time.sleep(0.03)
    victim.kill()
    victim.join()
    assert victim.exitcode == -9 and server.stats()["n_answered"] < 60
    client = connect(server.url, make_config())
    statuses = Counter(a.status for a in start(make_calls(60), client, ledger, make_config(), Budget(1)))
    stats = server.stats()
    print(f"\nkilled, then run to the end: {dict(statuses)}; server: {stats['n_requests']} requests", end="")
    print(f" of {stats['n_contents']} contents, {stats['n_repeated']} paid twice")
    assert statuses["ok"] + statuses["interrupted"] == 60
    assert statuses["interrupted"] <= 8  # what was under way
    assert stats["n_repeated"] == 0 and stats["n_requests"] == stats["n_contents"]
    sent = list(start(make_calls(60), client, ledger, make_config(resend_interrupted=True), Budget(1)))
    assert {answered.status for answered in sent} == {"ok"}
    assert server.stats()["n_requests"] == stats["n_requests"] + statuses["interrupted"]


def test_money_killed_at_any_point_of_a_batch_and_run_again_counts_nothing_twice(serve, spawn, tmp_path):
    server = serve(batch_delay_s=0.5, faults={"server_error": 0.05, "stalled": 0.05})
    config = {"use_batches": True, "batch_size": 20}
    victims = {
        point: spawn(server.url, tmp_path / f"{i}.sqlite", 40, config, point, point) for i, point in enumerate(POINTS)
    }
    for victim in victims.values():
        victim.join()
    assert {point: victim.exitcode for point, victim in victims.items()} == dict.fromkeys(POINTS, -9)
    settings = make_config(**config)
    client = connect(server.url, settings)
    for i, point in enumerate(POINTS):
        ledger, budget = Ledger(tmp_path / f"{i}.sqlite"), Budget(1)
        before_usd = server.stats()["cost_usd"]
        again = list(start(make_calls(40, point), client, ledger, settings, budget))
        statuses = Counter(answered.status for answered in again)
        assert statuses["ok"] + statuses["failed"] == 40, point
        assert budget.spent_usd >= server.stats()["cost_usd"] - before_usd - 1e-9
        ended = list(start(make_calls(40, point), client, ledger, settings, budget))
        assert {answered.status for answered in ended} == {"ok"}, point  # what a batch failed on was asked again
        rows = ledger.calls([call.call_id for call in make_calls(40, point)])
        known_usd = sum(row.cost_usd for row in rows)
        print(f"\nkilled {point}: {dict(statuses)}, then all; ${known_usd:.4f}", end="")
        ledger.close()
    stats = server.stats()
    print(f"\nserver: {stats['n_requests']} requests, {stats['n_answered']} paid, {stats['n_repeated']} twice")
    assert stats["n_repeated"] == 0 and stats["n_answered"] == 40 * len(POINTS)


def test_money_cap_holds_by_the_servers_own_count_also_where_stalled_calls_are_counted(serve, ledger):
    server = serve(faults={**FAULTS, "stalled": 0.1}, stall_s=60, retry_after_s=0.1)
    budget, calls = Budget(0.50), list(make_calls(300, n_words=1500))
    config = make_config(**STALLED)
    client = connect(server.url, config)
    answers = list(start(calls, client, ledger, config, budget))
    statuses, spent_usd = Counter(answered.status for answered in answers), server.stats()["cost_usd"]
    most_usd = most_cost_of(price_of(config), calls[0])
    print(f"\ncap $0.50: server ${spent_usd:.4f}, set aside for what stalled besides; {dict(statuses)}")
    assert 0.15 < spent_usd <= 0.50
    assert 0.50 - most_usd <= budget.spent_usd <= 0.50
    assert statuses["over_budget"] > 0 and statuses["ok"] > 30
    # What was paid for is kept, and is there without a key.
    n_requests = server.stats()["n_requests"]
    again = list(start(calls, client, ledger, config, Budget(1e-9)))
    assert sum(answered.status == "ok" for answered in again) == statuses["ok"]
    assert server.stats()["n_requests"] == n_requests


def test_money_cap_holds_in_batches_and_is_nearly_used(serve, ledger):
    server = serve()
    budget, config = Budget(0.10), make_config(use_batches=True, batch_size=100)
    answers = list(start(make_calls(300), connect(server.url, config), ledger, config, budget))
    statuses, spent_usd = Counter(answered.status for answered in answers), server.stats()["cost_usd"]
    print(f"\ncap $0.10 in batches: server ${spent_usd:.4f}; {dict(statuses)}")
    assert 0.09 < spent_usd <= 0.10
    assert budget.spent_usd == pytest.approx(spent_usd)
    assert statuses["ok"] == server.stats()["n_answered"] and statuses["ok"] + statuses["over_budget"] == 300
