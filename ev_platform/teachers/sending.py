"""One call from its reservation to its stored reply.

What does not belong here: many calls at once, their order and their end (`ask`), and batches (`batches`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ev_platform.errors import UserError
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers.budget import Budget
from ev_platform.teachers.calls import Call, Client, Reply, Usage
from ev_platform.teachers.ledger import Entry, Ledger, Settled
from ev_platform.teachers.prices import cost_of, most_cost_of

M = TypeVar("M", bound=BaseModel)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # before a call that broke off is repeated, as the SDKs do it
INTERRUPTED = (
    "a run was killed while this call was under way, or another run is asking it now; "
    "teacher.resend_interrupted asks it again, and it may be paid twice then"
)


@dataclass(frozen=True, slots=True)
class Answered(Generic[M]):
    """How one call ended.

    Attributes:
        call: The call.
        status: One of `teachers.STATUSES`.
        value: The reply, with status "ok" only.
        detail: What went wrong, in words.
        cost_usd: What the provider counted for the call, in this run or an earlier one.
        is_stored: Whether nothing was asked for it in this run.
    """

    call: Call
    status: str
    value: M | None = None
    detail: str | None = None
    cost_usd: float = 0.0
    is_stored: bool = False

    @property
    def call_id(self) -> str:
        """The call's."""
        return self.call.call_id


def fit(call: Call, status: str, text: str, detail: str | None) -> tuple[str, BaseModel | None, str | None]:
    """Return status, value and detail of a reply, once its text was held against the call's schema."""
    if status not in ("ok", "invalid"):
        return status, None, detail
    try:
        return "ok", call.schema.model_validate_json(text), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole reply"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return "invalid", None, f"{where}: {first['msg']}{more}"


class Sender:
    """Asks calls of one run, one at a time each; its coroutines run in one event loop.

    Args:
        client: Reaches the provider.
        ledger: Where intents and replies go.
        config: Limits.
        teacher: Who is asked, for the ledger.
        price: What tokens cost.
        budget: The cap of the run.
    """

    def __init__(
        self, client: Client, ledger: Ledger, config: TeacherConfig, *, teacher: str, price: Price, budget: Budget
    ):
        self.client = client
        self.ledger = ledger
        self.config = config
        self.teacher = teacher
        self.price = price
        self.budget = budget
        self.is_stopping = False
        # Tasks with a call that has left: they are waited for when the run stops.
        self.under_way: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(config.concurrency)

    def most_cost_of(self, call: Call, *, is_batch: bool = False) -> float:
        """Return the dollars to set aside for one attempt."""
        return most_cost_of(self.price, call, is_batch=is_batch)

    def is_in_batch(self, entry: Entry) -> bool:
        """Return whether a call is under way in a batch that can be waited for."""
        return entry.status is None and entry.batch is not None and self.client.has_batches

    def recall(self, call: Call, entry: Entry | None) -> Answered[Any] | None:
        """Return the stored answer to a call; None where it has to be asked, or is under way in a batch.

        A stored reply is held against the schema again, as its validators may have changed since.
        """
        if entry is None or entry.status == "failed":
            return None
        if entry.status is None:
            if self.config.resend_interrupted or self.is_in_batch(entry):
                return None
            return Answered(call, "interrupted", detail=INTERRUPTED, cost_usd=entry.cost_usd, is_stored=True)
        status, value, detail = fit(call, entry.status, entry.text, entry.detail)
        if status != entry.status:
            self.ledger.restate(call.call_id, status, detail)
        return Answered(call, status, value, detail, entry.cost_usd, is_stored=True)

    def settle(self, call: Call, reply: Reply, *, is_batch: bool = False) -> tuple[Settled, Answered[Any]]:
        """Return a reply as it goes into the ledger, and as it goes to the caller."""
        status, value, detail = fit(call, reply.status, reply.text, reply.detail)
        cost_usd = cost_of(self.price, reply.usage, is_batch=is_batch)
        settled = Settled(call.call_id, status, detail, reply, cost_usd)
        return settled, Answered(call, status, value, detail, cost_usd)

    def settle_unseen(self, call_id: str, reply: Reply) -> Settled:
        """Return a reply of a batch as it goes into the ledger where the call itself is not at hand.

        It is held against its schema when it is asked for.
        """
        return Settled(call_id, reply.status, reply.detail, reply, cost_of(self.price, reply.usage, is_batch=True))

    def over_budget(self, call: Call, most_usd: float) -> Answered[Any]:
        """Return the answer to a call that is not asked, since the cap might not hold."""
        cap = self.budget.cap_usd
        if most_usd == float("inf"):
            detail = f"its prompt may be longer than the {self.price.max_prompt_tokens} tokens its price holds for"
        else:
            detail = f"may cost ${most_usd:.4f}, and ${self.budget.spent_usd:.4f} of the run's ${cap:.2f} are spent"
        return Answered(call, "over_budget", detail=detail)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Mark the current task as one to wait for when the run stops."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - only coroutines call this
        self.under_way.add(task)
        try:
            yield
        finally:
            self.under_way.discard(task)

    async def answer(self, call: Call) -> Answered[Any]:
        """Ask one call.

        Raises:
            UserError: For what is wrong with all calls, such as the key.
        """
        most_usd = self.most_cost_of(call)
        async with self._slots:
            if not await self.budget.reserve(most_usd):
                return self.over_budget(call, most_usd)
            with self.leaving():
                try:
                    is_claimed = self.ledger.claim([call], self.teacher, resend=self.config.resend_interrupted)
                except BaseException:
                    self.budget.settle(most_usd, 0)
                    raise
                if not is_claimed:  # another run was faster
                    self.budget.settle(most_usd, 0)
                    entry = self.ledger.get(call.call_id)
                    return self.recall(call, entry) or Answered(call, "interrupted", detail=INTERRUPTED)
                return await self._send(call, most_usd)

    async def _send(self, call: Call, most_usd: float) -> Answered[Any]:
        n_unsettled, n_attempts = 0, 0
        while True:
            n_attempts += 1
            spent_usd = most_usd  # until the reply says otherwise, also where none comes
            try:
                reply = await self.client.send(call)
                # A reply without a count may have cost what it can cost at most.
                is_uncounted = reply.status in ("ok", "truncated") and reply.usage == Usage()
                spent_usd = cost_of(self.price, reply.usage) + (reply.n_unsettled + is_uncounted) * most_usd
            except UserError as error:
                spent_usd = 0.0
                self._store(call, Reply("failed", detail=str(error), n_unsettled=n_unsettled))
                raise
            finally:
                self.budget.settle(most_usd, spent_usd)
            n_unsettled += reply.n_unsettled
            if reply.status != "failed" or not reply.n_unsettled or n_attempts > self.config.max_retries:
                break
            # The attempt broke off and may have been counted, so each repeat needs money of its own.
            await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (n_attempts - 1), LONGEST_PAUSE_S))
            if self.is_stopping or not await self.budget.reserve(most_usd):
                break
        return self._store(call, replace(reply, n_unsettled=n_unsettled))

    def _store(self, call: Call, reply: Reply) -> Answered[Any]:
        settled, answered = self.settle(call, reply)
        self.ledger.store([settled])
        entry = self.ledger.get(call.call_id)
        return replace(answered, cost_usd=entry.cost_usd) if entry else answered  # with what earlier attempts cost
