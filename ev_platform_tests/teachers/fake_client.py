"""A provider in this process: it answers calls, fails in the ways it is told to, and counts what it charges."""

import asyncio
import itertools
import json
import threading
from datetime import UTC, datetime

from pydantic import BaseModel, Field, field_validator

from ev_platform.errors import UserError
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers.calls import Batch, Call, Reply, Usage

PRICE = Price(input=1.0, output=5.0, batch=0.5)


class Fact(BaseModel):
    """What the tests' calls ask for."""

    fact: str = Field(min_length=1)
    number: int

    @field_validator("fact")
    @classmethod
    def _no_lie(cls, fact: str) -> str:
        if fact.startswith(LIES[0]):
            raise ValueError("is a lie")
        return fact


LIES = ["lie"]  # a validator that is no part of the JSON schema, and that a test can change


def make_call(number, *, prompt=None, max_tokens=100):
    return Call("generate", "tiny-1", "v1", "Answer in JSON.", prompt or f"Fact {number}", Fact, max_tokens)


def make_config(**changes):
    fields = {"provider": "anthropic", "model": "tiny-1", "price": PRICE, "max_retries": 2, "timeout_s": 5.0}
    return TeacherConfig(**{**fields, "use_batches": False, **changes})


class FakeClient:
    """A plain client. `faults` maps a number asked about to what goes wrong with it, once each time it is listed."""

    provider = "fake"

    def __init__(self, faults=None, *, has_batches=False, delay_s=0.0, n_output_tokens=20, polls=2):
        self.faults = {number: list(kinds) for number, kinds in (faults or {}).items()}
        self.has_batches = has_batches
        self.delay_s = delay_s
        self.n_output_tokens = n_output_tokens
        self.polls = polls
        self.charged = {}  # prompt to how often it was charged
        self.charged_usd = 0.0
        self.n_under_way = self.most_under_way = self.n_closed = self.n_lists = 0
        self.batches = {}
        self.lock = threading.Lock()

    def charge(self, call, factor=1.0):
        usage = Usage(n_input_tokens=len(call.prompt) // 3 + 50, n_output_tokens=self.n_output_tokens)
        with self.lock:
            self.charged[call.prompt] = self.charged.get(call.prompt, 0) + 1
            self.charged_usd += (
                factor * (usage.n_input_tokens * PRICE.input + usage.n_output_tokens * PRICE.output) / 1e6
            )
        return usage

    def answer(self, call, factor=1.0):
        number = int(call.prompt.split()[1])
        waiting = self.faults.get(number)
        fault = waiting.pop(0) if waiting else None
        if fault == "key":
            raise UserError("The key is not accepted: set ANTHROPIC_API_KEY.")
        if fault == "bug":
            raise ZeroDivisionError
        if fault == "down":
            return Reply("failed", detail="529 overloaded")
        if fault == "timeout":
            return Reply("failed", detail="timed out", n_unsettled=1)
        usage = self.charge(call, factor)
        if fault == "counted timeout":
            return Reply("failed", detail="timed out", n_unsettled=1)
        if fault == "refusal":
            return Reply("refused", detail="the model declined", usage=usage)
        if fault == "truncated":
            return Reply("truncated", text='{"fact": "F', detail="the reply reached max_tokens", usage=usage)
        text = {"malformed": '{"fact": "F', "misfit": '{"fact": ""}'}.get(fault)
        return Reply(
            "ok",
            text=text
            or json.dumps({"fact": f"lie {number}" if fault == "lie" else f"fact {number}", "number": number}),
            usage=usage,
            model="tiny-1-20260101",
            request_id=f"req_{number}",
            latency_ms=1.5,
        )

    async def send(self, call):
        self.n_under_way += 1
        self.most_under_way = max(self.most_under_way, self.n_under_way)
        try:
            await asyncio.sleep(self.delay_s)
            return self.answer(call)
        finally:
            self.n_under_way -= 1

    def count_tokens(self, call):
        return len(call.prompt) // 3 + 50

    # ---- batches ----

    def create_batch(self, calls):
        fault = (self.faults.get("create") or [None]).pop(0) if self.faults.get("create") else None
        if fault == "lost":
            raise ConnectionError("reset")
        batch_id = f"batch_{len(self.batches)}"
        self.batches[batch_id] = {
            "created_at": datetime.now(UTC).isoformat(),
            "results": [(call.call_id, self.answer(call, PRICE.batch)) for call in calls],
            "polls": itertools.count(),
        }
        if fault == "made and lost":
            raise ConnectionError("reset")
        return self._batch(batch_id)

    def _batch(self, batch_id, *, is_ended=False):
        batch = self.batches[batch_id]
        return Batch(batch_id, batch["created_at"], len(batch["results"]), is_ended)

    def get_batch(self, batch_id):
        return self._batch(batch_id, is_ended=next(self.batches[batch_id]["polls"]) >= self.polls)

    def list_batches(self, since):
        self.n_lists += 1
        made = [self._batch(batch_id) for batch_id in self.batches]
        return [batch for batch in reversed(made) if batch.created_at >= since]

    def batch_results(self, batch_id):
        return list(reversed(self.batches[batch_id]["results"]))

    async def aclose(self):
        self.n_closed += 1


__all__ = ["LIES", "PRICE", "Call", "Fact", "FakeClient", "make_call", "make_config"]
