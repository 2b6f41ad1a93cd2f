"""The report's plots, as SVG that goes into the page.

What does not belong here: the page around them (`report`) and the figures they draw (`summary`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from markupsafe import Markup

from ev_platform.evaluation.statistics import SYSTEMS
from ev_platform.pages import AMBER, BLUE, GREEN, INK, MUTED, RED, new_axes, svg_of


def plot_scores(scores: pl.DataFrame, systems: list[str], metrics: Mapping[str, str]) -> Markup:
    """Plot one or two scores of each system with their 95 % intervals, one line per system, 0 to 1.

    Args:
        scores: Rows of `eval_report` that are scores.
        systems: In the order of the lines, first on top.
        metrics: What is plotted, with its name for people.
    """
    figure, axes = new_axes(len(systems) * 0.62)
    for (metric, label), colour, shift in zip(metrics.items(), (BLUE, AMBER), (-0.14, 0.14), strict=False):
        rows = scores.filter(pl.col("metric") == metric).iter_rows(named=True)
        for n, row in enumerate(rows):
            _point(axes, row, systems.index(row["system"]) + shift, colour, label if n == 0 else None)
    axes.set_yticks(range(len(systems)), [SYSTEMS.get(name, name) for name in systems])
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    return svg_of(figure, "scores", f"Scores of each system with 95 % intervals: {', '.join(metrics.values())}")


def plot_differences(differences: pl.DataFrame, metric: str, name: str) -> Markup:
    """Plot each paired difference of a metric with its 95 % interval, green above 0 and red below.

    Args:
        differences: Rows of `eval_report` that are differences.
        metric: Which of them.
        name: Of the metric, for people.
    """
    rows = list(differences.filter(pl.col("metric") == metric).iter_rows(named=True))
    figure, axes = new_axes(len(rows) * 0.48)
    axes.axvline(0, color=INK, linewidth=1)
    for n, row in enumerate(rows):
        colour = MUTED
        if row["low"] is not None and (row["low"] > 0 or row["high"] < 0):
            colour = GREEN if row["low"] > 0 else RED
        _point(axes, row, n, colour, None)
    names = [
        f"{SYSTEMS.get(row['system'], row['system'])}\nvs {SYSTEMS.get(row['compared_to'], row['compared_to'])}"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return svg_of(figure, "differences", f"Paired differences of {name} with 95 % intervals")


def _point(axes: Any, row: dict[str, Any], y: float, colour: str, label: str | None) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")
    axes.plot([row["value"]], [y], "o", color=colour, markersize=6, label=label)
