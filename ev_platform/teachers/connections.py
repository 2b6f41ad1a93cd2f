"""What clients over HTTP share: which attempts may have been counted, connections of each event loop, error texts.

What does not belong here: what one provider's requests and replies look like (`anthropic_client`, `openai_client`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import httpx2

from ev_platform.teachers.calls import Batch, Call, Reply

C = TypeVar("C")

# Failures before a request leaves; after any other the provider may have worked on it and counted it.
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
# Answers of something between us and the model, which may go on with its work: request timeout, bad gateway, gateway
# timeouts.
MAY_BE_COUNTED = (408, 502, 504, 524)


class BrokenOffError(Exception):
    """An attempt ended without an answer and may have been counted."""


def break_off(error: BaseException, timeout_s: float) -> str | None:
    """Return in words how an attempt ended without an answer; None where its request never left."""
    if isinstance(error, NEVER_SENT):
        return None
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer within {timeout_s:g} s"
    return f"the connection broke off before the answer ({type(error).__name__})"


def one_line(text: object, key: str) -> str:
    """Return what a server said in one line of at most 300 characters, without the key should it repeat it."""
    words = " ".join(str(text).split())
    return (words.replace(key, "***") if key else words)[:300]


class PerLoop(Generic[C]):
    """One asynchronous client for each event loop, since connections cannot leave theirs.

    Args:
        make: Makes a client; it has `close`.
    """

    def __init__(self, make: Callable[[], C]):
        self._make = make
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, C] = WeakKeyDictionary()

    def get(self) -> C:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = self._make()
        return self._clients[loop]

    async def aclose(self) -> None:
        """Close the running loop's client; the next `get` makes a new one."""
        client: Any = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


class WithoutBatches:
    """The part of a `Client` that has no batches."""

    has_batches = False

    def create_batch(self, calls: Sequence[Call]) -> Batch:
        """Raise NotImplementedError, as do the others: `has_batches` is False."""
        raise NotImplementedError

    def get_batch(self, batch_id: str) -> Batch:
        """Raise NotImplementedError."""
        raise NotImplementedError

    def list_batches(self, since: str) -> list[Batch]:
        """Raise NotImplementedError."""
        raise NotImplementedError

    def batch_results(self, batch_id: str) -> list[tuple[str, Reply]]:
        """Raise NotImplementedError."""
        raise NotImplementedError
