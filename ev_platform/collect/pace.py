"""How fast one host is asked: how many requests at once, how far apart, and when to leave it alone.

What does not belong here: the requests themselves (`fetch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

BACKOFF_S = 0.25  # before the second attempt; doubles
MAX_RETRY_AFTER_S = 30.0  # a longer wish is a no
MAX_WAITED_S = 300.0  # spent on one host's Retry-After in all
NO_RETRY_AFTER = 3  # failed addresses in a row: from then on each is asked once
CLOSE_AFTER = 10  # failed addresses in a row: from then on none is asked for a while
CLOSED_S = 60.0


class Host:
    """The pace of one host and the failures it has had in a row.

    Every request is made within `async with host as closed`, and not at all if `closed` says why.

    Args:
        concurrency: Simultaneous requests.
        delay_s: Between the starts of two requests.
    """

    def __init__(self, concurrency: int, delay_s: float):
        self.delay_s = delay_s
        self._slots = asyncio.Semaphore(concurrency)
        self._next_at = 0.0
        self._waited_s = 0.0
        self._n_failed = 0
        self._last_failure = ""
        self._closed_until = 0.0

    async def __aenter__(self) -> str | None:
        """Wait for the next turn; give why the host is not to be asked now, else None."""
        await self._slots.acquire()
        try:
            # Looked at again after each pause: a Retry-After or a last failure may have come in meanwhile.
            while (closed := self._closed_because()) is None and (pause_s := self._next_at - monotonic()) > 0:
                await asyncio.sleep(pause_s)
        except BaseException:
            self._slots.release()
            raise
        if closed is None:
            self._next_at = monotonic() + self.delay_s
        return closed

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()

    def _closed_because(self) -> str | None:
        if self._n_failed < CLOSE_AFTER or monotonic() >= self._closed_until:
            return None
        return f"not asked: {CLOSE_AFTER} addresses of the host in a row failed, the last with {self._last_failure}"

    def record(self, failure: str | None) -> None:
        """Note how an address ended: a failure that says something of the host, or None."""
        if failure is None:
            self._n_failed = 0
            return
        self._n_failed += 1
        if failure == "http_500":  # says that a page is broken, not that the host is
            self._n_failed = min(self._n_failed, CLOSE_AFTER - 1)
        self._last_failure = failure
        self._closed_until = monotonic() + CLOSED_S

    async def wait_to_retry(self, n_attempts: int, headers: Mapping[str, str]) -> bool:
        """Wait as the host asks, else with growing pauses; return whether asking again is in order.

        A `Retry-After` holds up every request to the host. One beyond `MAX_RETRY_AFTER_S`, or beyond what is left of
        `MAX_WAITED_S`, is not waited for.
        """
        if self._n_failed >= NO_RETRY_AFTER:
            return False
        asked_s = retry_after_s(headers.get("retry-after"))
        if asked_s is None:
            await asyncio.sleep(BACKOFF_S * 2 ** (n_attempts - 1))
            return True
        if asked_s > MAX_RETRY_AFTER_S or self._waited_s + asked_s > MAX_WAITED_S:
            return False
        self._waited_s += asked_s
        self._next_at = max(self._next_at, monotonic() + asked_s)
        return True


def retry_after_s(header: str | None) -> float | None:
    """Return the pause that `Retry-After` asks for (seconds or a date, RFC 9110 section 10.2.3), else None."""
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
