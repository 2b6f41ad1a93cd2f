"""Asking many calls: each paid once, never more than the cap, a few at a time, and every reply on the disk at once.

What happens to one call is in `sending`, to a batch in `batches`, what it may cost in `budget` and `prices`, and what
was paid in `ledger`. What does not belong here: what is asked and what its reply means (`language_model`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sized
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers.batches import Batches, Item, Pauses
from ev_platform.teachers.budget import Budget
from ev_platform.teachers.calls import Call, Client
from ev_platform.teachers.ledger import Ledger
from ev_platform.teachers.sending import Answered, Sender

__all__ = ["Answered", "Budget", "Ledger", "Pauses", "ask"]

# Calls held at a time, as multiples of those under way: replies are handed out in order, so behind a slow call the
# others wait here.
WINDOW = 8
BATCHES_UNDER_WAY = 4
# A Ctrl-C that arrives in the instant before a wait begins is only heard when it ends.
LONGEST_WAIT_S = 1.0


def ask(
    calls: Iterable[Call],
    client: Client,
    ledger: Ledger,
    config: TeacherConfig,
    *,
    teacher: str,
    price: Price,
    spent: Budget,
    description: str = "ask",
    total: int | None = None,
    pauses: Pauses | None = None,
) -> Iterator[Answered[Any]]:
    """Ask calls and yield how each ended, in their order, with a progress bar.

    A stored reply is not asked again, whatever it was, except one that says that the provider failed. A call that an
    earlier run left under way is not sent again unless `config.resend_interrupted`; batches are taken up where they
    were left, and what they cost does not count towards this run's cap. Where the iterator is closed early, or the run
    is interrupted, nothing more is sent, and what is under way is waited for and stored.

    Args:
        calls: May be a generator of millions; a few times `config.concurrency` (or four batches) are held at a time.
        client: Reaches the provider.
        ledger: Where replies are looked up and kept.
        config: Limits.
        teacher: Who is asked, for the ledger.
        price: What tokens cost.
        spent: The cap of the run, shared by all that it asks.
        description: Of the progress bar.
        total: Number of calls, for the bar; that of `calls` where None.
        pauses: How long batches are waited for.

    Raises:
        UserError: For what is wrong with all calls, such as the key or the model's name.
    """
    sender = Sender(client, ledger, config, teacher=teacher, price=price, budget=spent)
    run = _Run(sender, Batches(sender, pauses or Pauses()))
    if total is None and isinstance(calls, Sized):
        total = len(calls)
    # disable=None: no bar where there is no terminal.
    bar = tqdm(total=total, desc=description, unit="call", disable=None)
    try:
        for answered in run.answers(iter(calls)):
            bar.set_postfix_str(f"${spent.spent_usd:.2f} of ${spent.cap_usd:.2f}", refresh=False)
            bar.update()
            yield answered
    finally:
        bar.close()
        run.stop()


class _Run:
    """The thread with the event loop of one `ask`, and the calls it holds."""

    def __init__(self, sender: Sender, batches: Batches):
        self._sender = sender
        self._batches = batches
        self._is_batching = sender.client.has_batches and sender.config.use_batches
        self._window = (
            BATCHES_UNDER_WAY * sender.config.batch_size if self._is_batching else WINDOW * sender.config.concurrency
        )
        self._held: deque[Item] = deque()
        self._by_id: dict[str, Item] = {}  # those of the held that have to be asked
        self._chunk: list[Item] = []  # of the held, those that wait for their batch to fill up
        # A loop of its own in a thread of its own, since the caller's thread may run one already.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ask", daemon=True)
        self._thread.start()

    def answers(self, calls: Iterator[Call]) -> Iterator[Answered[Any]]:
        is_exhausted = False
        while True:
            while not is_exhausted and len(self._held) < self._window:
                call = next(calls, None)
                if call is None:
                    is_exhausted = True
                    self._send_chunk()
                else:
                    self._take(call)
            if not self._held:
                return
            call, answer = self._held.popleft()
            if self._chunk and self._chunk[0].answer is answer:  # would wait for itself
                self._send_chunk()
            while not answer.done():
                wait([answer], timeout=LONGEST_WAIT_S)
            yield answer.result()
            if (item := self._by_id.get(call.call_id)) is not None and item.answer is answer:
                del self._by_id[call.call_id]

    def _take(self, call: Call) -> None:
        if (twin := self._by_id.get(call.call_id)) is not None:  # an equal call is being asked already
            item = Item(call, Future())
            self._held.append(item)
            twin.answer.add_done_callback(lambda done: _repeat(done, item))
            return
        item = Item(call, Future())
        self._held.append(item)
        entry = self._sender.ledger.get(call.call_id)
        answered = self._sender.recall(call, entry)
        if answered is not None:
            item.give(answered)
            return
        self._by_id[call.call_id] = item
        if entry is not None and entry.batch is not None and self._sender.is_in_batch(entry):
            self._start(self._batches.resume(entry.batch, item), [item])
        elif self._is_batching:
            self._chunk.append(item)
            if len(self._chunk) >= self._sender.config.batch_size:
                self._send_chunk()
        else:
            self._start(self._ask_one(item), [item])

    async def _ask_one(self, item: Item) -> None:
        item.give(await self._sender.answer(item.call))

    def _send_chunk(self) -> None:
        if self._chunk:
            chunk, self._chunk = self._chunk, []
            self._start(self._batches.ask(chunk), chunk)

    def _start(self, work: Coroutine[Any, Any, None], items: list[Item]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # whatever it is, the caller's thread raises it
                for item in items:
                    item.fail(error)

        asyncio.run_coroutine_threadsafe(guarded(), self._loop)

    def stop(self) -> None:
        """Send nothing more, wait for what has left and store it, and end the thread."""
        self._sender.is_stopping = True
        try:
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _wind_down(self) -> None:
        mine = asyncio.current_task()
        tasks = {task for task in asyncio.all_tasks() if task is not mine}
        leaving = tasks & self._sender.under_way
        for task in tasks - leaving:
            task.cancel()
        if leaving:
            _, late = await asyncio.wait(leaving, timeout=self._sender.config.timeout_s)
            for task in late:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.client.aclose()
        await self._loop.shutdown_default_executor()


def _repeat(done: Future[Answered[Any]], item: Item) -> None:
    error = done.exception()
    if error is None:
        item.give(replace(done.result(), is_stored=True))
    elif isinstance(error, Exception):
        item.fail(error)
