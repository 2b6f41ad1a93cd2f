"""Intervals of means and of paired differences, and the verdict that follows from them.

What belongs here: arithmetic on scores that exist. What does not: how an answer is scored (`metrics`) and which rows
and columns go in (`summary`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The four systems, simplest first, with their names for people. Retrieval counts as simpler than tuning: it needs no
# training run, and its answers name the passages they rest on.
SYSTEMS = {
    "base": "base",
    "base_rag": "base + retrieval",
    "tuned": "tuned",
    "tuned_rag": "tuned + retrieval",
}

# Systems without tuning, simplest first: the first of them that took part is what the others must beat.
BASELINES = ("base", "base_rag")

# Rows of resamples drawn at once: bounds memory at 250 × n indices, whatever the number of resamples.
BATCH = 250


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; `low` and `high` are None where there are too few rows for one."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0

    def __neg__(self) -> Interval:
        return Interval(-self.value, None if self.high is None else -self.high, None if self.low is None else -self.low)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to ship, and why, in one sentence with figures."""

    verdict: str
    reason: str


def mean_interval(values: Sequence[float] | np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Return a mean with its 95 % percentile bootstrap interval (Efron & Tibshirani, 1993, chapter 13).

    Args:
        values: One figure per row; rows are taken to be independent.
        resamples: Bootstrap samples.
        seed: Same values, resamples and seed give the same interval.

    Returns:
        The interval; without bounds if there are fewer than two values.

    Raises:
        ValueError: If there are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("the mean of no values is undefined")
    value = float(sample.mean())
    if sample.size < 2:
        return Interval(value, None, None)
    from scipy.stats import bootstrap

    result = bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=BATCH,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """Return the mean of a minus b with its interval, where a[i] and b[i] are figures of one row.

    Rows are resampled, not scores, so what makes a question easy or hard for both cancels out.

    Raises:
        ValueError: If the lengths differ or there are no values.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return mean_interval(difference, resamples=resamples, seed=seed)


def verdict(differences: Mapping[tuple[str, str], Interval], metric: str = "token F1") -> Verdict:
    """Say which system is worth shipping, from paired differences of the metric that decides.

    "Better" means that the whole 95 % interval of the difference lies above 0. The rule lets every part earn its
    place:

    1. The baseline is `base`, or `base_rag` where every system is given passages. A system is a candidate if it is
       better than the baseline; `tuned_rag` must be better than `base_rag` too, since otherwise retrieval alone would
       do.
    2. The simplest candidate stands first, in the order base + retrieval, tuned, tuned + retrieval. Each later
       candidate takes the place of the one that stands only by being better than it.
    3. Without a candidate the answer is "inconclusive", also where a system is clearly worse than the baseline.

    The intervals are not corrected for the number of comparisons: with a true difference of 0, each comes out
    "better" once in 40 times.

    Args:
        differences: Interval of the first system minus the second; one direction of a pair is enough. Systems without
            retrieval, or with it, may be missing.
        metric: What the figures are, for people.

    Returns:
        "ship tuned + retrieval", "ship tuned", "ship base + retrieval" or "inconclusive", and the reason.

    Raises:
        ValueError: If no system is compared to a baseline, or a pair that the rule needs is missing.
    """
    both = {(b, a): -interval for (a, b), interval in differences.items()} | dict(differences)
    baseline = next((name for name in BASELINES if any(name in pair for pair in both)), "base")
    rivals = [name for name in SYSTEMS if (name, baseline) in both]
    if not rivals:
        raise ValueError("no system is compared to the base")
    missing = [(a, b) for a in rivals for b in rivals if a != b and (a, b) not in both]
    if missing:
        raise ValueError(f"the difference of {missing[0][0]} and {missing[0][1]} is missing")
    candidates = [name for name in rivals if both[name, baseline].is_above_zero]
    if "tuned_rag" in candidates and "base_rag" in rivals and not both["tuned_rag", "base_rag"].is_above_zero:
        candidates.remove("tuned_rag")
    if not candidates:
        pairs = [(name, baseline) for name in rivals]
        if "tuned_rag" in rivals and "base_rag" in rivals:
            pairs.append(("tuned_rag", "base_rag"))
        told = "; ".join(f"{SYSTEMS[a]} {_against(b, both[a, b])}" for a, b in pairs)
        return Verdict("inconclusive", f"No system has earned its place by {metric}: {told}.")
    winner = candidates[0]
    for name in candidates[1:]:
        if both[name, winner].is_above_zero:
            winner = name
    others = [baseline, *(name for name in rivals if name != winner)]
    told = ", ".join(_against(other, both[winner, other]) for other in others)
    openings = {"base_rag": "Retrieval alone does it", "tuned": "Tuning alone does it"}
    opening = openings.get(winner, "Tuning on top of retrieval does it")
    if len(rivals) == 1:
        opening = "Tuning does it"
    return Verdict(f"ship {SYSTEMS[winner]}", f"{opening}: {metric} of {SYSTEMS[winner]} is {told}.")


def _against(other: str, difference: Interval) -> str:
    if difference.is_above_zero:
        meaning = "better"
    elif difference.is_below_zero:
        meaning = "worse"
    else:
        meaning = "no clear difference"
    if difference.low is None or difference.high is None:
        bounds = "too few rows for an interval"
    else:
        bounds = f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{difference.value:+.3f} against {SYSTEMS[other]} ({meaning}; {bounds})"
