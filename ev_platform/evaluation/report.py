"""The evaluation as people read it: one HTML page that needs nothing beside it, and tables for the terminal.

What does not belong here: computing a figure (`figures`, `surroundings`), and writing the page (`pages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from ev_platform.evaluation.calibration import GROUPS
from ev_platform.evaluation.figures import label_of
from ev_platform.evaluation.names import COSTS, DIFFERENCES, MEANINGS, METRIC_NAMES, SCORES
from ev_platform.evaluation.plots import (
    MAX_LABELS,
    confusion_size,
    plot_confusion,
    plot_differences,
    plot_scores,
    plotted_metrics,
)
from ev_platform.evaluation.sections import sections_of
from ev_platform.evaluation.statistics import ALPHA
from ev_platform.evaluation.summary import order_systems
from ev_platform.pages import render

__all__ = ["DIFFERENCES", "METRIC_NAMES", "SCORES", "print_abstention", "print_table", "render_report"]

# What the terminal shows with intervals, as many as 80 columns hold beside the names of the systems, and without.
PRINTED = ("accuracy", "macro_f1", "token_f1", "exact_match", "rouge_l", "chrf")
PRINTED_PLAIN = (
    "chrf",
    "bleu",
    "groundedness",
    "citation_support",
    "abstention_recall",
    "abstention_false",
    "gold_retrieved",
)
N_INTERVALS = 4
REGRESSIONS = "Regressions against the champion"

Row = Mapping[str, Any]
Cell = dict[str, Any]


def render_report(report: Row) -> str:
    """Render the page: verdict, systems with their intervals, differences, answers, and whatever else is told.

    Args:
        report: See `figures.describe_evaluation` and `surroundings.describe_surroundings`.

    Returns:
        An HTML document with its style and plots inside; the same input gives the same text.
    """
    systems, favourite, metric = report["systems"], report["favourite"], report["metric"]
    names = [METRIC_NAMES[name] for name in plotted_metrics(report["scores"], metric)]
    title = " and ".join(names)
    pairs = list(dict.fromkeys((row["system"], row["compared_to"]) for row in report["differences"]))
    pairs.sort(key=lambda pair: favourite not in pair)  # stable: what the verdict rests on comes first
    columns = [(name, None) for name in systems]
    regressions = report["regressions"]
    n_labels = len({pair["right"] for pair in report["confusion"]})
    return render(
        Path(__file__).parent,
        "report.html.j2",
        report=report,
        label_of=label_of,
        favourite=label_of(favourite),
        systems=systems,
        scores=_cells(report["scores"], columns, [shown for shown in SCORES if shown[0] not in COSTS]),
        costs=_cells(report["scores"], columns, [shown for shown in SCORES if shown[0] in COSTS]),
        pairs=pairs,
        differences=_cells(report["differences"], pairs, DIFFERENCES),
        score_title=title[0].upper() + title[1:],
        score_plot=plot_scores(report["scores"], systems, metric),
        deciding=METRIC_NAMES[metric],
        difference_plot=plot_differences(report["differences"], favourite, metric),
        meanings=[text for name, text in MEANINGS.items() if any(row["metric"] == name for row in report["scores"])],
        confusion_plot=plot_confusion(report["confusion"]),
        confusion_width=round(6 * confusion_size(report["confusion"])[0], 1),  # 96 pixels an inch, 16 a rem
        confusion_note=f"The {MAX_LABELS} of {n_labels} labels with most errors." if n_labels > MAX_LABELS else "",
        sections=sections_of(report),
        gate_title=gate_title(report["gate"]) if report["gate"] else "",
        regression_title=REGRESSIONS,
        answers=[
            (REGRESSIONS, regressions["answers"] if regressions else []),
            (f"Worst answers of {label_of(favourite)}", report["worst"]),
            (f"Best answers of {label_of(favourite)}", report["best"]),
        ],
        is_link=lambda address: address.startswith(("https://", "http://")),
    )


def gate_title(gate: Row) -> str:
    """Return in a few words what became of the evaluated version at the gate, and who answers now."""
    version, decision, champion = gate["model_version"], gate["decision"], gate["champion"]
    if decision is None:
        return f"Not decided yet: {version}"
    if decision["decision"] == "kept":
        if champion is None:
            return "Not promoted: there is no champion"
        return f"Not promoted: {champion} {'goes on' if champion == decision['champion_after'] else 'answers now'}"
    promoted = {
        "overridden": "Promoted by a person against the gate",
        "rolled_back": "Brought back by a rollback",
    }.get(decision["decision"], "Promoted")
    if champion == version:
        return f"{promoted}: {version} answers now"
    became = "rolled back" if gate["was_rolled_back"] else "replaced"
    return f"{promoted}, then {became}: {champion} answers now, not {version}"


def print_table(metrics: pl.DataFrame) -> Group:
    """Lay an `eval_report` out for a terminal of 80 columns: one line per system.

    First the scores that matter most with their 95 % intervals in brackets, then others, then what an answer takes. The
    page has them all.
    """
    scores = metrics.filter(pl.col("compared_to").is_null()).to_dicts()
    systems = order_systems(pl.Series([row["system"] for row in scores], dtype=pl.String))
    found = {row["metric"] for row in scores}
    first = [name for name in PRINTED if name in found][:N_INTERVALS]
    second = [name for name in PRINTED_PLAIN if name in found and name not in first]
    n_rows = max((row["n_rows"] for row in scores), default=0)
    title = f"{n_rows} test rows, 95 % intervals in brackets"
    tables = [_table(scores, systems, first, title=title, has_bounds=True)]
    tables += [_table(scores, systems, names) for names in (second, [name for name in COSTS if name in found]) if names]
    return Group(*tables)


def print_abstention(told: Row) -> Table:
    """Lay out for a terminal what share of questions is refused by their score.

    Args:
        told: See `surroundings.describe_surroundings`, its part `abstention`, where a score was chosen.
    """
    title = f"Abstains below a score of {told['min_score']:.3f}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("questions", no_wrap=True)
    for name in ("n", "refused", "95 % interval"):
        table.add_column(name, justify="right")
    for line in told["shares"]:
        if line["n"]:
            bounds = f"{line['low']:.1%}, {line['high']:.1%}"
            table.add_row(GROUPS[line["group"]], f"{line['n']:,}", f"{line['value']:.1%}", bounds)
    return table


def _table(
    scores: Sequence[Row], systems: Sequence[str], metrics: Sequence[str], title: str = "", *, has_bounds: bool = False
) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    shown = [line for name in metrics for line in SCORES if line[0] == name]
    lines = _cells(scores, [(system, None) for system in systems], shown)
    for name, _ in lines:
        table.add_column(name, justify="right")
    for system, cells in zip(systems, zip(*(cells for _, cells in lines), strict=True), strict=True):
        table.add_row(label_of(system), *(_terminal_text(cell, has_bounds=has_bounds) for cell in cells))
    return table


def _terminal_text(cell: Cell | None, *, has_bounds: bool) -> str:
    if cell is None:
        return "–"
    # The backslash keeps rich from reading the bracket as a style.
    return f"{cell['value']}\n\\[{cell['bounds']}]" if has_bounds and cell["bounds"] else cell["value"]


def _cells(
    rows: Sequence[Row], columns: Sequence[tuple[str, str | None]], shown: Sequence[tuple[str, str, str]]
) -> list[tuple[str, list[Cell | None]]]:
    """Return one line per metric that occurs: its name, and its formatted figures in the order of the columns."""
    found = {(row["system"], row["compared_to"], row["metric"]): row for row in rows}
    table = []
    for metric, name, form in shown:
        cells = [found.get((*column, metric)) for column in columns]
        if any(cell is not None for cell in cells):
            table.append((name, [None if cell is None else _cell(cell, form) for cell in cells]))
    return table


def _cell(row: Row, form: str) -> Cell:
    low, high, p_value = row["low"], row["high"], row["p_value"]
    bounds, sign = "", 0
    if low is not None and high is not None:
        bounds, sign = f"{form.format(low)}, {form.format(high)}", (low > 0) - (high < 0)
    if p_value is not None and p_value >= ALPHA:
        sign = 0
    # For a latency, less is better.
    tone = {1: "good", -1: "bad", 0: "open"}[-sign if row["metric"] == "latency_ms" else sign]
    chance = "" if p_value is None else "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}"
    return {"value": form.format(row["value"]), "bounds": bounds, "chance": chance, "tone": tone}
