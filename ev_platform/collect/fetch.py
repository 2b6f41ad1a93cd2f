"""Fetching one address politely: robots.txt, pauses, retries, redirects by hand, and the hosts that are out of bounds.

A failure is an answer with a `drop_reason`, never an exception. What does not belong here: which addresses to fetch
and what becomes of the answers (`crawl`), which network addresses are private (`addresses`), what robots.txt says
(`robots`), and how fast a host is asked (`pace`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ev_platform.collect.addresses import Addresses
from ev_platform.collect.browser import Renderer
from ev_platform.collect.pace import Host
from ev_platform.collect.refused import TAKEN_DOWN
from ev_platform.collect.robots import MAX_ROBOTS_BYTES, Robots
from ev_platform.collect.site import Mirrors
from ev_platform.collect.transfer import Answer, Client
from ev_platform.collect.urls import address_key, normalise
from ev_platform.tasks.sources import Sources

MAX_REDIRECTS = 10
ATTEMPTS = 3
MAX_CRAWL_DELAY_S = 60.0
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (429, 500, 502, 503, 504)
_MAX_DETAIL_CHARS = 500
_ACCEPT = "text/html, application/pdf, */*;q=0.1"


class Fetcher:
    """Fetches addresses of the allowed hosts; made and closed within one event loop.

    Args:
        sources: Limits and manners.
        allowed_hosts: `host` (any port) or `host:port`.
        mirrors: Sites that are served from folders.
        user_agent: Sent with every request; robots.txt is read for it.
        refused: Keys of addresses that were taken down: they are not asked for, nor followed to.
    """

    def __init__(
        self,
        sources: Sources,
        allowed_hosts: frozenset[str],
        mirrors: Mirrors,
        user_agent: str,
        refused: frozenset[str] = frozenset(),
    ):
        self._sources = sources
        self._refused = refused
        self._allowed = allowed_hosts
        self._mirrors = mirrors
        self._user_agent = user_agent
        self._proxies = getproxies()
        self._slots = asyncio.Semaphore(sources.concurrency)
        self._hosts: dict[str, Host] = {}
        self._robots: dict[str, asyncio.Task[Robots | Answer]] = {}
        self._addresses = Addresses(allowed_hosts)
        self._renderer = Renderer(
            self.fetch, max_bytes=sources.max_bytes, timeout_s=sources.timeout_s, user_agent=user_agent
        )
        self._client = Client(
            {"User-Agent": user_agent, "Accept": _ACCEPT}, timeout_s=sources.timeout_s, pins=self._addresses.pins
        )

    def is_allowed(self, url: str) -> bool:
        """Whether the address is one of http or https on a host that may be fetched from."""
        parts = urlsplit(url)
        return parts.scheme in _PORTS and (parts.netloc in self._allowed or parts.hostname in self._allowed)

    async def fetch(
        self,
        url: str,
        conditions: Mapping[str, Mapping[str, str]] | None = None,
        *,
        max_bytes: int | None = None,
    ) -> Answer:
        """Fetch an address, following redirects within the allowed hosts.

        Args:
            url: In normal form.
            conditions: Headers for a conditional request, by the address (of the redirects' chain) that they are for.
            max_bytes: Upper bound of the body, unpacked; by default that of the sources.

        Returns:
            The answer; a status of 304 without a `drop_reason` says that the conditions' page has not changed. Reasons
            are those of `Client.request` and `host_not_allowed`, `taken_down`, `private_address`, `robots_disallowed`,
            `crawl_delay_too_long`, `redirect_off_site`, `too_many_redirects`, `empty_body` and `http_<status>`; where
            robots.txt could not be had, its own reason.
        """
        for _ in range(MAX_REDIRECTS + 1):
            admitted = await self._admit(url)
            if admitted.drop_reason:
                return admitted
            headers = (conditions or {}).get(url, {})
            answer = await self._get(url, headers, max_bytes or self._sources.max_bytes, admitted.robots)
            if answer.status == 304 and headers:
                return answer
            if answer.status not in _REDIRECTS or not answer.headers.get("location"):
                return _judge(answer)
            target = self._redirect_target(answer)
            if target is None:
                detail = answer.headers["location"][:_MAX_DETAIL_CHARS]
                return replace(answer, body=b"", drop_reason="redirect_off_site", drop_detail=detail)
            url = target
        return replace(admitted, url=url, drop_reason="too_many_redirects", drop_detail=f"more than {MAX_REDIRECTS}")

    async def sitemaps(self, origin: str) -> list[str]:
        """Return the sitemaps that the robots.txt of an origin names, those on allowed hosts, in its order."""
        robots = await self._robots_of(origin)
        return [] if isinstance(robots, Answer) else [url for url in robots.sitemaps if self.is_allowed(url)]

    async def render(self, answer: Answer) -> bytes:
        """Return a page's HTML as its scripts leave it; for sources with `fetcher: browser`.

        Args:
            answer: A whole HTML page.

        Raises:
            UserError: If there is no Chromium.
        """
        return await self._renderer.render(answer)

    async def close(self) -> None:
        """End the browser, if one was started, and close all connections."""
        try:
            await self._renderer.close()
        finally:
            await self._client.close()

    def _redirect_target(self, answer: Answer) -> str | None:
        # A mirror's server knows nothing of the address it stands for, so its Location counts from its own.
        sent = self._mirrors.served_url(answer.url) or answer.url
        target = normalise(answer.headers["location"], sent)
        target = target and self._mirrors.own_url(target)
        return target if target and self.is_allowed(target) else None

    async def _admit(self, url: str) -> Answer:
        """Return an answer that carries the robots decision and, where the address may not be asked, the reason."""
        if not self.is_allowed(url):
            return Answer(url, drop_reason="host_not_allowed")
        if address_key(url) in self._refused:
            return Answer(url, drop_reason=TAKEN_DOWN)
        refusal = await self._out_of_bounds(url)
        if refusal is not None:
            return refusal
        if not self._sources.obey_robots:
            return Answer(url, robots="ignored")
        parts = urlsplit(url)
        robots = await self._robots_of(f"{parts.scheme}://{parts.netloc}")
        if isinstance(robots, Answer):
            return replace(robots, url=url)
        decision = robots.decision(url)
        if decision == "disallowed":
            return Answer(url, drop_reason="robots_disallowed", robots=decision)
        if robots.crawl_delay_s > MAX_CRAWL_DELAY_S:
            detail = f"robots.txt asks for {robots.crawl_delay_s:g} s between requests, more than {MAX_CRAWL_DELAY_S:g}"
            return Answer(url, drop_reason="crawl_delay_too_long", drop_detail=detail, robots=decision)
        return Answer(url, robots=decision)

    async def _robots_of(self, origin: str) -> Robots | Answer:
        if origin not in self._robots:
            self._robots[origin] = asyncio.create_task(self._read_robots(origin))
        return await self._robots[origin]

    async def _read_robots(self, origin: str) -> Robots | Answer:
        """Read a site's robots.txt as RFC 9309, section 2.3.1, says: none allows all, a failing one nothing."""
        url: str | None = f"{origin}/robots.txt"
        answer = Answer(origin)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(url, {}, MAX_ROBOTS_BYTES)
            is_redirect = answer.status in _REDIRECTS and answer.headers.get("location")
            url = self._redirect_target(answer) if is_redirect else None
            if url is None:
                break
        if answer.status is None or (answer.drop_reason and not answer.body):
            return replace(answer, drop_detail=f"robots.txt: {answer.drop_detail}", robots="unreadable")
        if answer.status >= 500 or answer.status == 429:
            reason = f"http_{answer.status}"
            return Answer(answer.url, answer.status, drop_reason=reason, drop_detail="robots.txt", robots="unreadable")
        robots = Robots(answer.body if answer.status == 200 else None, origin, self._user_agent)
        if self._sources.obey_robots:
            host = self._host(origin)
            host.delay_s = max(host.delay_s, min(robots.crawl_delay_s, MAX_CRAWL_DELAY_S))
        return robots

    def _host(self, url: str) -> Host:
        netloc = urlsplit(url).netloc
        if netloc not in self._hosts:
            self._hosts[netloc] = Host(self._sources.per_host_concurrency, self._sources.delay_s)
        return self._hosts[netloc]

    def _proxy(self, url: str) -> str:
        # Decided here and not by curl, so that the check of addresses knows who looks the name up.
        if not self._proxies or self._mirrors.served_url(url) or proxy_bypass(urlsplit(url).netloc):
            return ""
        return self._proxies.get(urlsplit(url).scheme) or self._proxies.get("all", "")

    async def _out_of_bounds(self, url: str) -> Answer | None:
        if self._mirrors.served_url(url):
            return None
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        refusal = await self._addresses.refusal(parts.hostname or "", port, is_proxied=bool(self._proxy(url)))
        return Answer(url, drop_reason=refusal[0], drop_detail=refusal[1]) if refusal else None

    async def _get(
        self, url: str, headers: Mapping[str, str], max_bytes: int, robots: str = "not_applicable"
    ) -> Answer:
        refusal = await self._out_of_bounds(url)
        if refusal is not None:
            return refusal
        host = self._host(url)
        n_attempts = 0
        while True:
            async with host as closed:
                if closed is not None:
                    return Answer(url, drop_reason="unreachable", drop_detail=closed, robots=robots)
                async with self._slots:
                    answer = await self._request(url, headers, max_bytes, robots)
            n_attempts += 1
            failure = answer.drop_reason if answer.drop_reason in ("unreachable", "timeout") else None
            if answer.status in _RETRIED:
                failure = f"http_{answer.status}"
            # A timeout is not tried again: it has had its time.
            is_final = failure is None or failure == "timeout" or n_attempts == ATTEMPTS
            if is_final or not await host.wait_to_retry(n_attempts, answer.headers):
                host.record(failure)
                return answer

    async def _request(self, url: str, headers: Mapping[str, str], max_bytes: int, robots: str) -> Answer:
        return await self._client.request(
            url,
            sent_to=self._mirrors.served_url(url) or url,
            headers=headers,
            proxy=self._proxy(url),
            max_bytes=max_bytes,
            robots=robots,
        )


def _judge(answer: Answer) -> Answer:
    if answer.drop_reason:
        return replace(answer, body=b"")
    if answer.status is None or not 200 <= answer.status < 300:
        return replace(answer, body=b"", drop_reason=f"http_{answer.status}")
    return answer if answer.body else replace(answer, drop_reason="empty_body")
