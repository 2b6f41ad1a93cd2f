"""What a run will cost, told before it is paid for.

What does not belong here: the cap, which holds whatever an estimate said (`budget`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ev_platform.errors import UserError
from ev_platform.tasks.config import Price, TeacherConfig
from ev_platform.teachers.batches import HANDFUL
from ev_platform.teachers.calls import Call, Client, Usage
from ev_platform.teachers.ledger import Ledger
from ev_platform.teachers.prices import cost_of, most_cost_of


@dataclass(frozen=True, slots=True)
class Estimate:
    """What asking calls is expected to cost.

    Attributes:
        n_calls: Distinct calls wanted.
        n_stored: Of them, those whose reply is stored and costs nothing.
        n_interrupted: Of them, those that an earlier run left under way: not asked again unless
            `teacher.resend_interrupted`, and perhaps charged to that run.
        n_asked: Calls that will be asked.
        is_batch: Whether in batches.
        n_input_tokens: Of the calls asked, as counted on a sample.
        n_output_tokens: Of the replies expected.
        output_basis: What `n_output_tokens` rests on, in words.
        expected_usd: Without what the provider's cache of prompts will save.
        worst_usd: If every reply were as long as allowed.
        cap_usd: Of the run.
        n_within_cap: Of the calls asked, those that the cap pays for at the expected cost of each.
    """

    n_calls: int
    n_stored: int
    n_interrupted: int
    n_asked: int
    is_batch: bool
    n_input_tokens: int
    n_output_tokens: int
    output_basis: str
    expected_usd: float
    worst_usd: float
    cap_usd: float
    n_within_cap: int


def estimate(
    calls: Sequence[Call], client: Client, ledger: Ledger, price: Price, config: TeacherConfig, sample: int = 20
) -> Estimate:
    """Estimate what asking calls will cost; asks the provider for nothing but token counts.

    Args:
        calls: What will be asked.
        client: Counts tokens.
        ledger: Knows which replies are stored, and how long earlier ones were.
        price: What tokens cost.
        config: Limits.
        sample: Calls whose tokens are counted, taken by chance; the others go by their characters in proportion.

    Raises:
        UserError: If the provider cannot be reached, or refuses the key.
    """
    distinct = {call.call_id: call for call in calls}
    entries = {call_id: ledger.get(call_id) for call_id in distinct}
    n_interrupted = sum(entry is not None and entry.status is None for entry in entries.values())
    asked = [
        call
        for call_id, call in distinct.items()
        if (entry := entries[call_id]) is None
        or entry.status == "failed"
        or (entry.status is None and config.resend_interrupted)
    ]
    is_batch = client.has_batches and config.use_batches and len(asked) > HANDFUL
    n_input = _count_tokens(asked, client, sample)
    n_output, basis = _output_tokens(asked, ledger)
    expected_usd = cost_of(price, Usage(n_input_tokens=n_input, n_output_tokens=n_output), is_batch=is_batch)
    fits = math.floor(config.max_cost_usd / expected_usd * len(asked)) if expected_usd else len(asked)
    return Estimate(
        n_calls=len(distinct),
        n_stored=sum(entry is not None and entry.status not in (None, "failed") for entry in entries.values()),
        n_interrupted=n_interrupted,
        n_asked=len(asked),
        is_batch=is_batch,
        n_input_tokens=n_input,
        n_output_tokens=n_output,
        output_basis=basis,
        expected_usd=expected_usd,
        worst_usd=sum(most_cost_of(price, call, is_batch=is_batch) for call in asked),
        cap_usd=config.max_cost_usd,
        n_within_cap=min(fits, len(asked)),
    )


def _count_tokens(calls: Sequence[Call], client: Client, sample: int) -> int:
    if not calls:
        return 0
    # By chance, but the same at each look; evenly spaced calls might all be of one kind.
    counted = random.Random(17).sample(calls, sample) if len(calls) > sample else calls  # noqa: S311
    try:
        n_tokens = sum(client.count_tokens(call) for call in counted)
    except ConnectionError as error:
        raise UserError(f"{client.provider} cannot be reached to count tokens ({error}): try again later.") from error
    return round(n_tokens * _n_chars(calls) / _n_chars(counted))


def _n_chars(calls: Sequence[Call]) -> int:
    return sum(len(call.system) + len(call.prompt) for call in calls) or 1


def _output_tokens(calls: Sequence[Call], ledger: Ledger) -> tuple[int, str]:
    total, n_replies = 0.0, 0
    lengths: dict[tuple[str, str], tuple[float, int]] = {}
    for call in calls:
        kind = (call.purpose, call.model)
        if kind not in lengths:
            lengths[kind] = ledger.mean_output_tokens(*kind)
            n_replies += lengths[kind][1]
        mean, n = lengths[kind]
        total += min(mean, call.max_tokens) if n else call.max_tokens / 2
    if lengths and all(n for _, n in lengths.values()):
        basis = f"{n_replies} earlier replies"
    elif n_replies:
        basis = f"{n_replies} earlier replies; half of the longest reply allowed where there are none"
    else:
        basis = "half of the longest reply allowed, as there are no earlier replies"
    return round(total), basis
