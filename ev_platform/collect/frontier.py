"""The addresses that wait to be asked for, so put in order that an endless part of a site cannot crowd out the rest.

Breadth first: in the order in which they were met. Of addresses that differ only in digits and in the values of their
query (`/calendar?month=2031-04`, `/page/17`), the first 100 take their place in that order; the others wait until
nothing else is left, and come then by the hundred. So a calendar without end costs the crawl a hundred requests
before the site's other pages are all there, while a site that numbers its pages loses none of them.

What does not belong here: fetching (`fetch`) and the crawl itself (`crawl`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ev_platform.collect.urls import address_key

PER_PATTERN = 100
MAX_SEGMENTS = 40  # of a path; twice what Heritrix allows by default
_COUNTED = 100_000  # addresses left out that are remembered, so that each counts once
_REPEATED = re.compile(r"/((?:[^/]+/)+?)\1\1")  # Heritrix too refuses the third repetition in a row
_DIGITS = re.compile(r"\d+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """One address to ask for, with its place in the crawl."""

    url: str
    depth: int
    referrer: str | None = None
    is_seed: bool = False


class Frontier:
    """Hands out addresses, each once.

    Args:
        max_pages: More than these are never asked for, so no more are held.
        is_allowed: Whether an address's host may be fetched from.
    """

    def __init__(self, max_pages: int, is_allowed: Callable[[str], bool]):
        self._max_pages = max_pages
        self._is_allowed = is_allowed
        self._waiting: deque[Address] = deque()
        self._last: deque[Address] = deque()
        self._seen: set[str] = set()
        self._left_out: set[str] = set()
        self._patterns: Counter[str] = Counter()
        self._n_loops = 0

    def add(self, address: Address) -> None:
        """Take an address in, unless it is known, not allowed, or has the form of a loop."""
        key = address_key(address.url)
        if key in self._seen or not self._is_allowed(address.url):
            return
        if not address.is_seed and _is_loop(address.url):
            self._n_loops += 1
            return
        pattern = _pattern(key)
        queue = self._waiting if self._patterns[pattern] < PER_PATTERN or address.is_seed else self._last
        if len(queue) >= self._max_pages:
            if len(self._left_out) < _COUNTED:
                self._left_out.add(key)
            return
        self._left_out.discard(key)
        self._seen.add(key)
        self._patterns[pattern] += 1
        if self._patterns[pattern] == PER_PATTERN + 1:
            _log.info("%d addresses like %s: more of them wait until all others are done", PER_PATTERN, address.url)
        queue.append(address)

    def add_links(self, urls: Iterable[str], depth: int, referrer: str) -> None:
        """Take the links of a page in."""
        for url in urls:
            # Most are in there, and most as they are written: this is the crawl's innermost loop.
            if url not in self._seen and address_key(url) not in self._seen:
                self.add(Address(url, depth, referrer))

    def next(self, *, is_idle: bool) -> Address | None:
        """Return the next address, or None where there is none (yet).

        Args:
            is_idle: Whether nothing is on its way that may still bring addresses; only then come the put off ones.
        """
        if is_idle and not self._waiting:
            for _ in range(min(PER_PATTERN, len(self._last))):
                self._waiting.append(self._last.popleft())
        return self._waiting.popleft() if self._waiting else None

    def log_summary(self, task_name: str) -> None:
        """Say which addresses were many, refused, or left out (at most 100,000 are counted)."""
        for pattern, n in self._patterns.most_common(5):
            if n > PER_PATTERN:
                _log.info("%s: %d addresses like %s", task_name, n, pattern)
        if self._n_loops:
            _log.info("%s: %d links not followed, because their paths repeat themselves", task_name, self._n_loops)
        n_left = len(self._waiting) + len(self._last) + len(self._left_out)
        if n_left:
            _log.warning("%s: max_pages is %d; %d more are left out", task_name, self._max_pages, n_left)


def _is_loop(url: str) -> bool:
    path = urlsplit(url).path
    n_segments = path.count("/")
    return n_segments > MAX_SEGMENTS or (n_segments >= 3 and _REPEATED.search(path + "/") is not None)


def _pattern(key: str) -> str:
    parts = urlsplit(key)
    names = sorted({pair.partition("=")[0] for pair in parts.query.split("&") if pair})
    return f"{parts.netloc}{_DIGITS.sub('0', parts.path)}?{'&'.join(_DIGITS.sub('0', name) for name in names)}"
