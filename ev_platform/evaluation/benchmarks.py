"""Versions of a task's test rows: when the rows change, what changed, and a card of what is in them.

A figure compares with another only if both are of the same rows. What does not belong here: choosing test rows
(`dataset.splits`), and finding those that are trained on (`dataset.overlap`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.dataset.card import count_licences
from ev_platform.dataset.overlap import Embed, find_overlaps
from ev_platform.evaluation.statistics import minimum_detectable_effect
from ev_platform.pages import render_markdown
from ev_platform.records import BenchmarkVersion, to_frame
from ev_platform.storage import Store, now
from ev_platform.tasks import Task
from ev_platform.tasks.types import get_task_type

# Standard deviation of the difference of two systems' scores from row to row, as the example's four systems have it.
USUAL_SD = 0.35

Row = dict[str, Any]


def version_of(versions: pl.DataFrame, fingerprint: str) -> Row:
    """Return the version that has these rows, of the table `benchmark_versions`.

    Raises:
        KeyError: If they have not been announced.
    """
    found = versions.filter(pl.col("benchmark_fingerprint") == fingerprint)
    if found.is_empty():
        raise KeyError(fingerprint)
    return found.to_dicts()[0]


def announcement(versions: pl.DataFrame, fingerprint: str, before: str) -> str:
    """Return which version the rows are, and what that means for figures of the rows before.

    Args:
        versions: The `benchmark_versions` table.
        fingerprint: Of the rows in force.
        before: Of the rows that were in force before; the same where nothing changed.
    """
    in_force = version_of(versions, fingerprint)
    if before == fingerprint:
        return f"{in_force['benchmark']}, with {in_force['n_rows']} rows."
    old = version_of(versions, before)["benchmark"]
    return (
        f"The test rows are now those of {in_force['benchmark']}: {in_force['note']} "
        f"Figures that were measured on {old} do not compare with new ones."
    )


def announce(store: Store, task: Task, version: str, fingerprint: str, *, embed: Embed | None = None) -> pl.DataFrame:
    """Add a version to `benchmark_versions`, unless these very rows are one already.

    Args:
        store: Where tables live.
        task: Whose benchmark.
        version: Of the table `benchmark`.
        fingerprint: Of its rows.
        embed: Embeds questions, to look for training rows that resemble test rows; the bundled MiniLM where None.

    Returns:
        All versions, oldest first.
    """
    versions = store.read("benchmark_versions", task.name)
    if fingerprint in versions["benchmark_fingerprint"]:
        return versions
    rows = store.read("benchmark", task.name, version)
    newest = versions.tail(1).to_dicts()[0] if versions.height else None
    before = store.read("benchmark", task.name, newest["benchmark_version"]) if newest else None
    ids, known = set(rows["example_id"]), set(before["example_id"]) if before is not None else set()
    name = f"{task.name}-bench@{versions.height + 1}"
    added = BenchmarkVersion(
        benchmark=name,
        number=versions.height + 1,
        announced_at=now(),
        benchmark_version=version,
        benchmark_fingerprint=fingerprint,
        n_rows=rows.height,
        n_documents=rows["document_id"].drop_nulls().n_unique(),
        n_added=len(ids - known),
        n_removed=len(known - ids),
        note=describe_change(rows, before, newest["benchmark"] if newest else ""),
        card=render_card(store, task, rows, name, embed),
    )
    return pl.concat([versions, to_frame("benchmark_versions", [added])])


def describe_change(rows: pl.DataFrame, before: pl.DataFrame | None, name: str) -> str:
    """Return in one sentence what is new in test rows.

    Args:
        rows: The `benchmark` table.
        before: The version before it; None if this is the first.
        name: Of the version before.
    """
    if before is None:
        return f"The first version, with {rows.height} rows."
    ids, known = set(rows["example_id"]), set(before["example_id"])
    if ids != known:
        n_same = len(ids & known)
        return f"{len(ids) - n_same} rows were added and {len(known) - n_same} removed; {n_same} are as in {name}."
    other = [
        column
        for column in rows.columns
        if not rows.sort("example_id")[column].equals(before.sort("example_id")[column], null_equal=True)
    ]
    if not other:
        return f"The same {rows.height} rows as {name} in another order."
    return f"The same {rows.height} questions and answers as {name}, with another {', '.join(other)}."


def render_card(store: Store, task: Task, rows: pl.DataFrame, name: str, embed: Embed | None = None) -> str:
    """Return the card of test rows in Markdown: what they are, where they come from, how leakage was looked for.

    Args:
        store: Holds the documents, the examples and what is trained on.
        task: Whose rows.
        rows: The `benchmark` table.
        name: Of the version.
        embed: As in `announce`.
    """
    documents = _documents(store, task, rows)
    return render_markdown(
        Path(__file__).parent,
        "benchmark_card.md.j2",
        name=name,
        task=task.name,
        description=task.description,
        task_type=task.config.type,
        n_rows=rows.height,
        n_answerable=int(rows["is_answerable"].sum()),
        kinds=_counts(rows, "kind"),
        labels=_counts(rows, "answer") if get_task_type(task.config.type).has_classes else [],
        lengths=_lengths(rows),
        authors=_authors(store, task, rows),
        documents=documents,
        licences=count_licences(documents),
        leakage=_leakage(store, task, rows, embed),
        limits=_limits(task, rows),
    )


def _counts(rows: pl.DataFrame, column: str) -> list[Row]:
    return (
        rows.group_by(column).len("n").sort(["n", column], descending=[True, False]).rename({column: "name"}).to_dicts()
    )


def _lengths(rows: pl.DataFrame) -> list[Row]:
    """Return the least, the median and the most of each length."""
    words = {
        "words of the question": rows["question"].str.split(" ").list.len(),
        "words of the answer": rows["answer"].str.split(" ").list.len(),
        "words of the row's own passage": rows["context"].drop_nulls().str.split(" ").list.len(),
        "accepted answers": rows["answers"].drop_nulls().list.len(),
        "tokens of prompt and answer": rows["n_tokens"].drop_nulls(),
    }
    return [
        {"name": name, "low": lengths.min(), "median": lengths.median(), "high": lengths.max()}
        for name, lengths in words.items()
        if lengths.len()
    ]


def _authors(store: Store, task: Task, rows: pl.DataFrame) -> list[Row]:
    """Return who wrote the rows, and where in the task's files the first and the last of them stand."""
    written = store.read("examples", task.name)
    places = dict(written.filter(pl.col("row").is_not_null()).select("example_id", "row").iter_rows())
    told = []
    for origin in rows["origin"].unique(maintain_order=True):
        own = rows.filter(pl.col("origin") == origin)["example_id"].to_list()
        found = [places[example_id] for example_id in own if example_id in places]
        told.append(
            {"origin": origin, "n": len(own), "first": found[0] if found else None, "last": (found or [None])[-1]}
        )
    return told


