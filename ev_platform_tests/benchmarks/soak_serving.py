"""An hour of questions at a steady pace to a real server: does any of its processes grow, or keep files open?

    cp -r ev_data /tmp/soak   # keys and requests are written into it
    python -m ev_platform_tests.benchmarks.soak_serving /tmp/soak --minutes 60 --every-s 4

The server is started as `ev-platform serve` starts it, with the champion of the store. Of every four questions one is
streamed, and of every ten one is left by its client in the middle; each twentieth answer is rated, and the metrics are
read with every sample. Each sample is a line; at the end stand first and last figures, the most, and the slope.
"""

from __future__ import annotations

import collections
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.tasks import EXAMPLES, Task
from ev_platform.tasks.rows import read_rows
from ev_platform_tests.ports import free_port

TASK = "ev_charging"
SAMPLE_S = 30.0
WARM_UP = 0.15  # share of the time in which caches fill; slopes are of the rest
# By what of its command line a process is known.
PROCESSES = {
    "replica": f"ServeReplica:ev_platform:{TASK}",
    "gateway": "ServeReplica:ev_platform:ListeningGateway",
    "controller": "ServeController",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}
DRIVER = "ev-platform serve"


@dataclass(frozen=True)
class Sample:
    """What one process holds at one moment."""

    hours: float
    megabytes: float
    files: int
    threads: int


class Asker:
    """Asks one question after the other, each in one of the ways that people use."""

    def __init__(self, url: str, key: str):
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        self.ended: collections.Counter[str] = collections.Counter()
        self.latencies_ms: list[float] = []

    def ask(self, number: int, question: str) -> None:
        started = time.perf_counter()
        try:
            self.ended[self._ask(number, question)] += 1
        except httpx.HTTPError as error:
            self.ended[type(error).__name__] += 1
        self.latencies_ms.append((time.perf_counter() - started) * 1000)

    def _ask(self, number: int, question: str) -> str:
        is_left, body = number % 10 == 7, {"question": question}
        if number % 4 and not is_left:
            reply = self._client.post("/v1/answers", json=body)
            if reply.is_success and number % 20 == 1:
                rating = {"request_id": reply.json()["id"], "rating": "up"}
                return f"rated {self._client.post('/v1/feedback', json=rating).status_code}"
            return f"whole {reply.status_code}"
        with self._client.stream("POST", "/v1/answers", json=body | {"stream": True}) as reply:
            for line in reply.iter_lines():
                if is_left and line == "event: delta":
                    return f"left {reply.status_code}"
                if line == "event: error":
                    return "streamed, error"
        return f"streamed {reply.status_code}"

    def scrape(self, admin_key: str) -> None:
        reply = self._client.get("/metrics", headers={"Authorization": f"Bearer {admin_key}"})
        self.ended[f"metrics {reply.status_code}"] += 1


def sample(server: psutil.Process, hours: float) -> dict[str, Sample]:
    """Return what each process of the server holds, by name; its short-lived helpers are left out."""
    found = {}
    for process in [server, *server.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            name = DRIVER if process == server else next((n for n, part in PROCESSES.items() if part in command), None)
            if name is not None:
                megabytes = process.memory_info().rss / 2**20
                found[name] = Sample(hours, megabytes, process.num_fds(), process.num_threads())
        except psutil.Error:
            continue
    return found


def report(samples: dict[str, list[Sample]]) -> None:
    """Print what each process held in the beginning and in the end, and what it gained an hour."""
    table = Table("process", "what", "first", "last", "most", "an hour")
    for name, all_of in samples.items():
        warm = all_of[int(len(all_of) * WARM_UP) :]
        for what in ("megabytes", "files", "threads"):
            held = [float(getattr(one, what)) for one in warm]
            slope = statistics.linear_regression([one.hours for one in warm], held).slope
            figures = (held[0], held[-1], max(held))
            table.add_row(name, what, *(f"{figure:.0f}" for figure in figures), f"{slope:+.1f}")
    Console(width=100).print(table)


def main(
    data: Annotated[
        Path, typer.Argument(help="A copy of a data folder with a champion.", exists=True, file_okay=False)
    ],
    minutes: Annotated[float, typer.Option(help="How long.")] = 60,
    every_s: Annotated[float, typer.Option(help="Seconds from one question to the next.")] = 4,
) -> None:
    """Ask a server for an hour, and print what its processes hold."""
    keys = [create_key(data, "soak", scopes=scopes, limits=UNLIMITED) for scopes in (("query", "feedback"), ("admin",))]
    port = free_port()
    environment = os.environ | {"EV_DATA_DIR": str(data.resolve())}
    command = [sys.executable, "-m", "ev_platform.cli", "serve", TASK, "--port", str(port)]
    server = subprocess.Popen(command, env=environment)
    try:
        ask_for(minutes, every_s, psutil.Process(server.pid), Asker(f"http://127.0.0.1:{port}", keys[0]), keys[1])
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"\nserver stopped with {server.wait(120)}")


def ask_for(minutes: float, every_s: float, server: psutil.Process, asker: Asker, admin_key: str) -> None:
    questions = cycle(row.question for row in read_rows(Task(TASK, EXAMPLES / TASK), "test"))
    wait_until_ready(asker)
    samples: dict[str, list[Sample]] = {}
    started = time.monotonic()
    next_sample = 0.0
    for number, question in zip(count(), questions):
        at_s = number * every_s
        time.sleep(max(0.0, started + at_s - time.monotonic()))
        now_s = time.monotonic() - started
        if now_s >= next_sample:
            next_sample = now_s + SAMPLE_S
            asker.scrape(admin_key)
            found = sample(server, now_s / 3600)
            for name, one in found.items():
                samples.setdefault(name, []).append(one)
            told = "  ".join(f"{n} {s.megabytes:.0f} MB {s.files} f {s.threads} t" for n, s in found.items())
            print(f"{now_s / 60:6.1f} min  {dict(asker.ended)}  {told}", flush=True)
        if now_s >= minutes * 60:
            break
        asker.ask(number, question)
    report(samples)
    latencies = asker.latencies_ms
    print(f"{len(latencies)} requests: {dict(asker.ended)}", end="; ")
    print(f"ms: median {statistics.median(latencies):.0f}, longest {max(latencies):.0f}", flush=True)


def wait_until_ready(asker: Asker) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if asker._client.get("/readyz").is_success:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("The server did not get ready within 180 s.")
        time.sleep(1)


if __name__ == "__main__":
    typer.run(main)
