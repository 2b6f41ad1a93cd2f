"""What a table shows of itself on its asset's page: counts, a plot of what people look at first, and some rows.

What does not belong here: what only one asset shows, such as the verdict of an evaluation; its module adds it.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl

from ev_platform.pages import BLUE, markdown_image, new_axes, table_cell

# How many rows have which of these is worth a curve over the runs.
_COUNTED = ("drop_reason", "reject_reason", "status", "origin", "decision")
_LISTED = ("kind", "language", "licence")
_LENGTHS = ("n_tokens", "n_chars")
_MAX_BARS = 12
_SCORES = ("token_f1", "rouge_l", "accuracy", "macro_f1")
# The page shows Markdown of up to 999 characters in place, and longer ones in a window that can be scrolled.
_IN_PLACE, _WIDEST = 1000, 44
_CELL = 34  # three of them stand beside a column's name in that window


def describe(table: str, frame: pl.DataFrame) -> dict[str, Any]:
    """Return the metadata that shows a table to a person; numbers become curves over the runs.

    Args:
        table: Name of the table.
        frame: Its rows.
    """
    shown: dict[str, Any] = {}
    if table == "training_log":
        shown["curves"] = dg.MetadataValue.md(training_plot(frame))
    elif table == "eval_report":
        shown |= _scores(frame)
    for column in _COUNTED:
        counts = _counts(frame, column)
        if counts.height > 1:
            shown[f"plot_of_{column}"] = dg.MetadataValue.md(bars(counts, column))
        shown |= {f"{column}/{value}": n for value, n in counts.head(_MAX_BARS).iter_rows()}
    for column in _LISTED:
        if (counts := _counts(frame, column)).height:
            shown[f"by_{column}"] = as_markdown(counts.head(_MAX_BARS))
    for column in _LENGTHS:
        if column in frame.columns and frame[column].count():  # texts to label have no tokens
            shown[f"plot_of_{column}"] = dg.MetadataValue.md(histogram(frame[column].drop_nulls(), column))
            shown[f"{column}_mean"] = round(frame[column].cast(pl.Float64).mean() or 0.0, 1)  # type: ignore[arg-type]
    if "cost_usd" in frame.columns and frame["cost_usd"].count():
        shown["cost_usd"] = round(float(frame["cost_usd"].sum()), 6)
    shown["preview"] = as_markdown(frame.head(5)) if frame.width <= 5 else as_markdown(_on_end(frame), _CELL)
    return shown


def _counts(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    if column not in frame.columns:
        return pl.DataFrame()
    return frame.drop_nulls(column).group_by(column).len("rows").sort("rows", column, descending=[True, False])


def _scores(report: pl.DataFrame) -> dict[str, Any]:
    scores = report.filter(pl.col("compared_to").is_null())
    wide = scores.pivot("metric", index="system", values="value").with_columns(pl.col(pl.Float64).round(3))
    return {
        "systems": as_markdown(wide),
        **{
            f"{system}/{metric}": round(value, 4)
            for system, metric, value in scores.select("system", "metric", "value").iter_rows()
            if metric in _SCORES
        },
    }


def _on_end(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the first rows of a wide table as columns: a page is higher than it is wide."""
    first = frame.head(3)
    columns = {f"row {n + 1}": [_text(value) for value in row] for n, row in enumerate(first.iter_rows())}
    return pl.DataFrame({"column": first.columns, **columns})


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def as_markdown(frame: pl.DataFrame, width: int = 60) -> dg.MarkdownMetadataValue:
    """Return a frame as metadata: in place where it is narrow enough, else in a window.

    Args:
        frame: Its cells may hold the words of strangers.
        width: Longest cell, in characters.
    """
    text = markdown_table(frame, width)
    widest = max(map(len, text.splitlines()))
    return dg.MetadataValue.md(text if widest <= _WIDEST else text.ljust(_IN_PLACE))


def markdown_table(frame: pl.DataFrame, width: int = 60) -> str:
    """Return a frame as a Markdown table, long cells cut. Nothing in a cell becomes HTML, a link or an image.

    Args:
        frame: Its cells may hold the words of strangers.
        width: Longest cell, in characters.
    """

    def cell(value: Any) -> str:
        text = " ".join(_text(value).split())
        return table_cell(text if len(text) <= width else text[: width - 1] + "…")

    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + " --- |" * len(frame.columns)
    return "\n".join([head, rule, *("| " + " | ".join(map(cell, row)) + " |" for row in frame.iter_rows())])


def bars(counts: pl.DataFrame, column: str) -> str:
    """Return a Markdown image of how many rows have which value.

    Args:
        counts: Values and their `rows`, the most frequent first.
        column: That holds the values.
    """
    top = counts.head(_MAX_BARS)
    figure, axes = new_axes(0.3 * top.height)
    drawn = axes.barh([_text(value)[:40] for value in top[column]], top["rows"].to_list(), color=BLUE, height=0.6)
    axes.bar_label(drawn, padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("rows")
    return markdown_image(figure, column.replace("_", " "))


def histogram(values: pl.Series, column: str) -> str:
    """Return a Markdown image of how lengths are spread."""
    figure, axes = new_axes(1.8)
    axes.hist(values.to_list(), bins=30, color=BLUE)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=column.removeprefix("n_"), ylabel="rows")
    return markdown_image(figure, f"lengths in {column.removeprefix('n_')}")


def training_plot(log: pl.DataFrame) -> str:
    """Return a Markdown image of a run: losses, learning rate, gradient norm and speed over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = (
        ("loss per answer token", {"loss": "-", "validation_loss": "o--"}),
        ("learning rate", {"learning_rate": "-"}),
        ("gradient norm", {"grad_norm": "-"}),
        ("tokens per second", {"tokens_per_second": "-"}),
    )
    for axes, (name, columns) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for column, style in columns.items():
            points = log.drop_nulls(column)
            axes.plot(points["step"].to_list(), points[column].to_list(), style, label=column.replace("_", " "))
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend()
    return markdown_image(figure, "training")
