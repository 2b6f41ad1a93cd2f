"""`raw_pages`: a breadth-first crawl from the seeds, one level of links after the other.

Every page of a level is fetched at the same time, but the next level is put together in the order of the links, so
that the same sites give the same rows whatever came back first. What does not belong here: how one address is fetched
(`fetch`), and links themselves (`urls`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
from tqdm import tqdm
from w3lib.url import canonicalize_url

from ev_platform.collect.bodies import HTML, PDF, blank_row, keep_first_seen, rows_by_url, sniff
from ev_platform.collect.fetch import Fetcher
from ev_platform.collect.site import Mirrors, serve_mirrors
from ev_platform.collect.urls import extension, extract_links, normalise
from ev_platform.errors import UserError
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store, now
from ev_platform.tasks import Task

_log = logging.getLogger(__name__)
_CLIENTS_PER_SESSION = 10  # curl_cffi's default for a session, which scrapling leaves as it is
_SEED_MUST_ANSWER = ("unreachable", "timeout", "private_address", "redirect_off_site")


def collect_pages(task: Task, store: Store, *, previous: pl.DataFrame, user_agent: str) -> pl.DataFrame:
    """Crawl the task's seeds over HTTP and store what comes back.

    Args:
        task: Its sources say where to start and what bounds to keep.
        store: Takes the bodies.
        previous: The last `raw_pages`. Its pages are asked for conditionally (RFC 9110, section 13); what did not
            change is not transferred and keeps its `fetched_at`. A page that cannot be had for now (no answer in
            time, no connection, HTTP status 429 or 5xx) stays as it was last fetched, with a warning.
        user_agent: Names the crawler to the servers; robots.txt is read for it.

    Returns:
        `raw_pages`, one row an address, sorted by url, HTML pages (`web`) and linked PDFs (`pdf`). A page that could
        not be had is a row with its `drop_reason`. Links that leave the allowed hosts are not followed or recorded.

    Raises:
        UserError: If a seed cannot be reached or answers with an error, or the sources contradict themselves.
    """
    if not task.sources.seeds:
        return to_frame("raw_pages", [])
    with serve_mirrors(task) as mirrors:
        rows = asyncio.run(_crawl(task, store, rows_by_url(previous), user_agent, mirrors))
    return to_frame("raw_pages", sorted(rows, key=lambda row: row.url))


async def _crawl(
    task: Task, store: Store, known: dict[str, RawBody], user_agent: str, mirrors: Mirrors
) -> list[RawBody]:
    from scrapling.fetchers import FetcherSession

    logging.getLogger("scrapling").setLevel(logging.CRITICAL)  # it prints a line a request; our rows say the same
    sources = task.sources
    seeds, allowed = _seeds_and_hosts(task)
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(FetcherSession(impersonate=None, stealthy_headers=False))
            for _ in range(-(-sources.concurrency // _CLIENTS_PER_SESSION))
        ]
        fetcher = Fetcher(sources, allowed, sessions, mirrors, user_agent)
        bar = stack.enter_context(tqdm(desc=f"collect {task.name}", unit=" pages", disable=None))
        visit = _visitor(task, store, known, fetcher, bar)
        rows: list[RawBody] = []
        level: list[tuple[str, str | None]] = [(url, None) for url in seeds]
        seen = {canonicalize_url(url) for url in seeds}
        for depth in range(sources.max_depth + 1):
            room = sources.max_pages - len(rows)
            if len(level) > room:
                left_out = len(level) - room
                _log.warning("%s: max_pages is %d; %d more are left out", task.name, sources.max_pages, left_out)
            visits = await asyncio.gather(*(visit(url, depth, referrer) for url, referrer in level[:room]))
            if depth == 0:
                _check_seeds([row for row, _ in visits])
            rows += [row for row, _ in visits]
            level = []
            for row, links in visits:
                for link in links:
                    if fetcher.is_allowed(link) and (key := canonicalize_url(link)) not in seen:
                        seen.add(key)
                        level.append((link, row.url))
    return rows


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
    return list(dict.fromkeys(seeds)), frozenset(hosts)


def _check_seeds(rows: list[RawBody]) -> None:
    for row in rows:
        reason = row.drop_reason or ""
        if reason.startswith("http_"):
            where = f" ({row.drop_detail})" if row.drop_detail else ""
            raise UserError(f"The seed {row.url} answers HTTP status {row.status}{where}: correct it in sources.yaml.")
        if reason in _SEED_MUST_ANSWER:
            raise UserError(
                f"The seed {row.url} cannot be fetched ({reason}: {row.drop_detail}): check the address in "
                f"sources.yaml, the network and allowed_hosts."
            )


def _visitor(task: Task, store: Store, known: dict[str, RawBody], fetcher: Fetcher, bar: tqdm) -> Callable:
    async def visit(url: str, depth: int, referrer: str | None) -> tuple[RawBody, list[str]]:
        kind = "pdf" if extension(url) == ".pdf" else "web"
        row = blank_row(url, kind, task.sources, depth=depth, referrer=referrer)
        before = known.get(url)
        conditions = _conditions(before, store)
        answer = await fetcher.fetch(url, conditions)
        bar.update()
        etag, last_modified = answer.headers.get("etag"), answer.headers.get("last-modified")
        if before is not None and (stored := _stored_body(before, store)) is not None:
            if answer.status == 304 and not answer.drop_reason:
                before = replace(before, etag=etag or before.etag, last_modified=last_modified or before.last_modified)
                return _kept(before, row, stored)
            if depth > 0 and _is_passing(answer.drop_reason):  # a seed must answer
                detail = f" ({answer.drop_detail})" if answer.drop_detail else ""
                _log.warning("%s: %s%s; the page fetched before is kept", url, answer.drop_reason, detail)
                return _kept(before, row, stored)
        row = replace(
            row,
            final_url=answer.url,
            status=answer.status,
            n_bytes=0 if answer.drop_reason else len(answer.body),
            etag=etag,
            last_modified=last_modified,
            drop_reason=answer.drop_reason,
            drop_detail=answer.drop_detail,
        )
        links = []
        if not row.drop_reason:
            media_type = sniff(answer.body)
            row = replace(row, content_type=media_type)
            if media_type in (HTML, PDF):
                sha, path = store.put_blob(answer.body)
                row = replace(row, kind="pdf" if media_type == PDF else "web", content_sha256=sha, path=path)
                links = extract_links(answer.body, answer.url) if media_type == HTML else []
            else:
                row = replace(row, drop_reason="unsupported_type", drop_detail=media_type)
        return keep_first_seen(row, before), links

    return visit


def _is_passing(drop_reason: str | None) -> bool:
    """Whether a failure says something of this hour and not of the page (RFC 9110, section 15.6; RFC 6585: 429)."""
    reason = drop_reason or ""
    return reason in ("timeout", "unreachable", "http_429") or reason.startswith("http_5")


def _stored_body(before: RawBody, store: Store) -> Path | None:
    path = store.root / before.path if before.path else None
    return path if path is not None and path.exists() else None


def _kept(before: RawBody, asked: RawBody, stored: Path) -> tuple[RawBody, list[str]]:
    """Return the row of the last time as seen from this crawl, and the links of its stored body."""
    row = replace(
        before,
        checked_at=now(),
        licence=asked.licence,
        publisher=asked.publisher,
        depth=asked.depth,
        referrer=asked.referrer,
    )
    return row, extract_links(stored.read_bytes(), row.final_url) if row.kind == "web" else []


def _conditions(before: RawBody | None, store: Store) -> dict[str, dict[str, str]]:
    """Return the headers that ask for a page only if it changed, for the address that its bytes came from."""
    if before is None or _stored_body(before, store) is None:
        return {}
    headers = {"If-None-Match": before.etag, "If-Modified-Since": before.last_modified}
    present = {name: value for name, value in headers.items() if value}
    return {before.final_url: present} if present else {}
