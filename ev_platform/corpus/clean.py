"""Which documents may teach and answer: language, quality, relevance, duplicates; each with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import polars as pl

from ev_platform.cluster import Spread, here
from ev_platform.corpus.boilerplate import strip_boilerplate
from ev_platform.corpus.duplicates import similar_pairs
from ev_platform.corpus.language import UNSURE_BELOW
from ev_platform.corpus.quality import judge_quality
from ev_platform.corpus.relevance import relevances
from ev_platform.records import CleanDocument, DroppedDocument, to_frame
from ev_platform.tasks.config import CorpusConfig

# Documents at least this similar share a cluster and therefore a side of the train/test split, even where they are
# too different to be dropped as near-duplicates.
CLUSTER_JACCARD = 0.5


def clean_documents(
    documents: pl.DataFrame,
    description: str,
    config: CorpusConfig,
    previous: Sequence[pl.DataFrame] = (),
    spread: Spread = here,
) -> dict[str, pl.DataFrame]:
    """Split documents into those that are kept and those that are dropped.

    A document of kind `text` was chosen for this task by a person, who brought it in `texts` of sources.yaml or in
    `unstructured.csv`. So it needs no evidence that it is about the task, may be short, and is not judged as prose. It
    goes for its language where the detector is sure of it, which it seldom is of a few words and of many names, and of
    duplicates only one stays.

    Args:
        documents: The `documents` table.
        description: The task in words; relevance is measured against it.
        config: Thresholds.
        previous: Tables that this same code made with the same description; a page whose relevance stands in one of
            them is not measured again.
        spread: Which machines measure relevance, nearly all of the work; duplicates are found in this process.

    Returns:
        The tables `clean_documents` and `dropped_documents`; their rows add up to the input's.
    """
    kept: list[dict[str, Any]] = []
    dropped: list[DroppedDocument] = []

    names = list(DroppedDocument.__dataclass_fields__)

    def drop(row: dict[str, Any], reason: str, detail: str | None, duplicate_of: str | None = None) -> None:
        why: dict[str, Any] = {"drop_reason": reason, "drop_detail": detail, "duplicate_of": duplicate_of}
        known: dict[str, Any] = {name: row.get(name) for name in names}
        dropped.append(DroppedDocument(**known | why))

    extracted = []
    for row in documents.iter_rows(named=True):
        if row["drop_reason"]:
            drop(row, row["drop_reason"], row["drop_detail"])
        else:
            extracted.append(row)
    for row, (text, n_lines) in zip(extracted, strip_boilerplate(extracted), strict=True):
        row |= {"text": text, "n_chars": len(text), "n_boilerplate_lines": n_lines}
        if row["language"] not in config.languages and not (row["kind"] == "text" and _is_unsure(row)):
            drop(row, "language", f"{row['language']} ({row['language_score']:.2f})")
        elif row["kind"] == "text":
            kept.append(row)
        elif (verdict := judge_quality(text, config.min_words, row["title"] or "", row["language"])) is not None:
            drop(row, *verdict)
        else:
            kept.append(row)
    known = {
        (url, title, text): relevance
        for table in previous
        for url, title, text, relevance in table.select("url", "title", "text", "relevance").iter_rows()
        if relevance is not None
    }
    for row in kept:
        row["relevance"] = known.get((row["url"], row["title"], row["text"]))
    judged = [row for row in kept if row["kind"] != "text"]
    new = [row for row in judged if row["relevance"] is None]
    asked = pl.DataFrame(new, schema={"title": pl.String, "text": pl.String})
    measured = spread(partial(_with_relevance, description=description), asked)["relevance"] if new else []
    for row, relevance in zip(new, measured, strict=True):
        row["relevance"] = relevance
    for row in [row for row in judged if row["relevance"] < config.min_relevance]:
        drop(row, "off_topic", f"relevance {row['relevance']:.3f} < {config.min_relevance}")
    kept = [row for row in kept if row["kind"] == "text" or row["relevance"] >= config.min_relevance]

    # The survivor of a group of duplicates has the shortest address: a print version or a page with a query string
    # gives way to the page itself. Their texts differ by a fifth at the most, so length says little.
    kept.sort(key=lambda row: (len(row["url"]), row["url"], row["fetched_url"]))
    pairs = similar_pairs([row["text"] for row in kept], min(CLUSTER_JACCARD, config.near_duplicate_jaccard))
    cluster = list(range(len(kept)))
    duplicate: dict[int, tuple[int, float]] = {}
    for a, b, jaccard in pairs:  # a < b, so a is the survivor
        if jaccard >= config.near_duplicate_jaccard and a not in duplicate and b not in duplicate:
            duplicate[b] = (a, jaccard)
        root_a, root_b = _root(cluster, a), _root(cluster, b)
        cluster[max(root_a, root_b)] = min(root_a, root_b)
    clean = []
    columns = [name for name in CleanDocument.__dataclass_fields__ if name != "cluster_id"]
    for index, row in enumerate(kept):
        if index in duplicate:
            survivor, jaccard = duplicate[index]
            is_exact = _plain(row["text"]) == _plain(kept[survivor]["text"])
            reason = "exact_duplicate" if is_exact else "near_duplicate"
            drop(row, reason, f"Jaccard {jaccard:.3f} with {kept[survivor]['url']}", kept[survivor]["document_id"])
        else:
            root = kept[_root(cluster, index)]["document_id"]
            clean.append(CleanDocument(**{name: row[name] for name in columns}, cluster_id=root))
    clean.sort(key=lambda row: row.url)
    dropped.sort(key=lambda row: (row.drop_reason, row.fetched_url))
    return {
        "clean_documents": to_frame("clean_documents", clean),
        "dropped_documents": to_frame("dropped_documents", dropped),
    }


def _with_relevance(pages: pl.DataFrame, description: str) -> pl.DataFrame:
    return pl.DataFrame({"relevance": relevances(pages.to_dicts(), description)})


def _is_unsure(row: dict[str, Any]) -> bool:
    return row["language"] != "und" and row["language_score"] < UNSURE_BELOW


def _plain(text: str) -> list[str]:
    """Return the words of a text: copies that differ in case, marks and white space only are exact ones."""
    return re.findall(r"\w+", text.casefold())


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        index = parents[index]
    return index
