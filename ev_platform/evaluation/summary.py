"""From predictions to the rows of `eval_report`: every score per system, every paired difference.

What does not belong here: the metrics themselves (`metrics`), their intervals (`statistics`), and how the figures are
shown (`report`).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

from ev_platform.errors import UserError
from ev_platform.evaluation.metrics import corpus_bleu
from ev_platform.evaluation.statistics import SYSTEMS, Interval, mean_interval, paired_difference
from ev_platform.records import Metric, to_frame

PAIRED = ("token_f1", "rouge_l", "exact_match", "latency_ms")


def order_systems(names: pl.Series) -> list[str]:
    """Return the systems that occur: the four known ones simplest first, then any others by name."""
    found = set(names.to_list())
    return [name for name in SYSTEMS if name in found] + sorted(found - set(SYSTEMS))


def summarise(predictions: pl.DataFrame, *, resamples: int, seed: int) -> pl.DataFrame:
    """Score every system, and compare every system with every simpler one on the same rows.

    Scores per system: `exact_match`, `token_f1`, `rouge_l` (0 to 1) and `answer_tokens` with intervals; `bleu` (0 to
    100), `latency_ms_p50`, `latency_ms_p95` and `tokens_per_second` (all generated tokens by the sum of latencies)
    without. For a system that was given passages, `gold_retrieved`: the share of the rows with a known supporting
    passage where that passage was among them. Differences: `token_f1`, `rouge_l`, `exact_match`, `latency_ms`.

    Args:
        predictions: The `predictions` table.
        resamples: Bootstrap samples of each interval.
        seed: Of the bootstrap; the order of the rows plays no part.

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
    report = [row for name in systems for row in _scores(name, answers[name], resamples, seed)]
    for simpler, system in combinations(systems, 2):
        for metric in PAIRED:
            a, b = answers[system][metric].to_numpy(), answers[simpler][metric].to_numpy()
            difference = paired_difference(a, b, resamples=resamples, seed=seed)
            report.append(_metric(system, simpler, metric, difference, len(a)))
    return to_frame("eval_report", report)


def token_f1_differences(metrics: pl.DataFrame) -> dict[tuple[str, str], Interval]:
    """Return what `verdict` reads from an `eval_report` table: the paired differences of token F1."""
    rows = metrics.filter((pl.col("metric") == "token_f1") & pl.col("compared_to").is_not_null())
    return {
        (row["system"], row["compared_to"]): Interval(row["value"], row["low"], row["high"])
        for row in rows.iter_rows(named=True)
    }


def _scores(system: str, rows: pl.DataFrame, resamples: int, seed: int) -> list[Metric]:
    n = len(rows)
    report = []
    for metric, column in (
        ("exact_match", "exact_match"),
        ("token_f1", "token_f1"),
        ("rouge_l", "rouge_l"),
        ("answer_tokens", "n_completion_tokens"),
    ):
        interval = mean_interval(rows[column].to_numpy(), resamples=resamples, seed=seed)
        report.append(_metric(system, None, metric, interval, n))
    latency_ms = rows["latency_ms"].to_numpy()
    p50, p95 = np.percentile(latency_ms, [50, 95])
    plain = {
        "bleu": corpus_bleu(rows["prediction"].to_list(), rows["reference"].to_list()),
        "latency_ms_p50": float(p50),
        "latency_ms_p95": float(p95),
    }
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
