"""Calls through a provider's batch interface, and batches that an earlier run left under way.

A batch is recorded before it is made, and its name at the provider after, so that at whatever moment a run is killed
the next one finds the batch again: by its name, else among the provider's batches by the calls in it. What does not
belong here: single calls (`sending`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from ev_platform.errors import UserError
from ev_platform.storage import now
from ev_platform.teachers.calls import Call, LostBatchError, Reply
from ev_platform.teachers.ledger import BatchEntry
from ev_platform.teachers.sending import Answered, Sender

T = TypeVar("T")

# So few calls are asked one by one: waiting for a batch would save next to nothing.
HANDFUL = 16
# The provider's clock may be behind ours, and what it lists may have been made before our record of the intent.
CLOCK_SLACK = timedelta(minutes=5)


class Item(NamedTuple):
    """A call and where its answer goes."""

    call: Call
    answer: Future[Answered[Any]]

    def give(self, answered: Answered[Any]) -> None:
        """Hand over the answer, unless an error ended the wait for it."""
        if not self.answer.done():
            self.answer.set_result(answered)

    def fail(self, error: Exception) -> None:
        """Hand over what went wrong instead of an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long batches are waited for.

    Attributes:
        first_s: Between the first two looks at a batch; grows by half each time.
        longest_s: Between two looks.
        appear_s: A batch that is not listed after it was looked for so long was never made.
    """

    first_s: float = 2.0
    longest_s: float = 60.0
    appear_s: float = 60.0


class Batches:
    """Asks calls in batches; its coroutines run in the sender's event loop."""

    def __init__(self, sender: Sender, pauses: Pauses):
        self._sender = sender
        self._client = sender.client
        self._ledger = sender.ledger
        self._budget = sender.budget
        self._pauses = pauses
        self._left: dict[str, list[Item]] = {}  # by the batch that an earlier run left under way

    # ---- new batches ----

    async def ask(self, items: Sequence[Item]) -> None:
        """Answer calls in batches, each as large as what is left of the cap allows; a handful one by one."""
        rest = deque((item, self._sender.most_cost_of(item.call, is_batch=True)) for item in items)
        while rest:
            if len(rest) <= HANDFUL:
                await self._ask_singly([item for item, _ in rest])
                return
            n = await self._budget.reserve(*(cost for _, cost in rest))
            if n == 0:
                item, cost = rest.popleft()
                item.give(self._sender.over_budget(item.call, cost))
                continue
            part = [rest.popleft() for _ in range(n)]
            chosen, reserved_usd = [item for item, _ in part], sum(cost for _, cost in part)
            if n <= HANDFUL:
                self._budget.settle(reserved_usd, 0)
                await self._ask_singly(chosen)
            else:
                await self._ask_in_one(chosen, reserved_usd)

    async def _ask_singly(self, items: Sequence[Item]) -> None:
        async def ask(item: Item) -> None:
            try:
                item.give(await self._sender.answer(item.call))
            except Exception as error:
                item.fail(error)

        # Not gather: where the run stops and this wait is given up, calls that have left must go on.
        await asyncio.wait([asyncio.ensure_future(ask(item)) for item in items])

    async def _ask_in_one(self, items: Sequence[Item], reserved_usd: float) -> None:
        spent_usd = reserved_usd  # until the results say otherwise; a batch that is left under way goes on costing
        try:
            batch = uuid4().hex
            config = self._sender.config
            with self._sender.leaving(), self._ledger.making(batch):
                claimed = self._ledger.claim(
                    [item.call for item in items], self._sender.teacher, batch=batch, resend=config.resend_interrupted
                )
                if not claimed:
                    spent_usd = 0.0
                try:
                    batch_id = await self._create(batch, claimed) if claimed else None
                except UserError as error:
                    self._ledger.forget_batch(batch, str(error))
                    spent_usd = 0.0
                    raise
            answers: dict[str, Answered[Any]] = {}
            if batch_id is not None:
                answers = await self._collect(batch, batch_id, claimed)
                spent_usd = self._cost_of(claimed, answers)
            elif claimed:
                spent_usd = 0.0
                detail = "the provider did not take the batch"
                self._ledger.forget_batch(batch, detail)
                answers = {call.call_id: Answered(call, "failed", detail=detail) for call in claimed}
        finally:
            self._budget.settle(reserved_usd, spent_usd)
        for call, answer in items:
            entry = self._ledger.get(call.call_id)
            answered = answers.get(call.call_id)
            if answered is None:
                answered = self._sender.recall(call, entry)
            elif entry is not None:  # with what earlier attempts cost
                answered = replace(answered, cost_usd=entry.cost_usd)
            Item(call, answer).give(answered or Answered(call, "interrupted", detail="another run asks it in a batch"))

    def _cost_of(self, calls: Sequence[Call], answers: dict[str, Answered[Any]]) -> float:
        """Return what a batch cost; another process may have stored its results."""
        if answers:
            return sum(answered.cost_usd for answered in answers.values())
        entries = [self._ledger.get(call.call_id) for call in calls]
        return sum(entry.cost_usd for entry in entries if entry is not None)

    async def _create(self, batch: str, calls: Sequence[Call]) -> str | None:
        """Return the provider's name of a new batch; None where it could not be made."""
        for _ in range(self._sender.config.max_retries + 1):
            try:
                made = await asyncio.to_thread(self._client.create_batch, calls)
            except ConnectionError:  # it broke off, and may be made all the same
                entry = self._ledger.batch(batch)
                batch_id = await self._find(entry, is_mine=True) if entry else None
            else:
                batch_id = made.batch_id
                self._ledger.set_batch_id(batch, batch_id)
            if batch_id is not None or self._sender.is_stopping:
                return batch_id
        return None

    # ---- waiting ----

    async def _collect(self, batch: str, batch_id: str, calls: Sequence[Call] = ()) -> dict[str, Answered[Any]]:
        """Wait for a batch and store its results; return the answers to those calls that are given."""
        entry = self._ledger.batch(batch)
        results = dict(await self._results(batch_id))
        if entry is None:  # another process has stored it
            return {}
        known = {call.call_id: call for call in calls}
        settled, answers = [], {}
        for call_id in sorted(entry.call_ids):
            reply = results.get(call_id) or Reply("failed", detail="the batch's results lack it")
            if call_id in known:
                one, answers[call_id] = self._sender.settle(known[call_id], reply, is_batch=True)
            else:
                one = self._sender.settle_unseen(call_id, reply)
            settled.append(one)
        self._ledger.store(settled, batch=batch)
        return answers

    async def _results(self, batch_id: str) -> list[tuple[str, Reply]]:
        pause_s = self._pauses.first_s
        while not (await self._patiently(self._client.get_batch, batch_id)).is_ended:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, self._pauses.longest_s)
        return await self._patiently(self._client.batch_results, batch_id)

    async def _patiently(self, look: Callable[[str], T], argument: str) -> T:
        """Ask the provider about batches, repeating what breaks off: it costs nothing."""
        pause_s = self._pauses.first_s
        for _ in range(self._sender.config.max_retries):
            try:
                return await asyncio.to_thread(look, argument)
            except ConnectionError:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._pauses.longest_s)
        try:
            return await asyncio.to_thread(look, argument)
        except ConnectionError as error:
            raise UserError(
                f"{self._client.provider} cannot be reached while a batch is under way ({error}): run again later, the "
                "batch goes on and is collected then."
            ) from error

    # ---- batches of earlier runs ----

    async def resume(self, batch: str, item: Item) -> None:
        """Answer a call from the batch that an earlier run left under way, once all of it is there."""
        if batch in self._left:
            self._left[batch].append(item)
            return
        self._left[batch], unanswered = [item], []
        try:
            await self._finish(batch)
            for item in self._left.pop(batch):
                answered = self._sender.recall(item.call, self._ledger.get(item.call.call_id))
                if answered is None:
                    unanswered.append(item)
                else:
                    item.give(answered)
            await self.ask(unanswered)
        except Exception as error:
            for item in [*self._left.pop(batch, []), *unanswered]:
                item.fail(error)
            raise

    async def _finish(self, batch: str) -> None:
        entry = self._ledger.batch(batch)
        if entry is None:  # collected since the call was looked up
            return
        try:
            batch_id = entry.batch_id or await self._find(entry)
            if batch_id is not None:
                await self._collect(batch, batch_id)
                return
        except LostBatchError:
            if not self._sender.config.resend_interrupted:
                raise
        self._ledger.forget_batch(batch, "its batch was never made, or is lost")

    async def _find(self, entry: BatchEntry, *, is_mine: bool = False) -> str | None:
        """Look for a batch whose name at the provider was never recorded; None if it was never made."""
        started = now()
        since = (entry.intended_at - CLOCK_SLACK).isoformat()
        others = self._ledger.batch_ids()
        while True:
            known = self._ledger.batch(entry.batch)
            if known is None or known.batch_id is not None:  # another process has found it
                return known and known.batch_id
            if not is_mine and self._ledger.is_being_made(entry.batch):  # by another run, at this moment
                await asyncio.sleep(self._pauses.first_s)
                started = now()
                continue
            # What is listed after the time in which it would have appeared is all there is.
            is_last = (now() - started).total_seconds() >= self._pauses.appear_s
            for made in await self._patiently(self._client.list_batches, since):
                if made.batch_id in others or made.n_calls != len(entry.call_ids):
                    continue
                # Only the results of an ended batch say which calls are in it.
                if {call_id for call_id, _ in await self._results(made.batch_id)} == entry.call_ids:
                    self._ledger.set_batch_id(entry.batch, made.batch_id)
                    return made.batch_id
                others.add(made.batch_id)
            if is_last:
                return None
            await asyncio.sleep(self._pauses.first_s)
