"""What a call costs: the price table, what a reply cost, and the most that a call can cost before it is sent.

What does not belong here: how much may be spent (`budget`) and what was spent (`ledger`).
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ev_platform.errors import UserError
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.tasks.models import read_model
from ev_platform.teachers.calls import Call, Usage, shape_of

PRICES = Path(__file__).with_name("prices.yaml")

# What a provider puts around a prompt: marks of the turns, and the instructions that go with a reply schema (some 200
# to 300 tokens are usual).
OVERHEAD_TOKENS = 1000


class PriceTable(BaseModel):
    """`prices.yaml`.

    Attributes:
        date: Day the prices were read.
        source: Where they were read, in words.
        models: Provider to model to price.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    source: str
    models: dict[str, dict[str, Price]]


@cache
def price_table() -> PriceTable:
    """Return the price table that comes with the platform."""
    return read_model(PriceTable, PRICES)


def price_of(config: TeacherConfig) -> Price:
    """Return what a teacher's tokens cost: its own `price`, else the table's; a recording costs nothing.

    Raises:
        UserError: If the table does not have the model.
    """
    if config.price is not None:
        return config.price
    if config.provider in ("offline", "recorded"):
        return Price(input=0, output=0)
    prices = price_table().models.get(config.provider, {})
    model = config.model or ""
    price = prices.get(model) or prices.get(re.sub(r"-\d{8}$", "", model))
    if price is None:
        raise UserError(
            f"The price of {config.provider}'s model {config.model!r} is not known: write teacher.price "
            "(input and output, in dollars for a million tokens) into config.yaml."
        )
    return price


def cost_of(price: Price, usage: Usage, *, is_batch: bool = False) -> float:
    """Return what a reply cost, in dollars."""
    write = price.input if price.cache_write is None else price.cache_write
    read = price.input if price.cache_read is None else price.cache_read
    total = (
        usage.n_input_tokens * price.input
        + usage.n_cache_write_tokens * write
        + usage.n_cache_read_tokens * read
        + usage.n_output_tokens * price.output
    )
    return total / 1e6 * (price.batch if is_batch else 1.0)


def most_input_tokens(call: Call) -> int:
    """Return more tokens than a call's prompt can have, without asking the provider.

    A byte-level tokenizer makes at most one token of a byte. Some normalise to NFKC before, which can lengthen a text.
    """
    text = call.system + call.prompt
    n_bytes = max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))
    return n_bytes + 2 * len(shape_of(call.schema)) + OVERHEAD_TOKENS


def most_cost_of(price: Price, call: Call, *, is_batch: bool = False) -> float:
    """Return more dollars than one attempt at a call can cost; infinity where its price is not known."""
    n_input = most_input_tokens(call)
    if price.max_prompt_tokens is not None and n_input > price.max_prompt_tokens:
        return math.inf
    # A prompt may be read at full price or written into the provider's cache, whichever costs more.
    dearest = max(price.input, price.cache_write or 0.0)
    return (n_input * dearest + call.max_tokens * price.output) / 1e6 * (price.batch if is_batch else 1.0)
