"""From predictions to the rows of `eval_report`: every score per system, every paired difference.

What does not belong here: the metrics themselves (`metrics`), their intervals (`statistics`), and how the figures are
shown (`report`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import polars as pl

from ev_platform.errors import UserError
from ev_platform.evaluation.metrics import MIN_GROUNDED, confusion, corpus_bleu, macro_f1, per_class
from ev_platform.evaluation.names import METRIC_NAMES
from ev_platform.evaluation.statistics import (
    FLOORS,
    MAIN,
    SYSTEMS,
    Difference,
    Interval,
    Verdict,
    mean_interval,
    paired_difference,
    verdict,
)
from ev_platform.records import Metric, to_frame
from ev_platform.tasks.types import TaskType

# What is compared pair by pair, as columns of `predictions`.
PAIRED = ("token_f1", "rouge_l", "exact_match", "latency_ms")
PAIRED_LABELS = ("exact_match", "latency_ms")

# Means over all rows of a system, as columns of `predictions`.
MEANS = ("exact_match", "token_f1", "rouge_l", "rouge_1", "rouge_2", "chrf", "meteor")


def deciding_metric(task_type: TaskType) -> str:
    """Return the metric of `eval_report` that decides: of labels the accuracy, else the type's primary metric."""
    return task_type.primary_metric if task_type.has_corpus else "accuracy"


def column_of(metric: str) -> str:
    """Return the column of `predictions` that a metric is the mean of: an accuracy is the share of exact matches."""
    return "exact_match" if metric == "accuracy" else metric


def order_systems(names: pl.Series) -> list[str]:
    """Return the systems that occur: the known ones in the order of `SYSTEMS`, then any others by name."""
    found = set(names.to_list())
    return [name for name in SYSTEMS if name in found] + sorted(found - set(SYSTEMS))


def equal_terms(task_type: TaskType, took_part: set[str]) -> tuple[str, str]:
    """Return a tuned and a base system that differ in nothing but training: both with passages where they took part."""
    tuned, _, has_passages = [s for s in task_type.systems() if s[1] == "tuned" and s[0] in took_part][-1]
    (base,) = (name for name, model, passages in task_type.systems() if (model, passages) == ("base", has_passages))
    return tuned, base


