"""One question to a language model and its reply, and what reaches the models of one provider.

How many calls go out at once, what they may cost and where replies are kept is `ask`'s affair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

from pydantic import BaseModel

from ev_platform.errors import UserError
from ev_platform.identity import short_id


@cache
def shape_of(schema: type[BaseModel]) -> str:
    """Return the JSON schema of a reply as text; making it costs as much as all the rest of a call."""
    return json.dumps(schema.model_json_schema(), sort_keys=True)


@dataclass(frozen=True)
class Call:
    """One question to a language model.

    Attributes:
        purpose: `generate`, `label`, `answer`, `judge`, `compare` or `check`.
        model: As the provider calls it.
        prompt_version: Hash of the templates that made it.
        system: The same for many calls, so that a provider can keep it.
        prompt: What is asked.
        schema: What the reply must be.
        max_tokens: Longest reply.
        source: Who replies, where the model's name does not say so (`Client`); empty where it does.
    """

    purpose: str
    model: str
    prompt_version: str
    system: str
    prompt: str
    schema: type[BaseModel]
    max_tokens: int
    source: str = ""

    @property
    def content_id(self) -> str:
        """Hash of what is asked, whoever replies; recordings go by it."""
        return short_id("call", self.model, self.system, self.prompt, shape_of(self.schema), self.max_tokens)

    @cached_property
    def call_id(self) -> str:
        """Hash of all that determines the reply; equal calls are asked and paid once."""
        # Without a source it is what earlier releases paid under: what is stored so is found.
        return short_id("call", self.content_id, self.source) if self.source else self.content_id


@dataclass(frozen=True, slots=True)
class Usage:
    """What the provider counted; `n_input_tokens` are those at full price."""

    n_input_tokens: int = 0
    n_output_tokens: int = 0
    n_cache_write_tokens: int = 0
    n_cache_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider answered to one call, before anyone asked whether it fits its schema.

    Attributes:
        status: `ok`, `refused`, `truncated` or `failed`.
        text: The reply, JSON where all went well.
        detail: What went wrong, in words.
        usage: What it counted; zeros where it counts nothing.
        model: As the server names it.
        request_id: The server's.
        latency_ms: None in a batch.
        n_unsettled: Attempts that broke off (a timeout) and may have been counted all the same.
    """

    status: str
    text: str = ""
    detail: str | None = None
    usage: Usage = Usage()
    model: str = ""
    request_id: str | None = None
    latency_ms: float | None = None
    n_unsettled: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the provider knows it.

    Attributes:
        batch_id: The provider's.
        created_at: ISO 8601, the provider's clock.
        n_calls: Calls in it.
        is_ended: Whether all results are there.
    """

    batch_id: str
    created_at: str
    n_calls: int
    is_ended: bool


class LostBatchError(UserError):
    """The provider does not have a batch, or no longer has its results."""


class Client(Protocol):
    """The models of one provider.

    `send` repeats what the provider answered with an error and returns a `failed` reply for what stays wrong with one
    call; it raises `UserError` for what is wrong with all of them (the key, the model's name, the address). An attempt
    that broke off may have been counted: it comes back at once as `failed` with `n_unsettled` 1, and `ask`, which keeps
    the money, repeats it. What is about batches raises `ConnectionError` where it broke off.

    One that asks an address or a file of the user's choice, where any model may stand behind a name, says in an
    attribute `source` which: it becomes part of its calls, so that no other's stored replies are taken for its own.

    `ask` runs `send` and `aclose` in an event loop of its own, a new one each time, and the others in other threads.
    """

    provider: str
    has_batches: bool

    async def send(self, call: Call) -> Reply:
        """Ask one call."""
        ...

    def count_tokens(self, call: Call) -> int:
        """Return the tokens of a call's prompt, for estimates; by the provider where it counts for nothing."""
        ...

    def create_batch(self, calls: Sequence[Call]) -> Batch:
        """Hand in calls; `call_id` names each within the batch."""
        ...

    def get_batch(self, batch_id: str) -> Batch:
        """Return how far a batch is."""
        ...

    def list_batches(self, since: str) -> list[Batch]:
        """Return the batches made since an ISO 8601 time, newest first."""
        ...

    def batch_results(self, batch_id: str) -> list[tuple[str, Reply]]:
        """Return (call_id, reply) of an ended batch."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
