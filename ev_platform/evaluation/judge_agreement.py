"""Whether a judge's verdicts can be believed: whether they hold in both orders, and how far people agree with them.

What does not belong here: asking the judge (`judge`) and reading what people said (`judgements`).
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

# Below so many pairs that both judged, an agreement is no more than an anecdote.
MIN_HUMAN = 10
# Landis and Koch (1977) call a kappa above 0.4 moderate, and below it fair or slight.
MIN_KAPPA = 0.4
# Of a judge who guesses between two answers, half of the verdicts turn with the order; of a good one hardly any.
MAX_INCONSISTENT = 0.25


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far judge and people agree.

    Attributes:
        n: Pairs that both judged.
        share: Of them, on which they agree; None where there are none.
        kappa: Cohen's (1960); None where it is undefined because both only ever said one and the same.
    """

    n: int
    share: float | None
    kappa: float | None


def agree(judgements: pl.DataFrame) -> Agreement:
    """Return how far judge and people agree, on the pairs that both judged.

    A verdict that changed with the order counts as a tie, as Zheng et al. (2023) do it.

    Args:
        judgements: The `pair_judgements` table.
    """
    both = judgements.drop_nulls(["verdict", "human"])
    judge = both["verdict"].replace("inconsistent", "tie").to_list()
    people = both["human"].to_list()
    if not judge:
        return Agreement(0, None, None)
    from sklearn.metrics import cohen_kappa_score

    share = sum(a == b for a, b in zip(judge, people, strict=True)) / len(judge)
    return Agreement(len(judge), share, float(cohen_kappa_score(judge, people)) if len({*judge, *people}) > 1 else None)


def find_flaw(judgements: pl.DataFrame) -> str | None:
    """Return why a judge's verdicts are not to be believed, in a sentence; None where nothing speaks against them."""
    asked = judgements.filter(pl.col("verdict").is_not_null() & (pl.col("call_ids").list.len() > 0))
    n_inconsistent = asked.filter(pl.col("verdict") == "inconsistent").height
    if n_inconsistent > MAX_INCONSISTENT * asked.height:
        return f"{n_inconsistent} of {asked.height} verdicts change with the order of the answers."
    agreement = agree(judgements)
    if agreement.n >= MIN_HUMAN and agreement.kappa is not None and agreement.kappa < MIN_KAPPA:
        return f"On {agreement.n} pairs its agreement with people has a kappa of {agreement.kappa:.2f} < {MIN_KAPPA:g}."
    return None
