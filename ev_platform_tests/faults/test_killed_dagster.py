"""SIGKILL of the run worker, the daemon or the webserver while Dagster carries a run out, as `deploy` starts them."""

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import dagster as dg
import pytest

from ev_platform.defs.run import dagster_home
from ev_platform.defs.submit import is_reachable, submit
from ev_platform.errors import UserError
from ev_platform_tests.ports import free_port
from ev_platform_tests.test_graph import ASSETS

from .harness import LONGEST_RUN_S, N_MOMENTS, SEED, TASK, ended_afterwards, moments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

VICTIMS = ("daemon", "webserver", "run worker")


class Services:
    """A webserver and a daemon, each started again as systemd or Compose would when it has ended."""

    def __init__(self, place):
        self.place, self.port = place, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.started = {}

    def keep_up(self):
        """Start what does not run, and wait until the webserver answers and the daemon lives."""
        port = str(self.port)
        commands = {
            "webserver": ("dagster-webserver", "-m", "ev_platform.definitions", "-h", "127.0.0.1", "-p", port),
            "daemon": ("dagster-daemon", "run", "-m", "ev_platform.definitions"),
        }
        for name, command in commands.items():
            if name not in self.started or self.started[name].poll() is not None:
                self.started[name] = self.place.start(*command, log=f"{name}.log")
        until = time.monotonic() + 120
        while not is_reachable(self.url):
            assert time.monotonic() < until, self.place.told("webserver.log")
            time.sleep(0.5)

    def end(self, victim):
        """Kill one; return whether there was one to kill."""
        if victim == "run worker":
            workers = [p for p in self.place.processes() if self._is_worker(p)]
            for worker in workers:
                worker.kill()
            return bool(workers)
        self.started[victim].kill()
        self.started[victim].wait()
        return True

    @staticmethod
    def _is_worker(process):
        # The code server's child, which it starts by `multiprocessing` for each run.
        with suppress(Exception):
            return "spawn_main" in " ".join(process.cmdline()) or "execute_run" in " ".join(process.cmdline())
        return False


@pytest.fixture
def services(undisturbed, tmp_path, monkeypatch):
    """Dagster over a place whose data may be taken away between two runs."""
    with ended_afterwards(undisturbed.place.fresh(tmp_path / "dagster-killed")) as place:
        monkeypatch.setenv("DAGSTER_HOME", str(place.home))
        dagster_home(place.data)
        yield Services(place)


def wait_until_over(place, seconds=LONGEST_RUN_S):
    """Return the runs when Dagster shows none as going on and no place in a pool is held."""
    until = time.monotonic() + seconds
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        while True:
            runs, held = instance.get_runs(), instance.event_log_storage.get_concurrency_run_ids()
            if all(run.is_finished for run in runs) and not held:
                return runs
            assert time.monotonic() < until, f"going on for ever: {[r.status for r in runs]}; places held by {held}"
            time.sleep(1)


def test_whatever_is_killed_the_rerun_ends_as_an_undisturbed_run(undisturbed, services):
    place = services.place
    chance = random.Random(f"{SEED} victims")
    victims = [VICTIMS[n % 3] for n in range(N_MOMENTS)]
    chance.shuffle(victims)
    for victim, moment in zip(victims, moments("Dagster"), strict=True):
        shutil.rmtree(place.data, ignore_errors=True)
        services.keep_up()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(submit, services.url, TASK, sorted(ASSETS))
            # By what it has done: without Prefect a run is over sooner, and on a busy machine later.
            while place.n_tables() < moment * undisturbed.place.n_tables() and not first.done():
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 1))
            n_tables, was_there = place.n_tables(), services.end(victim)
            services.keep_up()
            told = "passed"
            try:
                first.result(LONGEST_RUN_S)
            except UserError as error:
                told = str(error)
        over = time.monotonic()
        runs = wait_until_over(place, 180 if victim == "run worker" else LONGEST_RUN_S)
        over = time.monotonic() - over
        started = time.monotonic()
        submit(services.url, TASK, sorted(ASSETS))
        print(
            f"{moment:.2f} {victim}{'' if was_there else ' (none)'} at {n_tables} tables: {told[:150]!r}, "
            f"{runs[0].status.value}; over after {over:.0f} s, rerun {time.monotonic() - started:.0f} s",
            flush=True,
        )
        assert place.state() == undisturbed.state
        wait_until_over(place, 120)
