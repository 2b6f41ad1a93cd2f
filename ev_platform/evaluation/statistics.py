"""Intervals of means and of paired differences, a test of the latter, and the verdict that follows from them.

What belongs here: arithmetic on scores that exist. What does not: how an answer is scored (`metrics`) and which rows
and columns go in (`summary`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# What needs no language model: a score at or below these has learnt nothing of the task.
FLOORS = {"majority": "commonest label", "linear_probe": "linear probe", "first_sentence": "first sentence found"}

# The four systems of which one may be shipped, simplest first, with their names for people. Retrieval counts as simpler
# than tuning: it needs no training run, and its answers name the passages they rest on.
MAIN = {
    "base": "base",
    "base_rag": "base + retrieval",
    "tuned": "tuned",
    "tuned_rag": "tuned + retrieval",
}

# Every system, in the order in which tables show them.
SYSTEMS = {**FLOORS, **MAIN, "champion": "champion", "teacher": "teacher"}

# Systems without tuning, simplest first: the first of them that took part is what the others must beat.
BASELINES = ("base", "base_rag")

MIN_ROWS = 20  # below which nothing can be concluded; `promotion.min_rows` of a task replaces it
ALPHA = 0.05
POWER = 0.8

# Rows of resamples drawn at once: bounds memory at 250 × n indices, whatever the number of resamples.
BATCH = 250

# 2^16 sign patterns take 50 ms; scipy's permutation_test, which gives the same p, takes eight times as long, and a
# report has some sixty pairs.
EXACT_ROWS = 16
PERMUTATIONS = 9_999  # then the smallest p is 1 in 10,000


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


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """The mean of a paired difference, with its interval.

    Attributes:
        p_value: Two-sided, of the permutation test; None where none was made.
        n_rows: Pairs behind it.
    """

    p_value: float | None
    n_rows: int

    def is_better(self, min_rows: int = MIN_ROWS) -> bool:
        """Whether the first of the two is better: interval and test say so, and there are rows enough."""
        return self.is_above_zero and self._is_significant and self.n_rows >= min_rows

    def is_worse(self, min_rows: int = MIN_ROWS) -> bool:
        """Whether the first of the two is worse, by the same rule."""
        return self.is_below_zero and self._is_significant and self.n_rows >= min_rows

    @property
    def _is_significant(self) -> bool:
        return self.p_value is not None and self.p_value < ALPHA

    def __neg__(self) -> Difference:
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return Difference(-self.value, low, high, self.p_value, self.n_rows)


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
) -> Difference:
    """Return the mean of a minus b with its interval and p-value, where a[i] and b[i] are figures of one row.

    Rows are resampled, not scores, so what makes a question easy or hard for both cancels out.

    Raises:
        ValueError: If the lengths differ or there are no values.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    interval = mean_interval(difference, resamples=resamples, seed=seed)
    p_value = permutation_p(difference, seed=seed)
    return Difference(interval.value, interval.low, interval.high, p_value, len(difference))


