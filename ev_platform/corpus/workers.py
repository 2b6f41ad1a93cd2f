"""Running jobs on files nobody vouches for: in processes of their own, with a time and a memory limit.

What a job does with a file is `html`'s and `pdf`'s affair; how its result becomes a row is `extract`'s.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ev_platform.corpus.extracted import UnusableError

# On top of what a worker has when it starts. Measured: 0.8 GB of address space once the layout model is loaded, 1.4 GB
# after 500 pages of real PDFs. Two gibibytes leave room for one huge page, and a bomb ends before a laptop swaps.
MEMORY_BYTES = 2 << 30
# A worker that has read this many files is replaced, so that what a library leaks stays small.
MAX_CALLS = 200


@dataclass(frozen=True)
class Call:
    """One call of a module-level function in a worker."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    timeout_s: float


# A job yields calls that may run side by side, is sent their results in that order, and returns its own result. What a
# call raises is thrown into it as UnusableError.
Job = Generator[list[Call], list[Any], Any]


@dataclass
class _Running:
    key: int
    job: Job
    futures: list[Future]


@contextmanager
def worker_pool(workers: int, memory_bytes: int = MEMORY_BYTES) -> Iterator[Any]:
    """Open a pool of processes, each of which may take `memory_bytes` of address space; the first call starts them."""
    from pebble import ProcessPool

    # Not fork: the parent may hold torch's and others' threads. What a worker imports is imported once, by the server
    # that all workers are forked from.
    context = get_context("forkserver")
    context.set_forkserver_preload(["ev_platform.corpus.extract", "trafilatura"])
    pool = ProcessPool(
        max_workers=workers, max_tasks=MAX_CALLS, initializer=_prepare, initargs=(memory_bytes,), context=context
    )
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()


def run_jobs(jobs: Iterable[tuple[int, Job]], pool: Any, workers: int) -> Iterator[tuple[int, Any]]:
    """Run jobs, a few at a time, and yield `(key, result)` of each as it ends.

    A job whose call takes too long, dies or raises is told by an UnusableError with the reason `extraction_timeout`,
    `extraction_crashed` or `extraction_failed`; other jobs go on.

    Args:
        jobs: Keys and jobs; taken only as fast as workers are free, so it may be a generator.
        pool: From `worker_pool`.
        workers: Processes in it.
    """
    waiting = iter(jobs)
    running: dict[Future, _Running] = {}
    while True:
        # Twice as many calls as workers: one that ends finds the next already there.
        while len(running) < 2 * workers and (taken := next(waiting, None)) is not None:
            yield from _advance(_Running(*taken, futures=[]), pool, running)
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            ended = running.pop(future, None)  # None: a sibling of a call that has failed
            if ended and (future.exception() or all(call.done() for call in ended.futures)):
                for call in ended.futures:
                    call.cancel()
                    running.pop(call, None)
                yield from _advance(ended, pool, running)


def _advance(this: _Running, pool: Any, running: dict[Future, _Running]) -> Iterator[Any]:
    """Hand a job the results that it waits for and schedule what it asks for next, or yield its end."""
    try:
        failed = [call for call in this.futures if call.done() and not call.cancelled() and call.exception()]
        if failed:
            calls = this.job.throw(_unusable(failed[0]))
        elif this.futures:
            calls = this.job.send([call.result() for call in this.futures])
        else:
            calls = next(this.job)
    except StopIteration as end:
        yield this.key, end.value
        return
    this.futures = []
    for call in calls:
        future = pool.schedule(_guarded, args=(call.function, call.args, call.timeout_s), timeout=call.timeout_s)
        future.timeout_s = call.timeout_s
        this.futures.append(future)
    running.update(dict.fromkeys(this.futures, this))


def _unusable(future: Any) -> UnusableError:
    from pebble import ProcessExpired

    error = future.exception()
    if isinstance(error, UnusableError):
        return error
    if isinstance(error, TimeoutError):
        return UnusableError("extraction_timeout", f"not done after {future.timeout_s:g} s")
    if isinstance(error, ProcessExpired):
        code = error.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return UnusableError("extraction_crashed", f"the process that read it ended with {how}")
    raise error  # the pool itself is broken


def _prepare(memory_bytes: int) -> None:
    # On top of what the libraries reserve when they load, which grows with the number of processors.
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + memory_bytes if hard == resource.RLIM_INFINITY else min(taken + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A loop inside a C library never comes back to a Python signal handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The layout parser prints; a run's output is for the person who started it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _guarded(function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
    # The parent ends a call that takes too long; should the parent itself be killed, the alarm does.
    signal.setitimer(signal.ITIMER_REAL, timeout_s + 10)
    try:
        return function(*args)
    except UnusableError:
        raise
    except MemoryError:
        raise UnusableError("extraction_failed", "MemoryError: it needs more than a worker may take") from None
    except Exception as error:  # as text: not every exception survives the way to the parent
        raise UnusableError("extraction_failed", f"{type(error).__name__}: {error}"[:300]) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
