"""What each key has used, and whether it may use more; and how often an address has shown a key that is none.

All of it is in the memory of the one process that asks: the gateway has one replica, so that nothing is shared and
nothing is written. After a restart the window of a minute begins anew; the tokens of the day are counted from the
request log, which is why they survive.

Minutes are measured by the monotonic clock, which no change of the time of day moves. Days are those of UTC; where the
clock is set to another day, forwards or backwards, counting begins anew, so that nobody stays locked out by a mistake.

What does not belong here: how much a key may use (`keys`), HTTP (`gate`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from pyrate_limiter import Decision, Duration, InMemoryBucket, Rate, RateItem

from ev_platform.serving.keys import KeyInfo
from ev_platform.serving.schemas import ApiError
from ev_platform.storage import now

# As many requests as a key may make by default: without one there should not be more.
MAX_FAILED_PER_MINUTE = 60
MAX_ADDRESSES = 4096


@dataclass(frozen=True, slots=True)
class Left:
    """What a key has left after a request was admitted; None where there is no limit.

    Attributes:
        requests: In the minute that now ends.
        tokens: Of this day.
    """

    requests: int | None
    tokens: int | None


class Window:
    """So many events in any 60 seconds.

    Args:
        limit: Events; it may be changed.
        clock_ms: Milliseconds that never go back.
    """

    def __init__(self, limit: int, clock_ms: Callable[[], int]):
        self._clock_ms = clock_ms
        self._bucket = InMemoryBucket([Rate(limit, Duration.MINUTE)])

    def take(self, limit: int) -> int | None:
        """Take one if there is one left under this limit, else return the whole seconds until there is."""
        if self._bucket.rates[0].limit != limit:
            self._bucket.rates = [Rate(limit, Duration.MINUTE)]
        at = self._clock_ms()
        self._bucket.leak(at)
        decision = cast(Decision, self._bucket.put_decision(RateItem("", at)))  # awaitable of other buckets only
        return None if decision.allowed else max(1, math.ceil((decision.retry_after_ms or 0) / 1000))

    @property
    def n_taken(self) -> int:
        """Events of the 60 seconds that ended when one was last asked for."""
        return self._bucket.count()


@dataclass(slots=True)
class _Use:
    n_running: int = 0
    n_tokens_today: int = 0
    window: Window | None = None


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Limits:
    """Counts what keys use; only of keys that were verified, so that there is an entry for each key at most.

    Args:
        used_today: Tokens that each key id has used since midnight UTC.
        clock: Time of day, UTC.
        clock_ms: Milliseconds that never go back.
    """

    def __init__(
        self,
        used_today: Mapping[str, int],
        clock: Callable[[], datetime] = now,
        clock_ms: Callable[[], int] = _monotonic_ms,
    ):
        self._clock, self._clock_ms = clock, clock_ms
        self._day = clock().date()
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)
        for key_id, n_tokens in used_today.items():
            self._uses[key_id].n_tokens_today = n_tokens

    @contextlib.contextmanager
    def admit(self, key: KeyInfo, *, spends_tokens: bool) -> Iterator[Left]:
        """Count a request for as long as the block runs; a refused one uses nothing up.

        The tokens of an answer are known when it ends: what was admitted below the quota may end above it, by as many
        answers as the key may have at once.

        Args:
            key: A verified key, as the file has it now.
            spends_tokens: Whether the request wants an answer of a model.

        Raises:
            ApiError: 429, with the seconds until it is worth asking again. For a place among the requests at once
                nobody knows them: 1.
        """
        limits, use = key.limits, self._use(key.key_id)
        if spends_tokens and limits.tokens_per_day is not None and use.n_tokens_today >= limits.tokens_per_day:
            raise ApiError(
                429,
                f"This key has used its {limits.tokens_per_day} tokens of today: go on after midnight UTC, or ask for "
                "a higher limit.",
                "quota_exceeded",
                retry_after_s=self._until_midnight_s(),
            )
        if limits.concurrent_requests is not None and use.n_running >= limits.concurrent_requests:
            raise ApiError(
                429,
                f"This key has {use.n_running} requests under way and may have {limits.concurrent_requests}: wait for "
                "one to end.",
                "concurrency_limit",
                retry_after_s=1,
            )
        self._take(limits.requests_per_minute, use)
        use.n_running += 1
        try:
            yield Left(
                requests=_left(limits.requests_per_minute, use.window.n_taken if use.window else 0),
                tokens=_left(limits.tokens_per_day, use.n_tokens_today),
            )
        finally:
            use.n_running -= 1

    def charge(self, key_id: str, n_tokens: int) -> None:
        """Count the tokens of an answer, of its prompt and of itself, to this day."""
        self._use(key_id).n_tokens_today += n_tokens

    def _use(self, key_id: str) -> _Use:
        today = self._clock().date()
        if today != self._day:
            self._day = today
            for use in self._uses.values():
                use.n_tokens_today = 0
        return self._uses[key_id]

    def _take(self, limit: int | None, use: _Use) -> None:
        if limit is None:
            use.window = None
            return
        use.window = use.window or Window(limit, self._clock_ms)
        wait_s = use.window.take(limit)
        if wait_s is not None:
            raise ApiError(
                429,
                f"This key may make {limit} requests a minute: the next one in {wait_s} s.",
                "rate_limit_exceeded",
                retry_after_s=wait_s,
            )

    def _until_midnight_s(self) -> int:
        at = self._clock()
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return math.ceil((midnight - at).total_seconds())


class FailedAttempts:
    """Counts requests without a valid key by the address that they come from.

    Secrets cannot be guessed, so this is no defence of theirs: it tells a client that goes on and on to stop. A request
    with a valid key is never refused for what others did from its address, since behind a reverse proxy all have one.

    The addresses of one IPv6 network of 64 bits count as one: they belong to one customer. The memory is bounded: of
    more than `MAX_ADDRESSES` addresses, those that failed longest ago are forgotten.

    Args:
        clock_ms: Milliseconds that never go back.
    """

    def __init__(self, clock_ms: Callable[[], int] = _monotonic_ms):
        self._clock_ms = clock_ms
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def note(self, address: str) -> int | None:
        """Count one; return the whole seconds to wait where it is one too many, else None."""
        network = _network(address)
        window = self._windows.pop(network, None) or Window(MAX_FAILED_PER_MINUTE, self._clock_ms)
        self._windows[network] = window
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        return window.take(MAX_FAILED_PER_MINUTE)


def _left(limit: int | None, n_used: int) -> int | None:
    return None if limit is None else max(0, limit - n_used)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return address
