"""What a version has to show before it answers in the place of the champion: ten checks over tables and numbers.

What belongs here: the conditions and the sentences that tell them, with their figures. What does not: where the
figures come from (`evidence`) and what follows from the checks (`promotion`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ev_platform.dataset.overlap import Overlap
from ev_platform.evaluation.names import METRIC_NAMES
from ev_platform.evaluation.statistics import SYSTEMS, Interval
from ev_platform.evaluation.summary import deciding_metric, differences_of
from ev_platform.records import GateCheck, to_frame
from ev_platform.registry.strangers import Strangers
from ev_platform.registry.versions import SHIPPED
from ev_platform.tasks.config import PromotionConfig
from ev_platform.tasks.types import TaskType

# Check to what it asks, in the order in which a person wants to read them.
CHECKS = {
    "better_than_base": "The system to ship is better than the base model on equal terms.",
    "not_worse_than_champion": "It does not lose more than the margin against the champion, with 97.5 % confidence.",
    "enough_rows": "There are enough test rows to conclude anything.",
    "latency": "It answers within the latency budget.",
    "retention": "It has not forgotten what the base model knew besides the task.",
    "abstention": "It declines what cannot be answered or is outside the task, and answers the rest, as before.",
    "untainted": "It was not made from anything that had to be taken down.",
    "nothing_leaked": "No row that it was trained on meets a test row.",
    "export_agrees": "What is served was made from this adapter and says what the trained model says.",
    "serving_agrees": "The endpoint answers as the evaluation did.",
}

_NO_CHAMPION = "there is no champion to compare with"
_NOT_ASKED = "could not be asked"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the endpoint made of a frozen sample of test questions.

    Attributes:
        n: Questions asked.
        n_same: Answers equal to those of the evaluation.
        difference: The first that is not, told in words.
        error: Why the version cannot be served at all.
        n_left_out: Test rows that the endpoint would have refused, as those that are longer than a message may be.
    """

    n: int
    n_same: int
    difference: str | None = None
    error: str | None = None
    n_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about a version when it is judged.

    Attributes:
        version: Row of `registered_model`.
        champion: The version it is compared with; None where there is none.
        is_champions_own: Whether its weights are those of the version that answers now.
        metrics: The `eval_report` table.
        general: Of "base" and "tuned", the accuracy and the perplexity on the general set; empty where not measured.
        lost: Share of the general questions that tuning lost, with its interval; None where not measured.
        leaks: Training rows that meet test rows.
        n_training_rows: Rows that were looked at for leaks.
        flaw: Why the served weights are not those of the adapter; None where they are.
        token_agreement: Share of tokens on which export and model agree; None where there was nothing to compare on.
        strangers: How often questions outside the task are declined; None where that cannot be asked.
        replayed: What the endpoint answers.
        taint: Why it must not answer, in a clause, because something was taken down; None where nothing of it was.
    """

    version: Mapping[str, Any]
    champion: str | None
    is_champions_own: bool
    metrics: pl.DataFrame
    general: Mapping[str, Mapping[str, float]]
    lost: Interval | None
    leaks: Sequence[Overlap]
    n_training_rows: int
    flaw: str | None
    token_agreement: float | None
    strangers: Strangers | None
    replayed: Replayed
    taint: str | None


@dataclass(frozen=True, slots=True)
class _Finding:
    passed: bool
    value: float | None
    limit: float | None
    reason: str


def shipped_system(version: Mapping[str, Any], task_type: TaskType, took_part: set[str]) -> tuple[str, str]:
    """Return the system that a version answers as, and the base system on equal terms with it.

    Args:
        version: Row of `registered_model`.
        task_type: Of the task.
        took_part: Systems of the evaluation.
    """
    wanted = json.loads(version["serving"]).get("has_retrieval", True)
    tuned = {passages: name for name, model, passages in task_type.systems() if model == "tuned" and name in took_part}
    has_passages = wanted if wanted in tuned else not wanted
    (base,) = (name for name, model, passages in task_type.systems() if (model, passages) == ("base", has_passages))
    return tuned[has_passages], base


def judge(evidence: Evidence, task_type: TaskType, config: PromotionConfig) -> pl.DataFrame:
    """Judge a version; returns the table `promotion_gate`, one row for each of `CHECKS`.

    A check that has nothing to compare with passes and says so.

    Args:
        evidence: See `evidence.collect`.
        task_type: Of the task.
        config: The margins.
    """
    system, base = shipped_system(evidence.version, task_type, set(evidence.metrics["system"]))
    scores = _Scores(evidence, system, base, deciding_metric(task_type))
    findings = {
        "better_than_base": _better_than_base(scores, config),
        "not_worse_than_champion": _not_worse_than_champion(scores, config),
        "enough_rows": _enough_rows(scores, config),
        "latency": _latency(scores, config),
        "retention": _retention(evidence.general, evidence.lost, config),
        "abstention": _abstention(scores, evidence.strangers, config),
        "untainted": _untainted(evidence.taint),
        "nothing_leaked": _nothing_leaked(evidence),
        "export_agrees": _export_agrees(evidence, config),
        "serving_agrees": _serving_agrees(evidence.replayed, config),
    }
    return to_frame(
        "promotion_gate",
        [
            GateCheck(
                model_version=evidence.version["model_version"],
                champion=evidence.champion,
                check=check,
                passed=findings[check].passed,
                value=findings[check].value,
                limit=findings[check].limit,
                reason=findings[check].reason,
            )
            for check in CHECKS
        ],
    )


def asked_in_vain(gate: pl.DataFrame) -> dict[str, str]:
    """Return the checks for which the endpoint or the champion could not be asked, which may pass by itself.

    Args:
        gate: The `promotion_gate` table.

    Returns:
        What each found, by its name.
    """
    check, has_no_figure = pl.col("check"), ~pl.col("passed") & pl.col("value").is_null()
    vain = ((check == "serving_agrees") & has_no_figure) | (
        (check == "abstention") & pl.col("reason").str.contains(_NOT_ASKED, literal=True)
    )
    return dict(gate.filter(vain).select("check", "reason").iter_rows())


class _Scores:
    """Figures of `eval_report`, by name."""

    def __init__(self, evidence: Evidence, system: str, base: str, metric: str):
        self.version, self.champion = evidence.version, evidence.champion
        self.is_champions_own = evidence.is_champions_own
        self.system, self.base, self.metric = system, base, metric
        self.label, self.base_label = SYSTEMS[system], SYSTEMS[base]
        self.differences = differences_of(evidence.metrics, metric)
        own = evidence.metrics.filter(pl.col("compared_to").is_null())
        self._values = {(s, m): v for s, m, v in own.select("system", "metric", "value").rows()}
        self.n_rows: int = {(s, m): n for s, m, n in own.select("system", "metric", "n_rows").rows()}[system, metric]

    def value(self, system: str, metric: str) -> float | None:
        return self._values.get((system, metric))

    @property
    def has_champion(self) -> bool:
        """Whether the champion took part in the evaluation."""
        return (self.system, "champion") in self.differences

    @property
    def rival(self) -> tuple[str, str]:
        """The system whose place is to be taken, and its name for people."""
        return ("champion", f"the champion {self.champion}") if self.has_champion else (self.base, self.base_label)


def _bounds(low: float | None, high: float | None) -> str:
    return "too few rows for an interval" if low is None or high is None else f"95 % interval {low:+.3f} to {high:+.3f}"


def _better_than_base(scores: _Scores, config: PromotionConfig) -> _Finding:
    difference, name = scores.differences[scores.system, scores.base], METRIC_NAMES[scores.metric]
    told = (
        f"{name} of {scores.label} is {difference.value:+.3f} against {scores.base_label} "
        f"({_bounds(difference.low, difference.high)})"
    )
    if difference.p_value is not None:
        told += f", p = {difference.p_value:.3g}"
    if difference.is_worse(config.min_rows):
        told += ": the tuned model is worse"
    verdict = scores.version["verdict"]
    passed = verdict in SHIPPED and difference.is_better(config.min_rows)
    return _Finding(passed, difference.low, 0.0, f"The verdict is {verdict!r}; {told}.")


def _not_worse_than_champion(scores: _Scores, config: PromotionConfig) -> _Finding:
    limit = -config.champion_margin
    if scores.champion is None:
        return _Finding(True, None, limit, "There is no champion to compare with.")
    if not scores.has_champion and scores.is_champions_own:
        reason = (
            f"{scores.champion} could not be loaded to compare with, but the model is the champion's own, registered "
            "anew (under a new prompt template): there is no other champion to be worse than."
        )
        return _Finding(True, None, limit, reason)
    if not scores.has_champion:
        reason = (
            f"The champion {scores.champion} could not be loaded and took no part in the evaluation: nothing is known "
            "about the difference, so a person has to decide."
        )
        return _Finding(False, None, limit, reason)
    difference = scores.differences[scores.system, "champion"]
    passed = difference.low is not None and difference.low > limit
    bounds = _bounds(difference.low, difference.high)
    return _Finding(
        passed,
        difference.low,
        limit,
        f"{METRIC_NAMES[scores.metric]} of {scores.label} is {difference.value:+.3f} against the champion "
        f"{scores.champion} ({bounds}); its lower end has to be above {limit:+.3f}.",
    )


def _enough_rows(scores: _Scores, config: PromotionConfig) -> _Finding:
    n, least = scores.n_rows, config.min_rows
    reason = f"There are {n} test rows; " + (
        f"{least} are enough." if n >= least else f"nothing can be concluded from fewer than {least}."
    )
    return _Finding(n >= least, float(n), float(least), reason)


def _latency(scores: _Scores, config: PromotionConfig) -> _Finding:
    rival, name = scores.rival
    own, theirs = (scores.value(system, "latency_ms_p50") for system in (scores.system, rival))
    p95, bound = scores.value(scores.system, "latency_ms_p95"), config.max_latency_ms_p95
    if p95 is not None and bound is not None and p95 > bound:
        return _Finding(False, p95, bound, f"One answer in twenty takes {p95:,.0f} ms or more; {bound:,.0f} ms may be.")
    if own is None or not theirs:
        return _Finding(True, None, config.max_latency_ratio, "No latency was measured to compare with.")
    ratio = own / theirs
    return _Finding(
        ratio <= config.max_latency_ratio,
        ratio,
        config.max_latency_ratio,
        f"The median answer takes {own:,.0f} ms, {ratio:.2f} times the {theirs:,.0f} ms of {name}; "
        f"{config.max_latency_ratio:g} times may be.",
    )


def _retention(general: Mapping[str, Mapping[str, float]], lost: Interval | None, config: PromotionConfig) -> _Finding:
    margin, most = config.retention_margin, config.max_perplexity_ratio
    if lost is None or not {"base", "tuned"} <= general.keys():
        return _Finding(True, None, margin, "General ability was not measured: the model writes no text.")
    base, tuned = general["base"], general["tuned"]
    ratio = tuned["perplexity"] / base["perplexity"]
    told = (
        f"Of the general questions it answers {tuned['accuracy']:.0%} and the base model {base['accuracy']:.0%} (95 % "
        f"interval of the loss {lost.low:+.0%} to {lost.high:+.0%}; more than {margin:.0%} must not be certain); its "
        f"perplexity of neutral text is {ratio:.2f} times the base model's ({most:g} times may be)."
    )
    if not ratio <= most:  # also where it is not a number
        return _Finding(False, ratio, most, told)
    # Of so few questions one in seven is lost by chance alone: what fails is a loss that chance does not explain.
    return _Finding(lost.low is not None and round(lost.low, 9) <= margin, lost.low, margin, told)


def _abstention(scores: _Scores, strangers: Strangers | None, config: PromotionConfig) -> _Finding:
    rival, name = scores.rival
    margin = config.abstention_margin
    worst, told = None, []
    for metric, sign, what in (
        ("abstention_recall", 1, "It declines {own:.0%} of what has no answer ({name}: {theirs:.0%})"),
        ("abstention_false", -1, "it declines {own:.0%} of what has one ({name}: {theirs:.0%})"),
    ):
        own, theirs = scores.value(scores.system, metric), scores.value(rival, metric)
        if own is None or theirs is None:
            continue
        lost = round(sign * (theirs - own), 9) + 0.0  # never -0
        worst = lost if worst is None else max(worst, lost)
        told.append(what.format(own=own, theirs=theirs, name=name))
    if strangers is not None:
        asked, theirs = f"of {strangers.n} questions outside the task", strangers.champion_declined
        if theirs is None:
            champion = f"the champion {scores.champion} {_NOT_ASKED}" if scores.champion else _NO_CHAMPION
            told.append(f"{asked} it declines {strangers.declined:.0%} ({champion})")
        else:
            lost = round(theirs - strangers.declined, 9) + 0.0
            worst = lost if worst is None else max(worst, lost)
            told.append(f"{asked} it declines {strangers.declined:.0%} (the champion {scores.champion}: {theirs:.0%})")
    if not told:
        return _Finding(True, None, margin, "Nothing is known about declining: answers are labels, or no row asks it.")
    reason = f"{'; '.join(told)}; {margin:.0%} may be lost."
    return _Finding(worst is None or worst <= margin, worst, margin, reason[0].upper() + reason[1:])


def _untainted(taint: str | None) -> _Finding:
    if taint is not None:
        return _Finding(False, None, None, f"It must not answer: {taint}.")
    return _Finding(True, None, None, "Nothing that it was made from had to be taken down.")


def _nothing_leaked(evidence: Evidence) -> _Finding:
    n = len(evidence.leaks)
    if not n:
        reason = f"None of {evidence.n_training_rows} training rows meets a test row."
        return _Finding(True, 0.0, 0.0, reason)
    first = evidence.leaks[0]
    reason = (
        f"{n} training rows meet a test row, such as {first.training_question!r} and {first.test_question!r} "
        f"({first.reason})."
    )
    return _Finding(False, float(n), 0.0, reason)


def _export_agrees(evidence: Evidence, config: PromotionConfig) -> _Finding:
    rate, least = evidence.token_agreement, config.min_export_agreement
    if evidence.flaw is not None:
        return _Finding(False, rate, least, evidence.flaw)
    if rate is None:
        return _Finding(True, None, least, "There were no validation rows to compare the export with the model on.")
    return _Finding(
        rate >= least,
        rate,
        least,
        f"On {rate:.1%} of the compared tokens the export says what the trained model says; {least:.0%} are needed.",
    )


def _serving_agrees(replayed: Replayed, config: PromotionConfig) -> _Finding:
    least = config.min_replay_agreement
    if replayed.error is not None:
        return _Finding(False, None, least, replayed.error)
    left_out = f"{replayed.n_left_out} test rows that the endpoint does not accept were left out"
    if not replayed.n:
        why = left_out if replayed.n_left_out else "every test row brings its own passage"
        return _Finding(True, None, least, f"Nothing was replayed: {why}.")
    rate = replayed.n_same / replayed.n
    reason = f"The endpoint gave {replayed.n_same} of {replayed.n} answers as the evaluation did ({least:.0%} needed)"
    reason += f"; {left_out}" if replayed.n_left_out else ""
    told = f"{reason}; {replayed.difference}." if replayed.difference else f"{reason}."
    return _Finding(rate >= least, rate, least, told)
