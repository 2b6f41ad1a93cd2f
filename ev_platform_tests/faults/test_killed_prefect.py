"""SIGKILL of the Prefect server, of the process that serves the flow, or of the flow run's own."""

import random
import time
from contextlib import suppress

import httpx
import pytest

from ev_platform_tests.ports import free_port

from .harness import LONGEST_RUN_S, N_MOMENTS, NOTHING, SEED, TASK, ended_afterwards, moments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

VICTIMS = ("both", "server", "flow run", "served flow")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Services:
    """A Prefect server and the served flow, each started again as systemd or Compose would when it has ended."""

    def __init__(self, place):
        self.place, port = place, free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        self.commands = {
            "server": ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)),
            "served flow": ("ev-platform", "schedule", "--task", TASK, "--cron", "0 4 1 1 *"),
        }
        self.started = {}

    def keep_up(self):
        """Start what does not run, the server first; wait until it answers."""
        for name, command in self.commands.items():
            if name not in self.started or self.started[name].poll() is not None:
                self.started[name] = self.place.start(*command, log=f"{name}.log", PREFECT_API_URL=self.api)
            until = time.monotonic() + 180
            while name == "server" and not self._answers():
                assert time.monotonic() < until, self.place.told("server.log")
                time.sleep(0.5)

    def _answers(self):
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.api}/health", timeout=5).status_code == 200
        return False

    def start_flow_run(self):
        """Ask for a run, as its button in the UI does; return its id."""
        until = time.monotonic() + 180
        while not (found := self._ask("POST", "deployments/filter")):
            assert time.monotonic() < until, self.place.told("served flow.log")
            time.sleep(0.5)
        return self._ask("POST", f"deployments/{found[0]['id']}/create_flow_run")["id"]

    def state(self, run):
        """Return the type of a flow run's state."""
        return self._ask("GET", f"flow_runs/{run}")["state_type"]

    def _ask(self, method, path):
        """Return the server's answer; while its database is locked it says 503, and Prefect's own clients ask again."""
        until = time.monotonic() + 180
        while True:
            answer = httpx.request(method, f"{self.api}/{path}", json={} if method == "POST" else None, timeout=60)
            if answer.status_code != 503 or time.monotonic() > until:
                return answer.raise_for_status().json()
            time.sleep(0.5)

    def wait(self, run, states, seconds):
        """Wait until a flow run is in one of some states, or time is over; return its state."""
        until = time.monotonic() + seconds
        while (state := self.state(run)) not in states and time.monotonic() < until:
            time.sleep(1)
        return state

    def end(self, victim):
        """Kill one, with all that is its own; a flow run is a child of who serves it."""
        served = self.started["served flow"]
        ended = served.children(recursive=True) if victim in ("flow run", "both") else []
        ended += {"served flow": [served], "both": [served], "server": [self.started["server"]]}.get(victim, [])
        for process in ended:
            process.kill()
        for process in {served, self.started["server"]} & set(ended):
            process.wait()


def test_whatever_is_killed_the_next_flow_run_ends_as_an_undisturbed_run(undisturbed, tmp_path):
    chance = random.Random(f"{SEED} victims")
    victims = [VICTIMS[n % len(VICTIMS)] for n in range(N_MOMENTS)]
    chance.shuffle(victims)
    for n, (victim, moment) in enumerate(zip(victims, moments("Prefect"), strict=True)):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / f"killed-{n}")) as place:
            services = Services(place)
            services.keep_up()
            first = services.start_flow_run()
            services.wait(first, {"RUNNING", *ENDED}, 180)
            services.wait(first, ENDED, moment * undisturbed.seconds)
            n_tables = place.n_tables()
            services.end(victim)
            services.keep_up()
            second, started = services.start_flow_run(), time.monotonic()
            ended = services.wait(second, ENDED, LONGEST_RUN_S), services.wait(first, ENDED, 60)
            print(
                f"{moment:.2f} {victim} at {n_tables} tables: {ended[1]}; the next: {ended[0]} after "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            assert ended[0] == "COMPLETED", place.told("served flow.log")
            assert ended[1] in ENDED
            assert place.state() == undisturbed.state
            assert place.unfinished() == NOTHING
