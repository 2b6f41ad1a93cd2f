"""The evaluation as people read it: one HTML page that needs nothing beside it, and a table for the terminal.

What does not belong here: computing a figure. Everything shown stands in `eval_report` and `predictions` already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ev_platform.evaluation.plots import plot_differences, plot_scores
from ev_platform.evaluation.statistics import SYSTEMS
from ev_platform.evaluation.summary import column_of, order_systems
from ev_platform.pages import render
from ev_platform.storage import frame_fingerprint

# Metric, name for people, format of its figures.
SCORES = (
    ("accuracy", "accuracy", "{:.3f}"),
    ("macro_f1", "macro F1", "{:.3f}"),
    ("exact_match", "exact match", "{:.3f}"),
    ("token_f1", "token F1", "{:.3f}"),
    ("rouge_l", "ROUGE-L", "{:.3f}"),
    ("bleu", "BLEU", "{:.1f}"),
    ("gold_retrieved", "gold passage found", "{:.3f}"),
    ("answer_tokens", "answer, tokens", "{:.1f}"),
    ("latency_ms_p50", "latency p50, ms", "{:,.0f}"),
    ("latency_ms_p95", "latency p95, ms", "{:,.0f}"),
    ("tokens_per_second", "tokens per second", "{:,.1f}"),
)
DIFFERENCES = (
    ("accuracy", "accuracy", "{:+.3f}"),
    ("token_f1", "token F1", "{:+.3f}"),
    ("rouge_l", "ROUGE-L", "{:+.3f}"),
    ("exact_match", "exact match", "{:+.3f}"),
    ("latency_ms", "latency, ms", "{:+,.0f}"),
)
METRIC_NAMES = {metric: name for metric, name, _ in SCORES}
# What the plot of scores shows, of the metrics that occur; the metric that decides comes first.
PLOTTED = ("accuracy", "token_f1", "exact_match", "rouge_l", "macro_f1")
N_ANSWERS = 6  # best, and as many worst

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReportContext:
    """What the page tells besides scores and answers.

    Attributes:
        task: Name of the task.
        description: The task in words.
        metric: That decides, as `eval_report` calls it.
        verdict: What to ship, or "inconclusive".
        reason: One sentence with the figures behind the verdict.
        n_train_rows: Rows the tuned model was trained on.
        base_model: Its base.
        recipe: Name of the training recipe.
        sources: URL of each chunk by chunk_id; chunks that are missing here are named by their id.
    """

    task: str
    description: str
    metric: str
    verdict: str
    reason: str
    n_train_rows: int
    base_model: str
    recipe: str
    sources: Mapping[str, str]


def render_report(metrics: pl.DataFrame, predictions: pl.DataFrame, *, context: ReportContext) -> str:
    """Render the page: verdict, systems with their intervals, paired differences, best and worst answers.

    Args:
        metrics: The `eval_report` table.
        predictions: The `predictions` table it was made from; its fingerprint names the run.
        context: The rest.

    Returns:
        An HTML document with its style and plots inside; the same input gives the same text.
    """
    systems = order_systems(predictions["system"])
    scores = metrics.filter(pl.col("compared_to").is_null())
    differences = metrics.filter(pl.col("compared_to").is_not_null())
    pairs = list(differences.select("system", "compared_to").unique(maintain_order=True).iter_rows())
    # A further system, such as a teacher, is a yardstick: the answers shown are ranked by a system that may ship.
    favourite = [name for name in systems if name in SYSTEMS or name == systems[0]][-1]
    best, worst = _pick(predictions, systems, favourite, context)
    found = set(scores["metric"])
    plotted = [context.metric, *(name for name in PLOTTED if name in found and name != context.metric)][:2]
    plotted_names = " and ".join(METRIC_NAMES[name] for name in plotted)
    deciding = METRIC_NAMES[context.metric]
    return render(
        Path(__file__).parent,
        "report.html.j2",
        context=context,
        run=frame_fingerprint("predictions", predictions)[:12],
        n_rows=predictions["example_id"].n_unique(),
        systems=[_label(name) for name in systems],
        favourite=_label(favourite),
        scores=_cells(scores, [(name, None) for name in systems], SCORES),
        pairs=[(_label(a), _label(b)) for a, b in pairs],
        differences=_cells(differences, pairs, DIFFERENCES),
        score_title=plotted_names[0].upper() + plotted_names[1:],
        score_plot=plot_scores(scores, systems, {name: METRIC_NAMES[name] for name in plotted}),
        deciding=deciding,
        difference_plot=plot_differences(differences, context.metric, deciding) if pairs else None,
        answers=[("Best answers", best), ("Worst answers", worst)],
    )


def print_table(metrics: pl.DataFrame) -> Table:
    """Lay an `eval_report` out for a terminal of 80 columns: one column per system, 95 % intervals in brackets."""
    scores = metrics.filter(pl.col("compared_to").is_null())
    systems = order_systems(scores["system"])
    table = Table(
        title=f"{scores['n_rows'].max()} test rows, 95 % intervals in brackets",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("", no_wrap=True)
    for name in systems:
        table.add_column(_label(name).replace(" + ", "\n+ "), justify="right", no_wrap=True)
    for label, cells in _cells(scores, [(name, None) for name in systems], SCORES):
        table.add_row(label, *("" if cell is None else _terminal_text(cell) for cell in cells))
    return table


def _terminal_text(cell: Cell) -> str:
    # The backslash keeps rich from reading the bracket as a style.
    return f"{cell['value']}\n\\[{cell['bounds']}]" if cell["bounds"] else cell["value"]


def _label(system: str) -> str:
    return SYSTEMS.get(system, system)


def _cells(
    metrics: pl.DataFrame, columns: Sequence[tuple[str, str | None]], shown: Sequence[tuple[str, str, str]]
) -> list[tuple[str, list[Cell | None]]]:
    """Return one row per metric that occurs: its name, and its formatted figures in the order of the columns."""
    found = {(row["system"], row["compared_to"], row["metric"]): row for row in metrics.iter_rows(named=True)}
    table = []
    for metric, label, form in shown:
        rows = [found.get((*column, metric)) for column in columns]
        if any(row is not None for row in rows):
            table.append((label, [None if row is None else _cell(row, form) for row in rows]))
    return table


def _cell(row: Mapping[str, Any], form: str) -> Cell:
    low, high = row["low"], row["high"]
    bounds, sign = "", 0
    if low is not None and high is not None:
        bounds, sign = f"{form.format(low)}, {form.format(high)}", (low > 0) - (high < 0)
    # For a latency, less is better.
    tone = {1: "good", -1: "bad", 0: "open"}[-sign if row["metric"] == "latency_ms" else sign]
    return {"value": form.format(row["value"]), "bounds": bounds, "tone": tone}


def _pick(
    predictions: pl.DataFrame, systems: Sequence[str], favourite: str, context: ReportContext
) -> tuple[list[Cell], list[Cell]]:
    """Return the best and the worst answers of the favourite system.

    They are ordered by the metric that decides; among equals, the best have the largest gain over the base, the worst
    the largest loss.
    """
    score = column_of(context.metric)
    by_example: dict[str, dict[str, Cell]] = {}
    for row in predictions.iter_rows(named=True):
        by_example.setdefault(row["example_id"], {})[row["system"]] = row
    ranked = sorted(
        by_example,
        key=lambda e: (
            -by_example[e][favourite][score],
            by_example[e][systems[0]][score] - by_example[e][favourite][score],
            e,
        ),
    )
    n_best = min(N_ANSWERS, len(ranked) // 2)
    n_worst = min(N_ANSWERS, len(ranked) - n_best)
    cards = [
        _card(by_example[e], systems, favourite, context) for e in (*ranked[:n_best], *reversed(ranked[-n_worst:]))
    ]
    return cards[:n_best], cards[n_best:]


def _card(rows: Mapping[str, Cell], systems: Sequence[str], favourite: str, context: ReportContext) -> Cell:
    row = rows[favourite]
    chunk_ids, gold = row["context_chunk_ids"], row["gold_chunk_id"]
    missed = [gold] if gold is not None and chunk_ids and gold not in chunk_ids else []
    return {
        "question": row["question"],
        "reference": row["reference"],
        "answers": [
            {
                "system": _label(name),
                "text": rows[name]["prediction"],
                "score": f"{METRIC_NAMES[context.metric]} {rows[name][column_of(context.metric)]:.2f}",
            }
            for name in systems
        ],
        "sources": _links(chunk_ids, context.sources, gold),
        "missed": _links(missed, context.sources, None),
    }


def _links(chunk_ids: Sequence[str], sources: Mapping[str, str], gold: str | None) -> list[Cell]:
    """Return where passages come from, each address once; only web addresses may become links."""
    links: dict[str, Cell] = {}
    for chunk_id in chunk_ids:
        url = sources.get(chunk_id, chunk_id)
        link = links.setdefault(
            url, {"text": url, "is_link": url.startswith(("https://", "http://")), "is_gold": False}
        )
        link["is_gold"] = link["is_gold"] or chunk_id == gold
    return list(links.values())