def _documents(store: Store, task: Task, rows: pl.DataFrame) -> list[Row]:
    """Return the documents that are held out: those behind rows, and those that say the same (their clusters)."""
    behind = Counter(rows["document_id"].drop_nulls().to_list())
    clusters = set(rows["cluster_id"].drop_nulls())
    known = store.read("clean_documents", task.name)
    held_out = known.filter(
        pl.col("document_id").is_in(list(behind)) | pl.col("cluster_id").is_in(sorted(clusters))
    ).sort("url")
    return [
        {name: row[name] for name in ("url", "title", "licence", "publisher", "cluster_id")}
        | {"fetched": f"{row['fetched_at']:%Y-%m-%d %H}:00", "n": behind.get(row["document_id"], 0)}
        for row in held_out.iter_rows(named=True)
    ]


def _leakage(store: Store, task: Task, rows: pl.DataFrame, embed: Embed | None) -> Row:
    trained_on = pl.concat([store.read(table, task.name) for table in ("training_set", "validation_set")])
    config = task.config.dataset
    chunks = store.read("chunks", task.name)
    # Where nothing is trained on, no model has to be loaded to see that.
    found = find_overlaps(trained_on, rows, chunks, config, embed=embed) if trained_on.height else []
    return {
        "n_trained": trained_on.height,
        "n_met": len({overlap.example_id for overlap in found}),
        "reasons": sorted({overlap.reason for overlap in found}),
        "max_test_similarity": config.max_test_similarity,
    }


def _limits(task: Task, rows: pl.DataFrame) -> list[str]:
    """Return what these rows cannot show, each as a sentence with its figure."""
    evaluation, n = task.config.evaluation, rows.height
    n_asked = min(n, evaluation.max_rows)
    said = []
    if n_asked >= 2:
        least = minimum_detectable_effect(n_asked, USUAL_SD)
        said.append(
            f"With {n_asked} rows, a true difference between two systems of less than about {least:.2f} is missed more "
            f"often than one time in five (for scores whose differences have a standard deviation of {USUAL_SD})."
        )
    if n < task.config.promotion.min_rows:
        said.append(f"Fewer than {task.config.promotion.min_rows} rows: every verdict on them is inconclusive.")
    if n > evaluation.max_rows:
        said.append(f"Systems answer {evaluation.max_rows} of the {n} rows, spread evenly over them.")
    if rows["is_answerable"].all() and get_task_type(task.config.type).allows_unanswerable:
        said.append("Every row has an answer: whether a system declines what it cannot know is not measured.")
    if rows["answers"].drop_nulls().list.len().max() == 1 and not get_task_type(task.config.type).has_classes:
        said.append("Each row accepts one answer: the right answer in other words scores low.")
    said += _limits_of_places(rows)
    few = [label for label, count in Counter(rows["answer"].to_list()).items() if count < 5]
    if few and get_task_type(task.config.type).has_classes:
        said.append(f"{len(few)} labels have fewer than 5 rows: their own scores say little.")
    return said


def _limits_of_places(rows: pl.DataFrame) -> list[str]:
    said = []
    n_own = rows["context"].is_not_null().sum()
    if n_own:
        said.append(f"{n_own} rows bring the passage to answer from: they do not test retrieval.")
    n_lost = rows.filter(pl.col("cluster_id").is_null() & pl.col("context").is_null()).height
    if n_lost and rows["cluster_id"].drop_nulls().len():
        said.append(f"The document behind {n_lost} rows is not known: it cannot be held out of training.")
    largest: Sequence[int] = sorted(Counter(rows["document_id"].drop_nulls().to_list()).values(), reverse=True)
    if len(largest) > 1 and largest[0] > rows.height / 2:
        said.append(f"{largest[0]} of the {rows.height} rows are about one document.")
    return said
