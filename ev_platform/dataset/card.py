"""A dataset's rows with their sources, and its card: what is in it, from where, and what was done to it.

Every figure is counted from the stored tables when the card is written. What does not belong here: other formats
(`export`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from ev_platform.dataset.agreement import agreement
from ev_platform.dataset.overlap import find_overlaps
from ev_platform.pages import render_markdown
from ev_platform.records.columns import MESSAGES, UTC_MICROSECONDS

if TYPE_CHECKING:
    from ev_platform.dataset.export import Dataset

# What each column holds; the card shows it beside the Parquet files.
COLUMNS: dict[str, tuple[Any, str]] = {
    "example_id": (pl.String, "hash of question, answer and passage"),
    "question": (pl.String, "what is asked, or the text to label"),
    "answer": (pl.String, "the answer, or the label"),
    "answers": (pl.List(pl.String), "everything that counts as right, the answer first"),
    "is_answerable": (pl.Boolean, "false where the passage does not hold the answer"),
    "passage": (pl.String, "the text that the answer rests on, where it is known"),
    "origin": (pl.String, "human, generated, labelled or reviewed"),
    "kind": (pl.String, "kind of question"),
    "teacher": (pl.String, "model that wrote or labelled the row"),
    "prompt_version": (pl.String, "hash of the prompt that it was asked with"),
    "url": (pl.String, "page that the passage is from"),
    "page": (pl.Int64, "page of a PDF, from 1"),
    "licence": (pl.String, "of that page"),
    "publisher": (pl.String, "of that page"),
    "fetched_at": (UTC_MICROSECONDS, "hour in which the page was fetched, UTC"),
    "instruction": (pl.String, "system message of the training prompt"),
    "input": (pl.String, "user message of the training prompt, passages included"),
    "output": (pl.String, "what the model is to answer"),
    "messages": (MESSAGES, "instruction, input and output as a chat"),
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Licences as pages declare them, to the ids that the hub knows; what is not here is "other".
_HUB_LICENCES = (
    "apache-2.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "mit",
    "cc-by-3.0",
    "cc-by-sa-3.0",
    "cc-by-nc-4.0",
)


def traced_rows(dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Return the rows of each split with their sources, in the columns of `COLUMNS`."""
    examples = {row["example_id"]: row for row in dataset.table("examples").iter_rows(named=True)}
    schema = {name: dtype for name, (dtype, _) in COLUMNS.items()}
    frames = {}
    for split, rows in dataset.splits.items():
        table = []
        for row in rows:
            chunk = dataset.chunks.get(row["chunk_id"], {})
            document = dataset.documents.get(row["document_id"], {})
            example = examples.get(row["example_id"], {})
            known = row | {name: document.get(name) for name in ("url", "licence", "publisher", "fetched_at")}
            known |= {name: example.get(name) for name in ("teacher", "prompt_version")}
            known |= {"page": chunk.get("page"), "passage": dataset.passage(row)}
            table.append({name: known[name] for name in COLUMNS})
        frames[split] = pl.DataFrame(table, schema=schema).with_columns(pl.col("fetched_at").dt.truncate("1h"))
    return frames


def render_card(dataset: Dataset) -> str:
    """Return the dataset card in Markdown, with the front matter that the Hugging Face hub reads.

    It follows the hub's dataset card specification: licence, language, size and one configuration with its data files.
    """
    rows = pl.concat(traced_rows(dataset).values())
    sources, n_own = count_sources(dataset)
    licences = sorted({source["licence"] for source in sources})
    known = pl.concat([dataset.table("qa_candidates"), dataset.table("examples")])
    by_kind = agreement(dataset.table("reviews"), known)["by_kind"]
    evaluation = dataset.table("teacher_evaluation").to_dicts()
    return render_markdown(
        Path(__file__).parent,
        "card.md.j2",
        front_matter=yaml.safe_dump(_front_matter(dataset, rows, licences), sort_keys=False, allow_unicode=True),
        name=dataset.task.name,
        description=dataset.task.description,
        task_type=dataset.task.config.type,
        counts=_counts(dataset),
        sources=sources,
        licences=count_licences(sources),
        n_own=n_own,
        dropped=count_reasons(dataset.table("dropped_documents"), "drop_reason"),
        rejected=count_reasons(dataset.table("rejected_examples"), "reject_reason"),
        teachers=count_teachers(dataset),
        calls=_calls(dataset),
        evaluation=evaluation[0] if evaluation else None,
        leakage=_leakage(dataset),
        reviews=[row for row in by_kind.to_dicts() if row["n"]],
        columns={name: (str(rows.schema[name]), meaning) for name, (_, meaning) in COLUMNS.items()},
    )