def summarise(predictions: pl.DataFrame, *, resamples: int, seed: int, is_labels: bool = False) -> pl.DataFrame:
    """Score every system, and compare the four main systems with each other, the floors and the champion, row by row.

    Scores per system, with intervals: `exact_match`, `token_f1`, `rouge_l`, `rouge_1`, `rouge_2`, `meteor` (0 to 1),
    `chrf` (0 to 100) and `answer_tokens`; without: `bleu` (0 to 100), `latency_ms_p50`, `latency_ms_p95` and
    `tokens_per_second` (all generated tokens by the sum of latencies). Over some of the rows, with intervals:

    - `abstention_recall`: the share of the rows without an answer where the system says so;
    - `abstention_false`: the share of the other rows where it says so;
    - `groundedness`: of the answers that do not abstain and were given passages, how much stands in them, on average;
    - `citation_support`: the share of these answers of which at least `MIN_GROUNDED` stands in their passages, which
      are what an answer cites;
    - `gold_retrieved`: the share of the rows with a known supporting passage where that passage was among those given;
      the champion has it only if its passages hold that of every such row.

    Labels have `accuracy` in the place of the exact match. Instead of scores that count words they have, over the whole
    test set and without intervals, `macro_f1`, `f1/<label>` of every label and `confusion/<true>/<predicted>` counts.

    Differences, with interval and p-value: `token_f1`, `rouge_l`, `exact_match` and `latency_ms`; of labels `accuracy`
    and `latency_ms`. Latencies are compared where both are those of a model.

    Args:
        predictions: The `predictions` table.
        resamples: Bootstrap samples of each interval.
        seed: Of the bootstrap and of the permutation test; the order of the rows plays no part.
        is_labels: Whether the answers are labels.

    Returns:
        The `eval_report` table.

    Raises:
        UserError: If there are no predictions, or the systems did not answer the same rows once each.
    """
    if predictions.is_empty():
        raise UserError("There is nothing to evaluate: the table predictions is empty; look at the table benchmark.")
    systems = order_systems(predictions["system"])
    answers = {name: predictions.filter(pl.col("system") == name).sort("example_id") for name in systems}
    first = answers[systems[0]]["example_id"]
    for name, rows in answers.items():
        if not first.equals(rows["example_id"]) or rows["example_id"].n_unique() != len(rows):
            raise UserError(
                f"In the table predictions, {name} ({len(rows)} rows) and {systems[0]} ({len(first)} rows) have not "
                f"answered the same examples once each: materialize predictions again."
            )
    n_gold = max(rows["gold_chunk_id"].count() for rows in answers.values())
    report = []
    for name, rows in answers.items():
        intervals = _means(rows, is_labels) | ({} if is_labels else _shares(rows, n_gold))
        for metric, values in intervals.items():
            interval = mean_interval(values, resamples=resamples, seed=seed)
            report.append(_metric(name, None, metric, interval, len(values)))
        for metric, value in _plain_figures(rows, is_labels).items():
            report.append(_metric(name, None, metric, Interval(value, None, None), len(rows)))
    for system, other in _pairs(systems):
        for column in PAIRED_LABELS if is_labels else PAIRED:
            if column == "latency_ms" and other in FLOORS:
                continue
            a, b = answers[system][column].to_numpy(), answers[other][column].to_numpy()
            difference = paired_difference(a, b, resamples=resamples, seed=seed)
            report.append(_metric(system, other, _name(column, is_labels), difference, len(a)))
    return to_frame("eval_report", report)


def differences_of(metrics: pl.DataFrame, metric: str) -> dict[tuple[str, str], Difference]:
    """Return what `verdict` reads from an `eval_report` table: the paired differences of one metric."""
    rows = metrics.filter((pl.col("metric") == metric) & pl.col("compared_to").is_not_null())
    return {
        (row["system"], row["compared_to"]): Difference(
            row["value"], row["low"], row["high"], row["p_value"], row["n_rows"]
        )
        for row in rows.iter_rows(named=True)
    }


def judge(metrics: pl.DataFrame, task_type: TaskType, min_rows: int) -> Verdict:
    """Return the verdict on an `eval_report` table: what to ship, by the metric that decides for a task type.

    Args:
        metrics: The table.
        task_type: Of the task.
        min_rows: Test rows below which nothing is concluded (`promotion.min_rows`).
    """
    metric = deciding_metric(task_type)
    return verdict(differences_of(metrics, metric), METRIC_NAMES[metric], min_rows)


def mean_scores(predictions: pl.DataFrame, *, is_labels: bool) -> list[tuple[str, str, float, int]]:
    """Return (system, metric, value, rows) of the scores that are means over all rows, without intervals."""
    scores = []
    for system in order_systems(predictions["system"]):
        rows = predictions.filter(pl.col("system") == system)
        figures = {metric: float(values.mean()) for metric, values in _means(rows, is_labels).items()}
        if is_labels:
            figures["macro_f1"] = macro_f1(rows["prediction"].to_list(), rows["reference"].to_list())
        scores += [(system, metric, value, len(rows)) for metric, value in figures.items() if metric != "answer_tokens"]
    return scores


def sd_of_difference(predictions: pl.DataFrame, task_type: TaskType) -> float | None:
    """Return how much the rows of a tuned and a base system differ, as a standard deviation of the deciding metric.

    Args:
        predictions: The `predictions` table.
        task_type: Of the task.

    Returns:
        Of the pair of `equal_terms`; None where it cannot be told: fewer than two rows, or all of them level.
    """
    took_part = set(predictions["system"])
    if not took_part & {name for name, model, _ in task_type.systems() if model == "tuned"}:
        return None
    tuned, base = equal_terms(task_type, took_part)
    column = column_of(deciding_metric(task_type))
    a, b = (
        predictions.filter(pl.col("system") == name).sort("example_id")[column].to_numpy() for name in (tuned, base)
    )
    if len(a) < 2 or len(a) != len(b):
        return None
    return float(np.std(a - b, ddof=1)) or None


