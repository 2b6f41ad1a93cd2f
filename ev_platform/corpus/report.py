"""The corpus as people look at it: what came in, what was dropped and why, where it is from, how long it is.

What does not belong here: deciding anything (`clean`, `chunk`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from ev_platform.files import write_atomic
from ev_platform.identity import frame_fingerprint
from ev_platform.pages import AMBER, BLUE, MUTED, markdown_image, new_axes, render, svg_of
from ev_platform.records import CorpusFigure, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task

KEPT = "kept"
LENGTHS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)  # characters
TOKENS = (20, 40, 60, 80, 100, 120, 140, 160, 200, 250, 300, 400, 500)
MAX_BARS = 14
MAX_DROPPED_SHOWN = 300

# Section, title of its plot.
PLOTS = (
    ("outcome", "What became of the documents"),
    ("source", "Where they are from"),
    ("language", "Language, as detected"),
    ("licence", "Licence"),
    ("n_chars", "Length in characters"),
    ("chunk_n_tokens", "Chunks by tokens"),
)


def summarise_corpus(clean: pl.DataFrame, dropped: pl.DataFrame, chunks: pl.DataFrame) -> pl.DataFrame:
    """Count documents and chunks by what a person asks about.

    Args:
        clean: The `clean_documents` table.
        dropped: The `dropped_documents` table.
        chunks: The `chunks` table.

    Returns:
        The table `corpus_report`: within a section, ranges of lengths ascend, all else goes by count.
    """
    counted: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
        "outcome": lambda row: row.get("drop_reason") or KEPT,
        "source": lambda row: source_of(row["fetched_url"]),
        "language": lambda row: row["language"],
        "publisher": lambda row: row["publisher"],
        "licence": lambda row: row["licence"],
        "kind": lambda row: row["kind"],
        "n_chars": lambda row: _range(len(row["text"]), LENGTHS) if row["text"] else None,
    }
    bars: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for frame, is_kept in ((clean, True), (dropped, False)):
        for row in frame.iter_rows(named=True):
            for section, name_of in counted.items():
                if (name := name_of(row)) is not None:
                    _count(bars[section, name], is_kept, len(row["text"]))
    for row in chunks.iter_rows(named=True):
        _count(bars["chunk_n_tokens", _range(row["n_tokens"], TOKENS)], True, len(row["text"]))
    places = {section: n for n, section in enumerate([*counted, "chunk_n_tokens"])}
    ranges = {_range(bound - 1, bounds): n for bounds in (LENGTHS, TOKENS) for n, bound in enumerate(bounds)}

    def order(bar: tuple[str, str]) -> tuple[Any, ...]:
        section, name = bar
        is_range = section in ("n_chars", "chunk_n_tokens")
        return places[section], ranges.get(name, len(LENGTHS + TOKENS)) if is_range else -bars[bar][0], name

    rows = [CorpusFigure(*bar, *bars[bar]) for bar in sorted(bars, key=order)]
    return to_frame("corpus_report", rows)


def _count(bar: list[int], is_kept: bool, n_chars: int) -> None:
    bar[0] += 1
    bar[1] += is_kept
    bar[2] += n_chars * is_kept


def _range(value: int, bounds: Sequence[int]) -> str:
    lower = 0
    for bound in bounds:
        if value < bound:
            return f"{lower:,} to {bound - 1:,}"
        lower = bound
    return f"{lower:,} or more"


def source_of(url: str) -> str:
    """Return the site of an address, or `files` for a file that was read from disk."""
    return urlsplit(url).netloc or "files"


def write_corpus_report(
    store: Store,
    task: Task,
    report: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
) -> tuple[Path, dict[str, str]]:
    """Write the page of a corpus to `reports/<task>-corpus.html`.

    Args:
        store: Where it goes.
        task: Its name and description stand on the page.
        report: The `corpus_report` table.
        tables: `clean_documents`, `dropped_documents` and `chunks`.

    Returns:
        Path of the page, and its plots as Markdown images by section, for the UI.
    """
    clean, dropped, chunks = (tables[name] for name in ("clean_documents", "dropped_documents", "chunks"))
    figures = {section: figure for section, _ in PLOTS if (figure := _plot(report, section)) is not None}
    relevance = _plot_relevance(clean, dropped, task.config.corpus.min_relevance)
    titles = {**dict(PLOTS), "relevance": "Relevance to the task"}
    if relevance is not None:
        figures["relevance"] = relevance
    page = render(
        Path(__file__).parent,
        "report.html.j2",
        task=task,
        run=frame_fingerprint("corpus_report", report)[:12],
        facts={
            "documents in": clean.height + dropped.height,
            "kept": clean.height,
            "set aside": dropped.height,
            "chunks": chunks.height,
            "characters kept": clean["n_chars"].sum(),
            "personal data masked": clean["n_masked"].sum(),
            "boilerplate lines removed": clean["n_boilerplate_lines"].sum(),
        },
        plots=[(titles[name], svg_of(figure, name, titles[name])) for name, figure in figures.items()],
        sources=_sources(clean, dropped),
        dropped=dropped.sort("drop_reason", "fetched_url").head(MAX_DROPPED_SHOWN).to_dicts(),
        n_dropped=dropped.height,
    )
    file = store.root / "reports" / f"{task.name}-corpus.html"
    write_atomic(file, page.encode())
    return file, {name: markdown_image(figure, titles[name]) for name, figure in figures.items()}


def _plot(report: pl.DataFrame, section: str) -> Any | None:
    rows = report.filter(pl.col("section") == section).to_dicts()
    if not rows:
        return None
    shown = rows[:MAX_BARS]
    if len(rows) > MAX_BARS:
        rest = rows[MAX_BARS - 1 :]
        n, n_kept = (sum(row[column] for row in rest) for column in ("n", "n_kept"))
        shown = [*rows[: MAX_BARS - 1], {"name": f"{len(rest)} more", "n": n, "n_kept": n_kept}]
    figure, axes = new_axes(len(shown) * 0.3)
    places = range(len(shown))
    kept, gone = [row["n_kept"] for row in shown], [row["n"] - row["n_kept"] for row in shown]
    axes.barh(places, kept, color=BLUE, label="kept")
    if any(gone):
        axes.barh(places, gone, left=kept, color=AMBER, label="set aside")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    for place, row in zip(places, shown, strict=True):
        axes.annotate(f" {row['n']:,}", (row["n"], place), va="center", fontsize=9, color=MUTED)
    axes.margins(x=0.12)
    names = [row["name"] if len(row["name"]) <= 28 else row["name"][:27] + "…" for row in shown]
    axes.set_yticks(places, names, parse_math=False)  # a licence may hold dollar signs
    axes.set_ylim(len(shown) - 0.5, -0.5)
    return figure


def _plot_relevance(clean: pl.DataFrame, dropped: pl.DataFrame, threshold: float) -> Any | None:
    off_topic = dropped.filter(pl.col("drop_reason") == "off_topic")["relevance"].drop_nulls().to_list()
    kept = clean["relevance"].drop_nulls().to_list()
    if not kept and not off_topic:
        return None
    figure, axes = new_axes(2.2)
    axes.hist([kept, off_topic], bins=24, stacked=True, color=[BLUE, AMBER], label=["kept", "off topic"])
    axes.axvline(threshold, color=MUTED, linewidth=1, linestyle="--")
    axes.set_xlabel(f"relevance; the dashed line is min_relevance = {threshold:g}", fontsize=10)
    axes.set_ylabel("documents", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure


def _sources(clean: pl.DataFrame, dropped: pl.DataFrame) -> list[dict[str, Any]]:
    columns = ["fetched_url", "publisher", "licence", "fetched_at"]
    rows = pl.concat(
        [clean.select(*columns, n_chars="n_chars", n_kept=1), dropped.select(*columns, n_chars=0, n_kept=0)],
        how="vertical_relaxed",
    ).with_columns(source=pl.col("fetched_url").map_elements(source_of, return_dtype=pl.String))
    return (
        rows.group_by("source", "publisher", "licence")
        .agg(
            pl.len().alias("n"),
            pl.col("n_kept").sum(),
            pl.col("n_chars").sum(),
            pl.col("fetched_at").max().dt.strftime("%Y-%m-%d %H:%M").alias("newest"),
        )
        .sort("n", "source", "publisher", "licence", descending=[True, False, False, False])
        .to_dicts()
    )
