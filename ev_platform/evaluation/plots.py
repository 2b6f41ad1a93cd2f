"""The report's plots: as SVG that goes into the page, and as images for the UI.

What does not belong here: the page around them (`report`) and the figures they draw (`summary`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl
from markupsafe import Markup

from ev_platform.evaluation.names import METRIC_NAMES
from ev_platform.evaluation.statistics import ALPHA, MAIN, SYSTEMS
from ev_platform.pages import AMBER, BLUE, GREEN, INK, MUTED, RED, markdown_image, new_axes, svg_of

# What the plot of scores shows, of the metrics that occur; the metric that decides comes first.
PLOTTED = ("accuracy", "token_f1", "exact_match", "rouge_l", "macro_f1")
MAX_LABELS = 20  # more cannot be read in one picture

Row = Mapping[str, Any]


def plot_scores(scores: Sequence[Row], systems: Sequence[str], metric: str) -> Markup:
    """Plot the deciding score, and one more, of each system with their 95 % intervals, one line per system, 0 to 1.

    Args:
        scores: Rows of `eval_report` that are scores.
        systems: In the order of the lines, first on top.
        metric: That decides.
    """
    return svg_of(_scores(scores, systems, metric), "scores", "Scores of each system with 95 % intervals")


def plot_differences(differences: Sequence[Row], system: str, metric: str) -> Markup | None:
    """Plot one system's paired differences from all others with their 95 % intervals.

    Green is above 0 and red below it, where the permutation test agrees.

    Args:
        differences: Rows of `eval_report` that are differences.
        system: From which the others are subtracted.
        metric: Which of them.

    Returns:
        The plot; None where the system is compared to none.
    """
    figure = _differences(differences, system, metric)
    return svg_of(figure, "differences", "Paired differences with 95 % intervals") if figure else None


def plot_confusion(pairs: Sequence[Row]) -> Markup | None:
    """Plot which label is taken for which: a row for each right label, shaded by its share of answers.

    Args:
        pairs: `right`, `given` and `n`; of more than `MAX_LABELS` labels, those with most errors are shown.

    Returns:
        The heatmap; None where there is nothing to plot.
    """
    if not pairs:
        return None
    from matplotlib.figure import Figure

    right, given = shown_labels(pairs)
    counts = {(pair["right"], pair["given"]): pair["n"] for pair in pairs}
    totals: Counter[str] = Counter()
    for pair in pairs:
        totals[pair["right"]] += pair["n"]
    shares = [[counts.get((r, g), 0) / totals[r] for g in given] for r in right]
    figure = Figure(figsize=confusion_size(pairs), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, r in enumerate(right):
        for x, g in enumerate(given):
            if n := counts.get((r, g), 0):
                axes.text(
                    x, y, str(n), ha="center", va="center", fontsize=8, color="white" if n > totals[r] / 2 else INK
                )
    axes.set_yticks(range(len(right)), [_short(name) for name in right], parse_math=False, fontsize=9)
    axes.set_xticks(range(len(given)), [_short(name) for name in given], parse_math=False, fontsize=9, rotation=90)
    axes.set_ylabel("right", fontsize=9, color=MUTED)
    axes.set_xlabel("answered", fontsize=9, color=MUTED)
    axes.tick_params(length=0, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    return svg_of(figure, "confusion", "Which label is taken for which")


def plot_scores_of_questions(scores: Sequence[Row], min_score: float | None) -> Markup | None:
    """Plot how near passages are to questions of the task, of the test, and outside; with the score that divides them.

    Args:
        scores: Rows of `abstention_scores`.
        min_score: See `abstention_calibration`.

    Returns:
        The plot; None where there is nothing to plot.
    """
    if not scores:
        return None
    return svg_of(draw_scores_of_questions(scores, min_score), "abstention", "Scores of questions in and out of scope")


def draw_scores_of_questions(scores: Sequence[Row], min_score: float | None) -> Any:
    """Return the figure of `plot_scores_of_questions`."""
    figure, axes = new_axes(2.4)
    lines = (
        (("trained",), BLUE, "task"),
        (("answerable", "unanswerable"), GREEN, "test"),
        (("strange", "strange_held_out"), AMBER, "outside the task"),
    )
    width = 0.05
    low = min(0.0, *(row["score"] for row in scores))
    edges = [width * n for n in range(math.floor(low / width), 21)]
    for groups, colour, label in lines:
        own = [row["score"] for row in scores if row["group"] in groups]
        if own:
            axes.hist(own, edges, weights=[1 / len(own)] * len(own), histtype="stepfilled", color=colour, alpha=0.25)
            axes.hist(own, edges, weights=[1 / len(own)] * len(own), histtype="step", color=colour, label=label)
    if min_score is not None:
        axes.axvline(min_score, color=RED, linewidth=1.5, label=f"abstains below {min_score:.3f}")
    axes.set_xlabel("cosine of question and nearest passage", fontsize=9, color=MUTED)
    axes.set_ylabel("share", fontsize=9, color=MUTED)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def confusion_size(pairs: Sequence[Row]) -> tuple[float, float]:
    """Return width and height of the heatmap in inches, so that its letters can be read."""
    right, given = shown_labels(pairs)
    return 2.4 + 0.33 * len(given), 2.0 + 0.28 * len(right)


def shown_labels(pairs: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the right labels that a heatmap shows, and the answered ones, in alphabetical order."""
    wrong: Counter[str] = Counter()
    for pair in pairs:
        wrong[pair["right"]] += pair["n"] * (pair["right"] != pair["given"])
    right = sorted(sorted(wrong, key=lambda name: (-wrong[name], name))[:MAX_LABELS], key=str.casefold)
    answered = Counter({pair["given"]: 0 for pair in pairs if pair["right"] in right})
    for pair in pairs:
        if pair["right"] in right and pair["given"] not in right:
            answered[pair["given"]] += pair["n"]
    strangers = sorted((name for name in answered if name not in right), key=lambda name: (-answered[name], name))
    return right, [*right, *strangers[: max(1, MAX_LABELS // 4)]]


def scores_image(metrics: pl.DataFrame) -> str:
    """Return the plot of scores of an `eval_report` as a Markdown image, or nothing where there is none to plot."""
    scores = metrics.filter(pl.col("compared_to").is_null()).to_dicts()
    metric = _deciding(scores)
    return markdown_image(_scores(scores, _ordered(scores), metric), "scores") if metric else ""


def differences_image(metrics: pl.DataFrame) -> str:
    """Return the plot of differences of an `eval_report`'s last system that may be shipped, as a Markdown image."""
    differences = metrics.filter(pl.col("compared_to").is_not_null()).to_dicts()
    system = next((name for name in reversed(_ordered(differences)) if name in MAIN), None)
    metric = _deciding(differences)
    figure = _differences(differences, system, metric) if system and metric else None
    return markdown_image(figure, "differences") if figure else ""


def _deciding(rows: Iterable[Row]) -> str | None:
    found = {row["metric"] for row in rows}
    return next((name for name in PLOTTED if name in found), None)


def _ordered(rows: Iterable[Row]) -> list[str]:
    found = {row["system"] for row in rows}
    return [name for name in SYSTEMS if name in found] + sorted(found - SYSTEMS.keys())


def plotted_metrics(scores: Sequence[Row], metric: str) -> list[str]:
    """Return the deciding metric and the next that is worth a look."""
    found = {row["metric"] for row in scores}
    return [metric, *(name for name in PLOTTED if name in found and name != metric)][:2]


def _scores(scores: Sequence[Row], systems: Sequence[str], metric: str) -> Any:
    figure, axes = new_axes(len(systems) * 0.5)
    for name, colour, shift in zip(plotted_metrics(scores, metric), (BLUE, AMBER), (-0.14, 0.14), strict=False):
        rows = [row for row in scores if row["metric"] == name]
        for n, row in enumerate(rows):
            label = METRIC_NAMES[name] if n == 0 else None
            _point(axes, row, systems.index(row["system"]) + shift, colour, label)
    axes.set_yticks(range(len(systems)), [SYSTEMS.get(name, name) for name in systems], parse_math=False)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10, labelcolor=INK)
    return figure


def _differences(differences: Sequence[Row], system: str, metric: str) -> Any | None:
    rows = [row for row in differences if row["metric"] == metric and system in (row["system"], row["compared_to"])]
    if not rows:
        return None
    figure, axes = new_axes(len(rows) * 0.42)
    axes.axvline(0, color=INK, linewidth=1)
    names = []
    for n, row in enumerate(rows):
        other = row["compared_to"]
        is_clear = row["p_value"] is None or row["p_value"] < ALPHA
        if other == system:
            low, high = row["low"], row["high"]
            other = row["system"]
            row = {
                "value": -row["value"],
                "low": None if high is None else -high,
                "high": None if low is None else -low,
            }
        colour = MUTED
        if is_clear and row["low"] is not None and (row["low"] > 0 or row["high"] < 0):
            colour = GREEN if row["low"] > 0 else RED
        _point(axes, row, n, colour, None)
        names.append(f"minus {SYSTEMS.get(other, other)}")
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _point(axes: Any, row: Row, y: float, colour: str, label: str | None) -> None:
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")
    axes.plot([row["value"]], [y], "o", color=colour, markersize=6, label=label)


def _short(name: str) -> str:
    # Long labels often differ at their end only.
    return name if len(name) <= 24 else f"{name[:13]}…{name[-10:]}"