def _front_matter(dataset: Dataset, rows: pl.DataFrame, licences: list[str]) -> dict[str, Any]:
    ids = sorted({name.lower() if name.lower() in _HUB_LICENCES else "other" for name in licences}) or ["unknown"]
    languages = sorted({document["language"] for document in dataset.documents.values()})
    splits = [{"split": split, "path": f"data/{split}.parquet"} for split in dataset.splits]
    is_synthetic = bool(set(rows["origin"]) & {"generated", "labelled"})
    return {
        "pretty_name": dataset.task.name,
        **({"language": languages} if languages else {}),
        "license": ids if len(ids) > 1 else ids[0],
        "size_categories": [next((name for most, name in _SIZES if rows.height < most), "n>1M")],
        **({"tags": ["synthetic"]} if is_synthetic else {}),
        "configs": [{"config_name": "default", "data_files": splits}],
    }


def _counts(dataset: Dataset) -> list[dict[str, Any]]:
    frames = [
        pl.DataFrame({"split": split, "origin": [r["origin"] for r in rows]}) for split, rows in dataset.splits.items()
    ]
    return pl.concat(frames).group_by("split", "origin", maintain_order=True).len("n").to_dicts()


def count_sources(dataset: Dataset) -> tuple[list[dict[str, Any]], int]:
    """Return the pages behind the rows, in prompts or as support, and how many rows rest on none of them."""
    rows_of: dict[str, set[str]] = defaultdict(set)
    n_own = 0
    for rows in dataset.splits.values():
        for row in rows:
            chunk_ids = {*row["context_chunk_ids"], row["chunk_id"]}
            documents = {dataset.chunks[i]["document_id"] for i in chunk_ids if i in dataset.chunks}
            documents |= {row["document_id"]} & dataset.documents.keys()
            n_own += not documents
            for document_id in documents:
                rows_of[document_id].add(row["example_id"])
    names = ("url", "title", "licence", "publisher")
    sources = [
        {name: document[name] for name in names}
        | {"fetched": f"{document['fetched_at']:%Y-%m-%d %H}:00", "n": len(rows_of[document_id])}
        for document_id, document in dataset.documents.items()
        if document_id in rows_of
    ]
    return sorted(sources, key=lambda source: source["url"]), n_own


def count_licences(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return pages and rows by licence."""
    if not sources:
        return []
    grouped = (
        pl.DataFrame(sources)
        .group_by("licence")
        .agg(pl.len().alias("n_pages"), pl.col("publisher").unique().sort().str.join(", ").alias("publishers"))
    )
    return grouped.sort("n_pages", "licence", descending=[True, False]).to_dicts()


def count_reasons(frame: pl.DataFrame, column: str) -> list[tuple[str, int]]:
    """Return rows by reason, the most frequent first."""
    counted = frame.group_by(column).len("n").sort(["n", column], descending=[True, False])
    return counted.rows()


def count_teachers(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the rows that each teacher wrote with each version of its prompt, and what they cost."""
    names = ("teacher", "prompt_version")
    written = dataset.table("examples").filter(pl.col("teacher").is_not_null())
    return written.group_by(names).agg(pl.len().alias("n"), pl.col("cost_usd").sum()).sort(names).to_dicts()


def _calls(dataset: Dataset) -> list[dict[str, Any]]:
    names = ("purpose", "model", "prompt_version")
    tokens = ("n_input_tokens", "n_cache_write_tokens", "n_cache_read_tokens")
    calls = (
        dataset.table("teacher_calls")
        .group_by(names)
        .agg(
            pl.len().alias("n"),
            pl.sum_horizontal(tokens).sum().alias("n_input"),
            pl.col("n_output_tokens").sum().alias("n_output"),
            pl.col("cost_usd").sum(),
        )
    )
    return calls.sort(names).to_dicts()


def _leakage(dataset: Dataset) -> dict[str, Any]:
    """Look for training and validation rows that meet a test row, as the check that stops a run does."""
    training, validation, benchmark = (dataset.table(t) for t in ("training_set", "validation_set", "benchmark"))
    config = dataset.task.config.dataset
    found = find_overlaps(pl.concat([training, validation]), benchmark, dataset.table("chunks"), config)
    reasons = sorted({overlap.reason for overlap in found})
    return {
        "n_trained": training.height + validation.height,
        "n_test": benchmark.height,
        "n_met": len({overlap.example_id for overlap in found}),
        "reasons": reasons,
        "max_test_similarity": config.max_test_similarity,
    }
