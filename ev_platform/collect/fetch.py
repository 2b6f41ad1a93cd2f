"""Fetching one address politely: robots.txt, pauses, retries, redirects by hand, and the hosts that are out of bounds.

A failure is an answer with a `drop_reason`, never an exception. What does not belong here: which addresses to fetch
and what becomes of the answers (`crawl`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from protego import Protego

from ev_platform.collect.site import Mirrors
from ev_platform.collect.urls import normalise
from ev_platform.tasks import Sources

MAX_REDIRECTS = 10
ATTEMPTS = 3
BACKOFF_S = 0.25  # before the second attempt; doubles
MAX_RETRY_AFTER_S = 30.0
MAX_ROBOTS_BYTES = 512_000  # RFC 9309, section 2.5: at least 500 KiB must be read
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (429, 503)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    Attributes:
        url: The last address asked, in the site's own form.
        status: HTTP status, or None if no complete answer came.
        headers: By lower-case name.
        body: As far as it was read.
        drop_reason: Why the body is not usable, else None.
        drop_detail: The same words every time, so that a lasting failure is the same row every time.
    """

    url: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop_reason: str | None = None
    drop_detail: str | None = None


class Fetcher:
    """Fetches addresses of the allowed hosts.

    Args:
        sources: Limits and manners.
        allowed_hosts: `host` (any port) or `host:port`.
        sessions: Open scrapling sessions; requests are dealt out to them in turn.
        mirrors: Sites that are served from folders.
        user_agent: Sent with every request; robots.txt is read for it.
    """

    def __init__(
        self,
        sources: Sources,
        allowed_hosts: frozenset[str],
        sessions: Sequence[Any],
        mirrors: Mirrors,
        user_agent: str,
    ):
        self._sources = sources
        self._allowed = allowed_hosts
        self._sessions = sessions
        self._mirrors = mirrors
        self._user_agent = user_agent
        self._n_requests = 0
        self._slots = asyncio.Semaphore(sources.concurrency)
        self._robots: dict[str, asyncio.Task[Protego | Answer]] = {}
        self._addresses: dict[str, asyncio.Task[list[str]]] = {}
        self._delay_s: dict[str, float] = defaultdict(lambda: sources.delay_s)
        self._next_at: dict[str, float] = defaultdict(float)

    def is_allowed(self, url: str) -> bool:
        """Whether the address's host may be fetched from."""
        parts = urlsplit(url)
        return parts.hostname in self._allowed or parts.netloc in self._allowed

    async def fetch(self, url: str, conditions: Mapping[str, Mapping[str, str]] | None = None) -> Answer:
        """Fetch an address, following redirects within the allowed hosts.

        Args:
            url: In normal form.
            conditions: Headers for a conditional request, by the address (of the redirects' chain) that they are for.

        Returns:
            The answer; a status of 304 without a `drop_reason` says that the conditions' page has not changed.
        """
        for _ in range(MAX_REDIRECTS + 1):
            refusal = await self._refusal(url)
            if refusal is not None:
                return refusal
            headers = (conditions or {}).get(url, {})
            answer = await self._get(url, headers, self._sources.max_bytes)
            if answer.status == 304 and headers:
                return answer
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                return _judge(answer)
            target = self._redirect_target(answer)
            if target is None:
                return replace(
                    answer, body=b"", drop_reason="redirect_off_site", drop_detail=answer.headers["location"]
                )
            url = target
        return Answer(url, drop_reason="too_many_redirects", drop_detail=f"more than {MAX_REDIRECTS}")

    def _redirect_target(self, answer: Answer) -> str | None:
        # A mirror's server knows nothing of the address it stands for, so its Location counts from its own.
        sent = self._mirrors.served_url(answer.url) or answer.url
        target = normalise(answer.headers["location"], sent)
        target = target and self._mirrors.own_url(target)
        return target if target and self.is_allowed(target) else None

    async def _refusal(self, url: str) -> Answer | None:
        detail = None if self._mirrors.served_url(url) else await self._private_address(url)
        if detail is not None:
            return Answer(url, drop_reason="private_address", drop_detail=detail)
        if not self._sources.obey_robots:
            return None
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._robots:
            self._robots[origin] = asyncio.create_task(self._read_robots(origin))
        robots = await self._robots[origin]
        if isinstance(robots, Answer):
            return replace(robots, url=url)
        if not robots.can_fetch(url, self._user_agent):
            return Answer(url, drop_reason="robots_disallowed")
        return None

    async def _read_robots(self, origin: str) -> Protego | Answer:
        """Read a site's robots.txt as RFC 9309, section 2.3.1, says: none allows all, a failing one nothing."""
        answer = Answer(f"{origin}/robots.txt")
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(answer.url, {}, MAX_ROBOTS_BYTES)
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                break
            target = self._redirect_target(answer)
            if target is None or (not self._mirrors.served_url(target) and await self._private_address(target)):
                break
            answer = Answer(target)
        if answer.drop_reason in ("timeout", "unreachable"):
            return replace(answer, drop_detail=f"robots.txt: {answer.drop_detail}")
        if answer.status is not None and (answer.status >= 500 or answer.status == 429):
            return Answer(answer.url, answer.status, drop_reason=f"http_{answer.status}", drop_detail="robots.txt")
        robots = Protego.parse(answer.body.decode("utf-8-sig", "replace") if answer.status == 200 else "")
        host = urlsplit(origin).netloc
        self._delay_s[host] = max(self._sources.delay_s, robots.crawl_delay(self._user_agent) or 0.0)
        return robots

    async def _private_address(self, url: str) -> str | None:
        """Return why the host's address is out of bounds, or None where it is not.

        A name that leads into the private network would let a public site point the crawler at machines behind the
        firewall; whoever wants those spells them as an address (or localhost), or lists the address as well.
        """
        host = urlsplit(url).hostname or ""
        if host == "localhost" or host.endswith(".localhost") or _as_ip(host) is not None:
            return None
        if host not in self._addresses:
            self._addresses[host] = asyncio.create_task(_resolve(host))
        for address in await self._addresses[host]:
            ip = _as_ip(address)
            if ip is not None and not ip.is_global and address not in self._allowed:
                return f"{host} resolves to {address}"
        return None

    async def _get(self, url: str, headers: Mapping[str, str], max_bytes: int) -> Answer:
        attempt = 0
        while True:
            await self._wait_for_turn(urlsplit(url).netloc)
            async with self._slots:
                answer = await self._request(url, headers, max_bytes)
            attempt += 1
            is_passing = answer.status in _RETRIED or answer.drop_reason == "unreachable"
            if attempt == ATTEMPTS or not is_passing:
                return answer
            await asyncio.sleep(_retry_after_s(answer.headers.get("retry-after"), BACKOFF_S * 2 ** (attempt - 1)))

    async def _wait_for_turn(self, host: str) -> None:
        clock = asyncio.get_running_loop().time()
        start = max(clock, self._next_at[host])
        self._next_at[host] = start + self._delay_s[host]
        await asyncio.sleep(start - clock)

    async def _request(self, url: str, headers: Mapping[str, str], max_bytes: int) -> Answer:
        from curl_cffi.const import CurlECode
        from curl_cffi.curl import CURL_WRITEFUNC_ERROR, CurlError
        from curl_cffi.requests.exceptions import Timeout

        served = self._mirrors.served_url(url)
        body = bytearray()

        def receive(data: bytes) -> int:
            # Counted after decompression, so that a small body that unpacks to a huge one is stopped as well.
            body.extend(data)
            return len(data) if len(body) <= max_bytes else CURL_WRITEFUNC_ERROR

        options: dict[str, Any] = {
            "headers": {"User-Agent": self._user_agent, "Accept": "text/html, application/pdf, */*;q=0.1", **headers},
            "follow_redirects": False,
            "timeout": self._sources.timeout_s,
            "retries": 1,
            "content_callback": receive,
            "discard_cookies": True,
            # scrapling would parse with the charset that the server names, which may be none that exists.
            "selector_config": {"encoding": "utf-8"},
        }
        if served:
            options["proxies"] = {"all": ""}  # a proxy of the environment cannot reach our loopback
        session = self._sessions[self._n_requests % len(self._sessions)]
        self._n_requests += 1
        try:
            response = await session.get(served or url, **options)
        except CurlError as error:
            if len(body) > max_bytes:
                partial = getattr(error, "response", None)
                detail = f"more than {max_bytes} bytes"
                return Answer(url, getattr(partial, "status_code", None), {}, bytes(body), "too_large", detail)
            if isinstance(error, Timeout):
                detail = f"no complete answer within {self._sources.timeout_s:g} s"
                return Answer(url, drop_reason="timeout", drop_detail=detail)
            return Answer(url, drop_reason="unreachable", drop_detail=CurlECode(error.code).name)
        return Answer(url, response.status, {k.lower(): v for k, v in response.headers.items()}, bytes(body))


def _judge(answer: Answer) -> Answer:
    if answer.drop_reason:
        return answer
    if answer.status is None or not 200 <= answer.status < 300:
        return replace(answer, body=b"", drop_reason=f"http_{answer.status}")
    return answer if answer.body else replace(answer, drop_reason="empty_body")


def _as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


async def _resolve(host: str) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []  # the request itself will tell; behind a proxy, names often resolve only there
    return sorted({str(entry[4][0]) for entry in found})


def _retry_after_s(header: str | None, default_s: float) -> float:
    """Return the pause that `Retry-After` asks for (seconds or a date, RFC 9110 section 10.2.3), at most 30 s."""
    if header is None:
        return default_s
    try:
        pause_s = float(header)
    except ValueError:
        try:
            pause_s = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return default_s
    return min(max(pause_s, 0.0), MAX_RETRY_AFTER_S)
