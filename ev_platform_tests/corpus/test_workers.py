import ctypes
import os
import time

import pytest

from ev_platform.corpus.extracted import UnusableError
from ev_platform.corpus.workers import Call, run_jobs, worker_pool


def double(n):
    return 2 * n


def hang(seconds):
    time.sleep(seconds)


def crash():
    ctypes.string_at(0)


def leave():
    os._exit(3)


def take(n_bytes):
    return len(bytearray(n_bytes))


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")  # cannot be unpickled: its arguments are not in args


def fail():
    raise OddError("odd", "end")


def worker_id():
    time.sleep(0.2)
    return os.getpid()


def job(function, *args, timeout_s=20.0):
    """One call; its result, or the refusal."""
    try:
        (result,) = yield [Call(function, args, timeout_s)]
    except UnusableError as error:
        return error.reason, error.detail
    return result


def run(jobs, workers=1, **limits):
    with worker_pool(workers, **limits) as pool:
        return dict(run_jobs(enumerate(jobs), pool, workers))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ((hang, 60), ("extraction_timeout", "not done after 0.5 s")),
        ((crash,), ("extraction_crashed", "the process that read it ended with signal SIGSEGV")),
        ((leave,), ("extraction_crashed", "the process that read it ended with exit code 3")),
        ((fail,), ("extraction_failed", "OddError: odd end")),
        ((take, 1 << 40), ("extraction_failed", "MemoryError: it needs more than a worker may take")),
    ],
    ids=["hang", "crash", "exit", "exception", "memory"],
)
def test_call_that_goes_wrong_costs_its_own_job_only(bad, expected):
    good = [job(double, n) for n in range(6)]
    results = run([*good[:3], job(*bad, timeout_s=0.5), *good[3:]], workers=2)
    assert results == {0: 0, 1: 2, 2: 4, 3: expected, 4: 6, 5: 8, 6: 10}


def test_memory_limit_binds_each_worker():
    assert run([job(take, 100 << 20)], memory_bytes=2 << 30) == {0: 100 << 20}
    assert run([job(take, 1100 << 20)], memory_bytes=1 << 30)[0][0] == "extraction_failed"


def test_calls_of_one_job_run_side_by_side_and_come_back_in_order():
    def several():
        first = yield [Call(worker_id, (), 20.0) for _ in range(4)]
        second = yield [Call(double, (n,), 20.0) for n in range(5)]
        return len(set(first)), second

    assert run([several()], workers=2) == {0: (2, [0, 2, 4, 6, 8])}


def test_job_with_one_bad_call_of_many_ends_at_once():
    def several():
        try:
            yield [Call(hang, (60,), 100.0), Call(fail, (), 20.0), Call(hang, (60,), 100.0)]
        except UnusableError as error:
            return error.reason
        return "went on"

    started = time.monotonic()
    assert run([several(), job(double, 1)], workers=2) == {0: "extraction_failed", 1: 2}
    assert time.monotonic() - started < 20


def test_jobs_are_taken_only_as_fast_as_workers_are_free():
    taken = []

    def jobs():
        for n in range(20):
            taken.append(n)
            yield n, job(double, n)

    with worker_pool(2) as pool:
        results = run_jobs(jobs(), pool, 2)
        first, _ = next(results)
        assert len(taken) <= 2 * 2 + 1
        assert sorted([first, *dict(results)]) == list(range(20))


def test_pool_without_a_call_starts_no_process(monkeypatch):
    monkeypatch.setattr("pebble.ProcessPool.schedule", lambda *_, **__: pytest.fail("a call was scheduled"))
    started = time.monotonic()
    assert run([]) == {}
    assert time.monotonic() - started < 2


def test_interrupted_run_leaves_no_process_behind():
    pids = []
    with pytest.raises(KeyboardInterrupt), worker_pool(2) as pool:
        pids += run_jobs(enumerate([job(worker_id)]), pool, 2)
        for _ in run_jobs(enumerate([job(double, 1), job(hang, 60, timeout_s=100.0)]), pool, 2):
            raise KeyboardInterrupt
    for _, pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
