"""From predictions to the rows of `eval_report`: every score per system, every paired difference.

What does not belong here: the metrics themselves (`metrics`), their intervals (`statistics`), and how the figures are
shown (`report`).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

from ev_platform.errors import UserError
from ev_platform.evaluation.metrics import corpus_bleu, macro_f1
from ev_platform.evaluation.statistics import SYSTEMS, Interval, mean_interval, paired_difference
from ev_platform.records import Metric, to_frame
from ev_platform.tasks.types import TaskType

# What is compared pair by pair, as columns of `predictions`.
PAIRED = ("token_f1", "rouge_l", "exact_match", "latency_ms")
PAIRED_LABELS = ("exact_match", "latency_ms")


def deciding_metric(task_type: TaskType) -> str:
    """Return the metric of `eval_report` that decides: of labels the accuracy, else the type's primary metric."""
    return task_type.primary_metric if task_type.has_corpus else "accuracy"


def column_of(metric: str) -> str:
    """Return the column of `predictions` that a metric is the mean of: an accuracy is the share of exact matches."""
    return "exact_match" if metric == "accuracy" else metric


def order_systems(names: pl.Series) -> list[str]:
    """Return the systems that occur: the four known ones simplest first, then any others by name."""
    found = set(names.to_list())
    return [name for name in SYSTEMS if name in found] + sorted(found - set(SYSTEMS))


def summarise(predictions: pl.DataFrame, *, resamples: int, seed: int, is_labels: bool = False) -> pl.DataFrame:
    """Score every system, and compare every system with every simpler one on the same rows.

    Scores per system: `exact_match`, `token_f1`, `rouge_l` (0 to 1) and `answer_tokens` with intervals; `bleu` (0 to
    100), `latency_ms_p50`, `latency_ms_p95` and `tokens_per_second` (all generated tokens by the sum of latencies)
    without. For a system that was given passages, `gold_retrieved`: the share of the rows with a known supporting
    passage where that passage was among them. Differences: `token_f1`, `rouge_l`, `exact_match`, `latency_ms`.

    Labels have `accuracy` in the place of the exact match, and `macro_f1` over the whole test set, without an interval,
    in the place of the scores that count words.

    Args:
        predictions: The `predictions` table.
        resamples: Bootstrap samples of each interval.
        seed: Of the bootstrap; the order of the rows plays no part.
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
    report = [row for name in systems for row in _scores(name, answers[name], resamples, seed, is_labels)]
    for simpler, system in combinations(systems, 2):
        for column in PAIRED_LABELS if is_labels else PAIRED:
            a, b = answers[system][column].to_numpy(), answers[simpler][column].to_numpy()
            difference = paired_difference(a, b, resamples=resamples, seed=seed)
            report.append(_metric(system, simpler, _name(column, is_labels), difference, len(a)))
    return to_frame("eval_report", report)


def differences_of(metrics: pl.DataFrame, metric: str) -> dict[tuple[str, str], Interval]:
    """Return what `verdict` reads from an `eval_report` table: the paired differences of one metric."""
    rows = metrics.filter((pl.col("metric") == metric) & pl.col("compared_to").is_not_null())
    return {
        (row["system"], row["compared_to"]): Interval(row["value"], row["low"], row["high"])
        for row in rows.iter_rows(named=True)
    }


def _name(column: str, is_labels: bool) -> str:
    return "accuracy" if is_labels and column == "exact_match" else column


def _scores(system: str, rows: pl.DataFrame, resamples: int, seed: int, is_labels: bool) -> list[Metric]:
    n = len(rows)
    means = {_name("exact_match", is_labels): "exact_match"}
    if not is_labels:
        means |= {"token_f1": "token_f1", "rouge_l": "rouge_l"}
    means["answer_tokens"] = "n_completion_tokens"
    report = []
    for metric, column in means.items():
        interval = mean_interval(rows[column].to_numpy(), resamples=resamples, seed=seed)
        report.append(_metric(system, None, metric, interval, n))
    latency_ms = rows["latency_ms"].to_numpy()
    p50, p95 = np.percentile(latency_ms, [50, 95])
    answers, references = rows["prediction"].to_list(), rows["reference"].to_list()
    whole = {"macro_f1": macro_f1(answers, references)} if is_labels else {"bleu": corpus_bleu(answers, references)}
    plain = whole | {"latency_ms_p50": float(p50), "latency_ms_p95": float(p95)}
    if latency_ms.sum() > 0:
        plain["tokens_per_second"] = float(rows["n_completion_tokens"].sum() / (latency_ms.sum() / 1000))
    report += [_metric(system, None, metric, Interval(value, None, None), n) for metric, value in plain.items()]
    has_gold = rows.filter(pl.col("gold_chunk_id").is_not_null())
    if rows["context_chunk_ids"].list.len().sum() > 0 and len(has_gold) > 0:
        is_found = [row["gold_chunk_id"] in row["context_chunk_ids"] for row in has_gold.iter_rows(named=True)]
        interval = mean_interval(np.array(is_found, dtype=float), resamples=resamples, seed=seed)
        report.append(_metric(system, None, "gold_retrieved", interval, len(has_gold)))
    return report


def _metric(system: str, compared_to: str | None, metric: str, interval: Interval, n_rows: int) -> Metric:
    return Metric(system, compared_to, metric, interval.value, interval.low, interval.high, n_rows)