def _pairs(systems: list[str]) -> Iterator[tuple[str, str]]:
    main = [name for name in systems if name in MAIN]
    for simpler, system in combinations(main, 2):
        yield system, simpler
    for other in (*FLOORS, "champion"):
        if other in systems:
            for system in main:
                yield system, other


def _name(column: str, is_labels: bool) -> str:
    return "accuracy" if is_labels and column == "exact_match" else column


def _means(rows: pl.DataFrame, is_labels: bool) -> dict[str, np.ndarray]:
    """Return the figures behind each mean over all rows; without those that a system has none of."""
    columns = {_name(column, is_labels): column for column in (MEANS[:1] if is_labels else MEANS)}
    columns["answer_tokens"] = "n_completion_tokens"
    return {metric: rows[column].to_numpy() for metric, column in columns.items() if rows[column].null_count() == 0}


def _shares(rows: pl.DataFrame, n_gold: int) -> dict[str, np.ndarray]:
    """Return the figures behind each mean over some of the rows; without those that have no rows.

    Args:
        rows: Of a system.
        n_gold: Rows with a known supporting passage; over fewer of them the figure would not be that of the others.
    """
    abstains, has_answer = pl.col("is_abstention"), pl.col("is_answerable")
    grounded = rows.filter(~abstains).drop_nulls("groundedness")["groundedness"]
    has_gold = rows.drop_nulls("gold_chunk_id")
    if has_gold.height < n_gold or rows["context_chunk_ids"].list.len().sum() == 0:
        has_gold = has_gold.clear()
    figures = {
        "abstention_recall": rows.filter(~has_answer)["is_abstention"].drop_nulls(),
        "abstention_false": rows.filter(has_answer)["is_abstention"].drop_nulls(),
        "groundedness": grounded,
        "citation_support": grounded >= MIN_GROUNDED,
        "gold_retrieved": has_gold.select(pl.col("gold_chunk_id").is_in("context_chunk_ids")).to_series(),
    }
    return {metric: values.cast(pl.Float64).to_numpy() for metric, values in figures.items() if len(values)}


def _plain_figures(rows: pl.DataFrame, is_labels: bool) -> dict[str, float]:
    """Return what has no interval: scores of the whole test set, percentiles, rates."""
    answers, references = rows["prediction"].to_list(), rows["reference"].to_list()
    figures = {"macro_f1": macro_f1(answers, references)} if is_labels else {"bleu": corpus_bleu(answers, references)}
    if rows["latency_ms"].null_count() == 0:
        latency_ms = rows["latency_ms"].to_numpy()
        p50, p95 = np.percentile(latency_ms, [50, 95])
        figures |= {"latency_ms_p50": float(p50), "latency_ms_p95": float(p95)}
        if latency_ms.sum() > 0 and rows["n_completion_tokens"].null_count() == 0:
            figures["tokens_per_second"] = float(rows["n_completion_tokens"].sum() / (latency_ms.sum() / 1000))
    if is_labels:
        figures |= {f"f1/{label}": f1 for label, f1 in per_class(answers, references).items()}
        figures |= {
            f"confusion/{true}/{given}": float(n) for (true, given), n in confusion(answers, references).items()
        }
    return figures


def _metric(system: str, compared_to: str | None, metric: str, interval: Interval, n_rows: int) -> Metric:
    p_value = interval.p_value if isinstance(interval, Difference) else None
    return Metric(system, compared_to, metric, interval.value, interval.low, interval.high, n_rows, p_value)