def permutation_p(differences: Sequence[float] | np.ndarray, *, seed: int) -> float:
    """Return the two-sided p-value of paired differences: how often chance alone gives a mean as far from 0.

    The paired permutation test (Fisher, 1935, section 21): if neither of two systems is better, each row's difference
    might as well have the other sign. All sign patterns are gone through for up to `EXACT_ROWS` rows, else
    `PERMUTATIONS` are drawn and the observed one counts as one more (Phipson & Smyth, 2010), so that p is never 0.

    Args:
        differences: One for each row.
        seed: Of the drawn patterns; without effect where all are gone through.

    Raises:
        ValueError: If there are no values.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = values.size
    if n == 0:
        raise ValueError("the test of no differences is undefined")
    observed = abs(values.sum())
    # Sums of the same figures in another order differ in their last digits, and count as equal.
    reached = observed - 1e-12 * np.abs(values).sum()
    if n <= EXACT_ROWS:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ values) >= reached))
    rng = np.random.default_rng(seed)
    n_reached = 1
    for first in range(0, PERMUTATIONS, BATCH):
        signs = 1 - 2 * rng.integers(0, 2, (min(BATCH, PERMUTATIONS - first), n), dtype=np.int8)
        n_reached += int(np.sum(np.abs(signs @ values) >= reached))
    return n_reached / (PERMUTATIONS + 1)


def minimum_detectable_effect(n_rows: int, sd: float) -> float:
    """Return the smallest true mean difference that a benchmark shows four times in five.

    Of the paired t-test, two-sided at 5 %, by the noncentral t distribution (Cohen, 1988, chapter 2); with n rows and
    not too few of them the permutation test has the same power.

    Args:
        n_rows: Test rows, at least 2.
        sd: Standard deviation of the rows' differences between two systems.

    Returns:
        The difference, in the unit of `sd`.

    Raises:
        ValueError: If there are fewer than two rows.
    """
    if n_rows < 2:
        raise ValueError(f"{n_rows} rows have no spread")
    from scipy.optimize import brentq
    from scipy.special import nctdtr, stdtrit  # without the second that scipy.stats takes to import

    freedom = n_rows - 1
    critical = stdtrit(freedom, 1 - ALPHA / 2)

    def missing_power(shift: float) -> float:
        # In the other tail lies less than a thousandth of what is missing.
        return 1 - float(nctdtr(freedom, shift, critical)) - POWER

    # The shift is in standard errors of the mean: two rows need 16 of them, many rows 2.8.
    return float(sd / np.sqrt(n_rows) * brentq(missing_power, 0.0, 25.0))  # type: ignore[arg-type]


def verdict(
    differences: Mapping[tuple[str, str], Difference], metric: str = "token F1", min_rows: int = MIN_ROWS
) -> Verdict:
    """Say which of the four systems is worth shipping, from paired differences of the metric that decides.

    "Better" means that the whole 95 % interval of the difference lies above 0, that the permutation test's p is below
    0.05, and that there are at least `min_rows` rows: an interval from a handful of rows is too narrow. The rule lets
    every part earn its place:

    1. The baseline is `base`, or `base_rag` where every system is given passages. A system is a candidate if it is
       better than the baseline; `tuned_rag` must be better than `base_rag` too, since otherwise retrieval alone would
       do.
    2. The simplest candidate stands first, in the order base + retrieval, tuned, tuned + retrieval. Each later
       candidate takes the place of the one that stands only by being better than it.
    3. Without a candidate the answer is "inconclusive", also where a system is clearly worse than the baseline.

    The intervals are not corrected for the number of comparisons: with a true difference of 0, each comes out
    "better" once in 40 times.

    Args:
        differences: Of the first system minus the second; one direction of a pair is enough. Systems without retrieval,
            or with it, may be missing; others than the four take no part.
        metric: What the figures are, for people.
        min_rows: Test rows below which nothing is concluded.

    Returns:
        "ship tuned + retrieval", "ship tuned", "ship base + retrieval" or "inconclusive", and the reason.

    Raises:
        ValueError: If no system is compared to a baseline, or a pair that the rule needs is missing.
    """
    among = {(a, b): difference for (a, b), difference in differences.items() if a in MAIN and b in MAIN}
    both = {(b, a): -difference for (a, b), difference in among.items()} | among
    baseline = next((name for name in BASELINES if any(name in pair for pair in both)), "base")
    rivals = [name for name in MAIN if (name, baseline) in both]
    if not rivals:
        raise ValueError("no system is compared to the base")
    missing = [(a, b) for a in rivals for b in rivals if a != b and (a, b) not in both]
    if missing:
        raise ValueError(f"the difference of {missing[0][0]} and {missing[0][1]} is missing")
    candidates = [name for name in rivals if both[name, baseline].is_better(min_rows)]
    if "tuned_rag" in candidates and "base_rag" in rivals and not both["tuned_rag", "base_rag"].is_better(min_rows):
        candidates.remove("tuned_rag")
    if not candidates:
        pairs = [(name, baseline) for name in rivals]
        if "tuned_rag" in rivals and "base_rag" in rivals:
            pairs.append(("tuned_rag", "base_rag"))
        told = "; ".join(f"{MAIN[a]} {_against(b, both[a, b], min_rows)}" for a, b in pairs)
        n_rows = min(both[pair].n_rows for pair in pairs)
        if n_rows < min_rows:
            too_few = f"Nothing can be concluded (too few rows: {n_rows} of at least {min_rows})"
            return Verdict("inconclusive", f"{too_few}; by {metric}: {told}.")
        return Verdict("inconclusive", f"No system has earned its place by {metric}: {told}.")
    winner = candidates[0]
    for name in candidates[1:]:
        if both[name, winner].is_better(min_rows):
            winner = name
    others = [baseline, *(name for name in rivals if name != winner)]
    told = ", ".join(_against(other, both[winner, other], min_rows) for other in others)
    openings = {"base_rag": "Retrieval alone does it", "tuned": "Tuning alone does it"}
    opening = openings.get(winner, "Tuning on top of retrieval does it")
    if len(rivals) == 1:
        opening = "Tuning does it"
    return Verdict(f"ship {MAIN[winner]}", f"{opening}: {metric} of {MAIN[winner]} is {told}.")


def _against(other: str, difference: Difference, min_rows: int) -> str:
    if difference.low is None or difference.high is None:
        bounds = "too few rows for an interval"
    else:
        bounds = f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.is_better(min_rows):
        told = f"better; {bounds}"
    elif difference.is_worse(min_rows):
        told = f"worse; {bounds}"
    elif difference.n_rows < min_rows:
        told = bounds
    else:
        told = f"no clear difference; {bounds}"
        # The test is told where it is what the interval does not say.
        if (difference.is_above_zero or difference.is_below_zero) and difference.p_value is not None:
            told += f", p {difference.p_value:.3f}"
    return f"{difference.value:+.3f} against {MAIN[other]} ({told})"
