"""`raw_pages`: a breadth-first crawl from the seeds.

Pages are fetched many at a time, but what they link to is taken in the order in which the pages were asked for, so that
the same sites give the same rows whatever came back first, and a crawl that was cut off walks the same way again. What
does not belong here: how one address is fetched (`fetch`) and judged (`visit`), and which comes first (`frontier`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from tqdm import tqdm

from ev_platform.collect.bodies import rows_by_url
from ev_platform.collect.fetch import Fetcher
from ev_platform.collect.frontier import Address, Frontier
from ev_platform.collect.journal import Journal, journal_path
from ev_platform.collect.refused import refused_addresses
from ev_platform.collect.site import Mirrors, serve_mirrors
from ev_platform.collect.sitemap import read_sitemaps
from ev_platform.collect.urls import address_key, normalise
from ev_platform.collect.visit import Visitor
from ev_platform.errors import UserError
from ev_platform.identity import code_version, fingerprint, frame_fingerprint
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task

_log = logging.getLogger(__name__)
_THREADS = 2  # for large bodies
_WINDOW = 256  # pages that may be ahead of the slowest; the links of each are held until its turn comes
_SEED_MUST_ANSWER = (
    "unreachable",
    "timeout",
    "private_address",
    "redirect_off_site",
    "broken_answer",
    "crawl_delay_too_long",
)


def collect_pages(task: Task, store: Store, *, previous: pl.DataFrame, user_agent: str) -> pl.DataFrame:
    """Crawl the task's seeds over HTTP and store what comes back.

    Links are followed breadth first, sitemaps come after the seeds' links, and pages of the last time that nothing
    leads to any longer come after all others. A crawl that was killed goes on where it was if it is called again with
    the same arguments within 24 hours.

    Args:
        task: Its sources say where to start and what bounds to keep.
        store: Takes the bodies, and the journal of a crawl under way.
        previous: The last `raw_pages`. Its pages are asked for conditionally (RFC 9110, section 13); what did not
            change is not transferred and keeps its `fetched_at`. A page that cannot be had for now (no answer in
            time, no connection, HTTP status 429 or 5xx) stays as it was last fetched, with a warning.
        user_agent: Names the crawler to the servers; robots.txt, and robots rules in pages, are read for it.

    Returns:
        `raw_pages`, one row an address, sorted by url, HTML pages (`web`) and linked PDFs (`pdf`). A page that could
        not be had is a row with its `drop_reason`; one that was there the last time and now answers 404 or 410 is
        `gone` and names its last bytes; one that asks not to be indexed is `noindex`; one that was taken down, or
        leads to such a one, is `taken_down` and is not fetched. Links that leave the allowed hosts are not followed or
        recorded.

    Raises:
        UserError: If a seed cannot be reached or answers with an error, or the sources contradict themselves.
    """
    if not task.sources.seeds:
        return to_frame("raw_pages", [])
    agent_and_rows = [user_agent, frame_fingerprint("raw_pages", previous)]
    key = fingerprint([task.sources.model_dump(mode="json"), *agent_and_rows, code_version(*_code())])
    journal = Journal(journal_path(store.root, task.name), key)
    store.bring(previous["path"].drop_nulls())  # a page that did not change is not sent again
    with serve_mirrors(task) as mirrors, journal:
        rows = asyncio.run(_crawl(task, store, list(rows_by_url(previous).values()), user_agent, mirrors, journal))
        store.sync_blobs()
    return to_frame("raw_pages", sorted(rows, key=lambda row: row.url))


def _code() -> list[ModuleType]:
    from ev_platform import collect, records

    return [collect, records]


async def _crawl(
    task: Task, store: Store, previous: list[RawBody], user_agent: str, mirrors: Mirrors, journal: Journal
) -> list[RawBody]:
    sources = task.sources
    seeds, allowed = _seeds_and_hosts(task)
    async with AsyncExitStack() as stack:
        refused = refused_addresses(store, task.name)
        fetcher = Fetcher(sources, allowed, mirrors, user_agent, refused)
        stack.push_async_callback(fetcher.close)
        pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
        bar = stack.enter_context(tqdm(desc=f"collect {task.name}", unit=" pages", disable=None))
        known = {address_key(row.url): row for row in previous}
        visitor = Visitor(sources, store, known, fetcher, journal, pool, user_agent, refused)
        gates: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(2 * sources.per_host_concurrency))
        # As many again as are fetched may be waiting for a thread: this bounds the bodies that are held in memory.
        all_gates = asyncio.Semaphore(2 * sources.concurrency)

        async def visit(address: Address) -> tuple[RawBody, list[str]]:
            async with gates[urlsplit(address.url).netloc], all_gates:
                row, links = await visitor.visit(address)
            bar.update()
            return row, links

        frontier = Frontier(sources.max_pages, fetcher.is_allowed)
        for url in seeds:
            frontier.add(Address(url, 0, is_seed=True))
        n_seeds = min(len(seeds), sources.max_pages)
        rows: list[RawBody] = []
        async with aclosing(_in_order(frontier.next, visit, sources.max_pages)) as visits:
            async for row, links in visits:
                rows.append(row)
                if len(rows) <= n_seeds:
                    _check_seed(row)
                if row.depth == sources.max_depth:
                    continue
                frontier.add_links(links, row.depth + 1, row.url)
                if len(rows) == n_seeds and sources.sitemaps:
                    for link, sitemap in await read_sitemaps(fetcher, seeds, sources.max_pages):
                        frontier.add(Address(link, 1, sitemap))
        frontier.log_summary(task.name)
        asked = {address_key(row.url) for row in rows}
        unlinked = [row for row in previous if row.path and address_key(row.url) not in asked]
        unlinked = [row for row in unlinked if fetcher.is_allowed(row.url) and row.depth <= sources.max_depth]
        carried = [row for row in unlinked if row.drop_reason == "gone"]
        waiting = deque(Address(row.url, row.depth, row.referrer) for row in unlinked if row.drop_reason != "gone")
        next_unlinked = lambda *, is_idle: waiting.popleft() if waiting else None  # noqa: E731
        async with aclosing(_in_order(next_unlinked, visit, sources.max_pages - len(rows))) as visits:
            rows += [row async for row, _ in visits]
        if waiting:
            _log.warning(
                "%s: max_pages is %d; %d known pages are kept unasked", task.name, sources.max_pages, len(waiting)
            )
            unasked = {address.url for address in waiting}
            carried += [row for row in unlinked if row.url in unasked]
    return rows + carried


async def _in_order(
    next_address: Callable[..., Address | None],
    visit: Callable[[Address], Coroutine[Any, Any, tuple[RawBody, list[str]]]],
    max_visits: int,
) -> AsyncGenerator[tuple[RawBody, list[str]]]:
    """Yield what came of each address, in the order in which `next_address` gave them, many being under way."""
    running: deque[asyncio.Task[tuple[RawBody, list[str]]]] = deque()
    n_visits = 0
    try:
        while True:
            while n_visits < max_visits and len(running) < _WINDOW:
                address = next_address(is_idle=not running)
                if address is None:
                    break
                running.append(asyncio.create_task(visit(address)))
                n_visits += 1
            if not running:
                return
            result = await running[0]
            running.popleft()
            yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _seeds_and_hosts(task: Task) -> tuple[list[str], frozenset[str]]:
    seeds = [url for seed in task.sources.seeds if (url := normalise(str(seed)))]
    hosts = [host.lower() for host in task.sources.allowed_hosts] or [urlsplit(url).netloc for url in seeds]
    for url in seeds:
        parts = urlsplit(url)
        if parts.netloc not in hosts and parts.hostname not in hosts:
            raise UserError(
                f"{task.folder / 'sources.yaml'}: the seed {url} is not on an allowed host: add {parts.netloc} to "
                f"allowed_hosts."
            )
    return list({address_key(url): url for url in reversed(seeds)}.values())[::-1], frozenset(hosts)


def _check_seed(row: RawBody) -> None:
    reason = row.drop_reason or ""
    if reason.startswith("http_"):
        where = f" ({row.drop_detail})" if row.drop_detail else ""
        raise UserError(f"The seed {row.url} answers HTTP status {row.status}{where}: correct it in sources.yaml.")
    if reason in _SEED_MUST_ANSWER:
        raise UserError(
            f"The seed {row.url} cannot be fetched ({reason}: {row.drop_detail}): check the address in "
            f"sources.yaml, the network and allowed_hosts."
        )
