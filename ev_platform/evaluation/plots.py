"""The report's plots, as SVG that goes into the page.

What does not belong here: the page around them (`report`) and the figures they draw (`summary`).
"""

from __future__ import annotations

import io
from typing import Any

import polars as pl
from markupsafe import Markup

from ev_platform.evaluation.statistics import SYSTEMS

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, AMBER, GREEN, RED = "#2563a8", "#c77700", "#1b7f4b", "#b3261e"


def plot_scores(scores: pl.DataFrame, systems: list[str]) -> Markup:
    """Plot token F1 and ROUGE-L of each system with their 95 % intervals, one line per system, 0 to 1.

    Args:
        scores: Rows of `eval_report` that are scores.
        systems: In the order of the lines, first on top.
    """
    figure, axes = _axes(len(systems) * 0.62)
    for metric, label, colour, shift in (("token_f1", "token F1", BLUE, -0.14), ("rouge_l", "ROUGE-L", AMBER, 0.14)):
        rows = scores.filter(pl.col("metric") == metric).iter_rows(named=True)
        for n, row in enumerate(rows):
            _point(axes, row, systems.index(row["system"]) + shift, colour, label if n == 0 else None)
    axes.set_yticks(range(len(systems)), [SYSTEMS.get(name, name) for name in systems])
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    return _svg(figure, "scores", "Token F1 and ROUGE-L of each system with 95 % intervals")


def plot_differences(differences: pl.DataFrame) -> Markup:
    """Plot each paired difference of token F1 with its 95 % interval, green above 0 and red below.

    Args:
        differences: Rows of `eval_report` that are differences.
    """
    rows = list(differences.filter(pl.col("metric") == "token_f1").iter_rows(named=True))
    figure, axes = _axes(len(rows) * 0.48)
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
    return _svg(figure, "differences", "Paired differences of token F1 with 95 % intervals")


def _axes(height: float) -> tuple[Any, Any]:
    # Figure itself instead of pyplot: no display backend, no global state. 4.6 inches keep the letters readable where
    # a phone shrinks the plot to its width.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 0.8 + height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def _point(axes: Any, row: dict[str, Any], y: float, colour: str, label: str | None) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")
    axes.plot([row["value"]], [y], "o", color=colour, markersize=6, label=label)


def _svg(figure: Any, name: str, title: str) -> Markup:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same page. Letters as paths: no font has to be there.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several plots stand in one document, where an id may occur once.
    for mark in (' id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))  # noqa: S704  (our own figures)
