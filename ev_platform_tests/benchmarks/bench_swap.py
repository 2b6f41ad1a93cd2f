"""How long a promotion takes to reach a running server of the bundled 135M model, and what it costs meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import httpx
import psutil

from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.serving.live import load_from_registry, open_release
from ev_platform.serving.replay import served
from ev_platform.serving.worker import LocalBackend
from ev_platform.storage import Store
from ev_platform_tests.serving.versions import TASK, point, register, write_task

N_SWAPS = 8
N_BEFORE = 12  # requests between two swaps, and after the last: time enough for the old weights to go


def test_swap_speed(base: Path, tmp_path: Path) -> None:
    store, tasks_dir = Store(tmp_path / "data"), write_task(tmp_path / "tasks")
    for number in (1, 2):
        register(store, tmp_path, number, base)  # the same weights twice: what is compared is the time, not the answer
    point(store.root, TASK, champion="tiny@1")
    key, config = create_key(store.root, "bench", limits=UNLIMITED), ServingConfig()
    live = asyncio.run(open_release(load_from_registry, store.root, tasks_dir, TASK, config))
    backend = LocalBackend({TASK: live})
    body = {"messages": [{"role": "user", "content": "Which plug is usual for AC charging in Europe?"}]}
    before, during, seconds, megabytes = [], [], [], []
    with (
        served(create_api(backend, store.root, config), backend) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):

        def ask() -> tuple[float, str]:
            started = time.perf_counter()
            reply = client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            return (time.perf_counter() - started) * 1000, reply.json()["model"]

        for _ in range(5):
            ask()
        for swap in range(N_SWAPS + 1):
            before += [ask()[0] for _ in range(N_BEFORE)]
            megabytes.append(psutil.Process().memory_info().rss / 2**20)
            if swap == N_SWAPS:
                break
            version = f"tiny@{2 - swap % 2}"
            point(store.root, TASK, champion=version)
            moved = time.perf_counter()
            while (answer := ask())[1] != version:
                during.append(answer[0])
            seconds.append(time.perf_counter() - moved)
    p95 = statistics.quantiles(before, n=20)[-1], statistics.quantiles(during, n=20)[-1]
    print(f"\n{N_SWAPS} swaps, one client, {len(before) + len(during) + N_SWAPS} requests, 0 failed")
    print(f"alias moved to first answer of the new version, s: median {statistics.median(seconds):.2f}", end=", ")
    print(f"longest {max(seconds):.2f}")
    print(f"{'latency, ms':<12} {'median':>8} {'p95':>8} {'longest':>8}")
    for name, values, high in (("before", before, p95[0]), ("during", during, p95[1])):
        print(f"{name:<12} {statistics.median(values):8.0f} {high:8.0f} {max(values):8.0f}")
    ratio = statistics.median(during) / statistics.median(before)
    print(f"{'ratio':<12} {ratio:8.2f} {p95[1] / p95[0]:8.2f} {max(during) / max(before):8.2f}")
    print(f"memory before and after each swap, MB: {', '.join(f'{value:.0f}' for value in megabytes)}")
