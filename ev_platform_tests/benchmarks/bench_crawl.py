"""Pages per second of a whole crawl against the bare fetcher in a loop, same site, same concurrency; peak memory.

The crawl is measured twice, with its data on the disk of pytest's temporary folder and in memory (`/dev/shm`): on ext4
a new file costs 15 µs, but up to 500 µs for some five minutes after many files near it were deleted (it looks at every
inode freed of late and passes it over), as test runs do. The bare loop stores nothing.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ev_platform.collect import collect_pages
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.sources import Sources

N_PAGES = 2_000
CONCURRENCY = 16
ROUNDS = 4
AGENT = "ev-platform-bench/1.0"
WORDS = (
    "charge",
    "cable",
    "station",
    "power",
    "current",
    "plug",
    "grid",
    "tariff",
    "meter",
    "phase",
    "vehicle",
    "driver",
)


def _address(index: int) -> str:
    return "/" if index == 0 else f"/{WORDS[index % len(WORDS)]}/{WORDS[index // 7 % len(WORDS)]}-{index}.html"


def _page(index: int) -> bytes:
    """Return about 20 kB: a menu of 40 links that all pages share, 30 links of its own, prose, no script."""
    draw = random.Random(index)
    menu = "".join(
        f'<li class="nav-item"><a class="nav-link" href="{_address(n)}">{WORDS[n % 12]}</a></li>' for n in range(40)
    )
    parts = []
    for number in range(30):
        text = " ".join(draw.choices(WORDS, k=70))
        target = index * 30 + number + 1 if index * 30 + number + 1 < N_PAGES else draw.randrange(N_PAGES)
        parts.append(f'<h2>{text[:40]}</h2><p>{text} <a href="{_address(target)}?utm_source=in">{text[:20]}</a>.</p>')
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page {index}</title></head><body>'
        f"<nav><ul>{menu}</ul></nav><main>{''.join(parts)}</main></body></html>"
    ).encode()


def _serve(pipe: Connection) -> None:
    pages = {_address(index).encode(): _page(index) for index in range(N_PAGES)}
    heads = b"HTTP/1.1 %d OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            for request in data.split(b"\r\n\r\n")[:-1]:
                body = pages.get(request.split(b" ", 2)[1])
                self.transport.write(heads % (200 if body else 404, len(body or b"")) + (body or b""))  # type: ignore

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
        pipe.send((server.sockets[0].getsockname()[1], sum(map(len, pages.values())) // N_PAGES))
        await server.serve_forever()

    asyncio.run(main())


@pytest.fixture
def site() -> Iterator[tuple[str, int]]:
    """Yield the root of a site of 2,000 pages in another process, and their mean size in bytes."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    port, n_bytes = ours.recv()
    yield f"http://127.0.0.1:{port}", n_bytes
    server.terminate()
    server.join()


def _bare(root: str) -> float:
    """Fetch all pages with scrapling's sessions and nothing else; return pages per second."""
    from scrapling.fetchers import FetcherSession

    logging.getLogger("scrapling").setLevel(logging.CRITICAL)  # a line a request would slow it down

    async def fetch_all() -> None:
        waiting = iter([root + _address(index) for index in range(N_PAGES)])
        async with (
            FetcherSession(impersonate=None, stealthy_headers=False) as one,
            FetcherSession(impersonate=None, stealthy_headers=False) as other,  # a session takes ten requests at a time
        ):

            async def work(session: Any) -> None:
                for url in waiting:
                    answer = await session.get(url, headers={"User-Agent": AGENT})
                    assert answer.status == 200

            await asyncio.gather(*(work((one, other)[number % 2]) for number in range(CONCURRENCY)))

    started = time.perf_counter()
    asyncio.run(fetch_all())
    return N_PAGES / (time.perf_counter() - started)


def _crawl(root: str, folder: Path) -> float:
    folder.mkdir()
    task = Task("bench", folder)
    task.__dict__["sources"] = Sources.model_validate(
        {
            "seeds": [root],
            "max_depth": 10,
            "max_pages": N_PAGES,
            "concurrency": CONCURRENCY,
            "per_host_concurrency": CONCURRENCY,
        }
    )
    started = time.perf_counter()
    frame = collect_pages(task, Store(folder / "data"), previous=to_frame("raw_pages", []), user_agent=AGENT)
    rate = N_PAGES / (time.perf_counter() - started)
    assert frame.height == N_PAGES
    assert frame["drop_reason"].null_count() == N_PAGES
    return rate


def test_crawl_speed(site: tuple[str, int], tmp_path: Path) -> None:
    root, n_bytes = site
    _bare(root)  # imports and warm caches count for neither
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bare, on_disk, in_memory = [], [], []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for number in range(ROUNDS):
            bare.append(_bare(root))
            on_disk.append(_crawl(root, tmp_path / str(number)))
            bare.append(_bare(root))
            in_memory.append(_crawl(root, Path(memory) / str(number)))
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\n{N_PAGES} pages of {n_bytes / 1000:.0f} kB, {CONCURRENCY} at a time      pages/s   ratio")
    rows = (
        ("scrapling's session in a loop", bare),
        ("collect_pages, data on the disk", on_disk),
        ("collect_pages, data in memory", in_memory),
    )
    for name, rates in rows:
        rate = statistics.median(rates)
        print(
            f"{name:<40} {rate:13.0f} {rate / statistics.median(bare):7.2f}   ({', '.join(f'{r:.0f}' for r in rates)})"
        )
    print(f"{'peak memory, MB':<40} {peak_kb / 1000:13.0f}           ({before_kb / 1000:.0f} before the first crawl)")
