"""The cap of one run: what was spent, and what is set aside for calls under way.

What does not belong here: what a call costs (`prices`).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

# Less than any call costs.
NOTHING_USD = 1e-12


class Budget:
    """A cap in dollars, shared by all that one run asks; safe between threads and between event loops.

    Money is set aside before a call leaves, as much as it can cost at most, and given back when it is known what it
    did cost. So what is spent never exceeds the cap.
    """

    def __init__(self, cap_usd: float):
        self.cap_usd = cap_usd
        self.spent_usd = 0.0
        self.reserved_usd = 0.0
        self._lock = threading.Lock()
        self._waiting: list[Future[None]] = []

    async def reserve(self, *costs: float) -> int:
        """Set aside as many of these costs as fit, in their order; wait while only what is under way stands in the way.

        Returns:
            How many were set aside; 0 if the first does not fit into what is left of the cap.
        """
        while True:
            with self._lock:
                n = 0
                while n < len(costs) and self.spent_usd + self.reserved_usd + costs[n] <= self.cap_usd:
                    self.reserved_usd += costs[n]
                    n += 1
                if n or self.spent_usd + costs[0] > self.cap_usd:
                    return n
                freed: Future[None] = Future()
                self._waiting.append(freed)
            await asyncio.wrap_future(freed)

    def settle(self, reserved_usd: float, spent_usd: float) -> None:
        """Give back what was set aside, and count what was spent of it."""
        with self._lock:
            self.reserved_usd -= reserved_usd
            if self.reserved_usd < NOTHING_USD:  # what rounding leaves would be waited for, and never be given back
                self.reserved_usd = 0.0
            self.spent_usd += spent_usd
            waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if freed.set_running_or_notify_cancel():
                freed.set_result(None)
