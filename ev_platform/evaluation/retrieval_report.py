"""How often search finds the passage, or the document, that a test row rests on: words, meaning, and both together.

What does not belong here: searching (`retrieval`), and what the models make of the passages (`summary`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from ev_platform.evaluation.statistics import mean_interval
from ev_platform.pages import AMBER, BLUE, GREEN, GRID, INK, new_axes
from ev_platform.records import RetrievalScore, to_frame
from ev_platform.retrieval import METHODS, Retriever
from ev_platform.tasks.config import RetrievalConfig

DEPTHS = (1, 5, 10)
LEVELS = {"chunk": "chunk_id", "document": "document_id"}  # and the column that says which it is
# Passages of one question that are looked at: of a document there may be many among the best, and it counts once. The
# hybrid has no more than twice its candidates.
_PASSAGES = 100
_COLOURS = (AMBER, GREEN, BLUE)


def score_retrieval(
    benchmark: pl.DataFrame,
    chunks: pl.DataFrame,
    config: RetrievalConfig,
    vectors: pl.DataFrame | None = None,
    *,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    """Search for every test question that has to be answered from the corpus, and see where what it rests on stands.

    A row takes part at a level if it names a chunk or a document that is there, has an answer, and brings no context of
    its own. A document stands where its best passage stands among the documents found. Recall at k is the share of rows
    whose chunk or document is among the first k; the mean reciprocal rank is that of the first 10, beyond which a rank
    counts nothing.

    Args:
        benchmark: The `benchmark` table.
        chunks: The `chunks` table.
        config: The retriever's; recall is also told at `top_k`, which is what the model gets to read.
        vectors: The `chunk_vectors` table.
        resamples: Bootstrap samples of each interval.
        seed: Of the bootstrap.

    Returns:
        The table `retrieval_report`: by method, level and metric; empty where no row takes part.
    """
    document_of = dict(chunks.select("chunk_id", "document_id").iter_rows())
    known = {"chunk": set(document_of), "document": set(document_of.values())}
    rows = [
        row
        for row in benchmark.iter_rows(named=True)
        if not row["context"]
        and row["is_answerable"] is not False
        and any(row[column] in known[level] for level, column in LEVELS.items())
    ]
    if not rows:
        return to_frame("retrieval_report", [])
    retriever = Retriever.build(chunks, config.candidates, vectors)
    scores = []
    for method in METHODS:
        hits = retriever.search([row["question"] for row in rows], _PASSAGES, method)
        for level, column in LEVELS.items():
            ranks = []
            for row, own in zip(rows, hits, strict=True):
                if row[column] in known[level]:
                    found = [hit.chunk_id for hit in own]
                    if level == "document":
                        found = list(dict.fromkeys(document_of[chunk_id] for chunk_id in found))
                    ranks.append(found.index(row[column]) + 1 if row[column] in found else np.inf)
            for metric, values in _figures(np.array(ranks), config.top_k).items() if ranks else ():
                interval = mean_interval(values, resamples=resamples, seed=seed)
                scores.append(
                    RetrievalScore(method, level, metric, interval.value, interval.low, interval.high, len(ranks))
                )
    return to_frame("retrieval_report", scores)


def _figures(ranks: np.ndarray, top_k: int) -> dict[str, np.ndarray]:
    """Return by metric what each row gives, 0 to 1."""
    depths = sorted({*DEPTHS, top_k})
    recalls = {f"recall@{depth}": (ranks <= depth).astype(float) for depth in depths}
    return recalls | {"mrr": np.where(ranks <= 10, 1 / ranks, 0.0)}


def as_table(scores: pl.DataFrame) -> pl.DataFrame:
    """Return `retrieval_report` for people: a row for each level and method, every figure with its interval."""
    metrics = scores["metric"].unique(maintain_order=True).to_list()
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in scores.sort("level", maintain_order=True).iter_rows(named=True):
        line = lines.setdefault((row["level"], row["method"]), {"rows": row["n_rows"]})
        bounds = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
        line[row["metric"]] = f"{row['value']:.3f}{bounds}"
    return pl.DataFrame(
        [{"find": level, "by": method, **line} for (level, method), line in lines.items()],
        schema=["find", "by", "rows", *metrics],
    )


def recall_plot(scores: pl.DataFrame) -> Any:
    """Return a figure of recall by method, with intervals; of documents dashed."""
    figure, axes = new_axes(2.6)
    for method, colour in zip(METHODS, _COLOURS, strict=True):
        for level, style in zip(LEVELS, ("-", "--"), strict=True):
            rows = scores.filter(
                (pl.col("method") == method) & (pl.col("level") == level) & pl.col("metric").str.starts_with("recall@")
            )
            if rows.is_empty():
                continue
            depths = rows["metric"].str.strip_prefix("recall@").cast(pl.Int64).to_list()
            axes.plot(depths, rows["value"].to_list(), style, color=colour, marker="o", label=f"{method}, {level}")
            bounds = rows.drop_nulls("low")
            if bounds.height == rows.height:
                axes.fill_between(depths, rows["low"].to_list(), rows["high"].to_list(), color=colour, alpha=0.12)
    axes.set(ylim=(0, 1.02), xticks=sorted({1, 5, 10}))
    axes.set_xlabel("first k found", color=INK)
    axes.set_ylabel("recall", color=INK)
    axes.grid(axis="y", color=GRID)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
