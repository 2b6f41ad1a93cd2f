"""One address of a crawl: asked for, told from what is known of it, stored, and read for its links.

What does not belong here: how it is fetched (`fetch`) and which address comes when (`crawl`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from w3lib.encoding import http_content_type_encoding

from ev_platform.collect.bodies import HTML, PDF, as_gone, blank_row, keep_first_seen, sniff
from ev_platform.collect.fetch import Fetcher
from ev_platform.collect.frontier import Address
from ev_platform.collect.journal import Journal
from ev_platform.collect.links import PageLinks, read_links, read_robots_header
from ev_platform.collect.refused import TAKEN_DOWN, canonical_key
from ev_platform.collect.urls import address_key, extension
from ev_platform.records import RawBody
from ev_platform.storage import Store, now
from ev_platform.tasks.sources import Sources

_LONG_BYTES = 500_000  # some 5 ms of work; more would keep the requests waiting
_log = logging.getLogger(__name__)


class Visitor:
    """Turns addresses into rows.

    Args:
        sources: Licence and publisher of the rows, robots and fetcher.
        store: Takes the bodies.
        known: The last table's rows by `address_key`.
        fetcher: Fetches.
        journal: Has what this crawl did before it was cut off, and takes what it does now.
        pool: Threads for large bodies, so that requests go on meanwhile.
        user_agent: Robots rules inside pages are read for its product token.
        refused: Keys of addresses that were taken down.
    """

    def __init__(
        self,
        sources: Sources,
        store: Store,
        known: dict[str, RawBody],
        fetcher: Fetcher,
        journal: Journal,
        pool: Executor,
        user_agent: str,
        refused: frozenset[str] = frozenset(),
    ):
        self._sources = sources
        self._store = store
        self._known = known
        self._fetcher = fetcher
        self._journal = journal
        self._pool = pool
        self._refused = refused
        self._agent = user_agent.partition("/")[0].strip().lower()

    async def visit(self, address: Address) -> tuple[RawBody, list[str]]:
        """Return the row of an address and the links to follow from it."""
        done = self._journal.get(address.url)
        if done is not None and self._is_whole(done) and not self._is_refused(done):
            row = replace(done, depth=address.depth, referrer=address.referrer)
            return row, (await self._read_stored(row)).links
        row, page = await self._ask(address)
        if not _is_passing(row.drop_reason) and not (address.is_seed and row.drop_reason):
            self._journal.add(row)  # what fails for now may succeed in the next attempt, and so may a seed
        return row, page.links

    async def _ask(self, address: Address) -> tuple[RawBody, PageLinks]:
        before = self._known.get(address_key(address.url))
        stored = before is not None and before.path is not None and (self._store.root / before.path).exists()
        # What scripts make of a page may change while the page itself does not.
        is_rendered = self._sources.fetcher == "browser"
        is_conditional = before is not None and stored and not (is_rendered and before.kind == "web")
        conditions = _conditions(before) if before is not None and is_conditional else None
        answer = await self._fetcher.fetch(address.url, conditions)
        asked = replace(
            blank_row(address.url, "pdf" if extension(address.url) == ".pdf" else "web", self._sources),
            depth=address.depth,
            referrer=address.referrer,
            final_url=answer.url,
            status=answer.status,
            robots=answer.robots,
            etag=answer.headers.get("etag"),
            last_modified=answer.headers.get("last-modified"),
            charset=http_content_type_encoding(answer.headers.get("content-type")),
            robots_header=answer.headers.get("x-robots-tag"),
            drop_reason=answer.drop_reason,
            drop_detail=answer.drop_detail,
        )
        if before is not None and stored:
            if answer.status == 304 and not answer.drop_reason:
                return await self._judged(_unchanged(before, asked))
            if not address.is_seed and _is_passing(answer.drop_reason):
                detail = f" ({answer.drop_detail})" if answer.drop_detail else ""
                _log.warning("%s: %s%s; the page fetched before is kept", address.url, answer.drop_reason, detail)
                kept = _as_of(before, asked, robots=before.robots)
                if before.drop_reason == "gone":
                    return kept, PageLinks([])
                return await self._judged(kept)
        if before is not None and before.path and not address.is_seed and answer.status in (404, 410):
            return as_gone(_as_of(before, asked), answer.status), PageLinks([])
        if asked.drop_reason:
            return keep_first_seen(asked, before), PageLinks([])
        media_type = sniff(answer.body)
        if media_type not in (HTML, PDF):
            refused = {"drop_reason": "unsupported_type", "drop_detail": media_type}
            row = replace(asked, content_type=media_type, n_bytes=len(answer.body), **refused)
            return keep_first_seen(row, before), PageLinks([])
        body = answer.body
        if media_type == HTML and self._refused and canonical_key(body, answer.url) in self._refused:
            refused = {"drop_reason": TAKEN_DOWN, "drop_detail": "it names an address that was taken down as its own"}
            return keep_first_seen(replace(asked, content_type=media_type, **refused), before), PageLinks([])
        if media_type == HTML and is_rendered:
            body = await self._fetcher.render(answer)
            asked = replace(asked, etag=None, last_modified=None)
        sha, path = await self._work(body, self._store_body, body)
        kind = "web" if media_type == HTML else "pdf"
        row = replace(asked, kind=kind, content_type=media_type, content_sha256=sha, path=path, n_bytes=len(body))
        row, page = await self._judged(row, body)
        return keep_first_seen(row, before), page

    async def _judged(self, row: RawBody, body: bytes | None = None) -> tuple[RawBody, PageLinks]:
        """Apply the robots rules that came with a page, or that its stored body holds."""
        page = await (self._read_stored(row) if body is None else self._work(body, self._read, row, body))
        if page.noindex:
            row = replace(row, drop_reason="noindex", drop_detail=page.noindex)
        if row.robots_header and (page.noindex or page.nofollow):
            # Only the header may have said so, and a 304 need not repeat it: the page is asked for whole next time.
            row = replace(row, etag=None, last_modified=None)
        return row, page

    async def _read_stored(self, row: RawBody) -> PageLinks:
        if row.path is None or row.drop_reason == "gone":
            return PageLinks([])
        body = (self._store.root / row.path).read_bytes()
        return await self._work(body, self._read, row, body)

    def _read(self, row: RawBody, body: bytes) -> PageLinks:
        obey = self._sources.obey_robots
        page = PageLinks([])
        if row.kind == "web":
            try:
                page = read_links(body, row.final_url, charset=row.charset, agent=self._agent, obey=obey)
            except Exception as error:  # one bad page never stops a crawl
                _log.warning("%s: its links cannot be read: %s: %s", row.url, type(error).__name__, error)
        noindex, nofollow = read_robots_header(row.robots_header if obey else None, agent=self._agent)
        return PageLinks(
            [] if nofollow or page.nofollow else page.links, noindex or page.noindex, nofollow or page.nofollow
        )

    def _store_body(self, body: bytes) -> tuple[str, str]:
        return self._store.put_blob(body, sync=False)

    async def _work(self, body: bytes, function: Callable, *args: Any) -> Any:
        # A thread would gain nothing for a page of usual size: two threads of Python take turns, at a price.
        if len(body) < _LONG_BYTES:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _is_refused(self, row: RawBody) -> bool:
        return not self._refused.isdisjoint((address_key(row.url), address_key(row.final_url)))

    def _is_whole(self, row: RawBody) -> bool:
        if row.path is None or row.drop_reason == "gone":
            return True
        file = self._store.root / row.path
        return file.exists() and file.stat().st_size == row.n_bytes


def _is_passing(drop_reason: str | None) -> bool:
    """Whether a failure says something of this hour and not of the page (RFC 9110, section 15.6; RFC 6585: 429)."""
    reason = drop_reason or ""
    return reason in ("timeout", "unreachable", "http_429") or reason.startswith("http_5")


def _as_of(before: RawBody, asked: RawBody, **changes: Any) -> RawBody:
    """Return the row of the last time as seen from this crawl."""
    seen = {"url": asked.url, "licence": asked.licence, "publisher": asked.publisher, "robots": asked.robots}
    place = {"depth": asked.depth, "referrer": asked.referrer, "checked_at": now()}
    return replace(before, **(seen | place | changes))


def _unchanged(before: RawBody, asked: RawBody) -> RawBody:
    status = 200 if before.drop_reason == "gone" else before.status
    # What a 304 does not repeat stays as it was (RFC 9111, section 4.3.4).
    kept = {name: getattr(asked, name) or getattr(before, name) for name in ("etag", "last_modified", "robots_header")}
    return _as_of(before, asked, status=status, drop_reason=None, drop_detail=None, **kept)


def _conditions(before: RawBody) -> dict[str, dict[str, str]]:
    """Return the headers that ask for a page only if it changed, for the address that its bytes came from."""
    headers = {"If-None-Match": before.etag, "If-Modified-Since": before.last_modified}
    present = {name: value for name, value in headers.items() if value}
    return {before.final_url: present} if present else {}
