"""The coverage table: which chunks and texts have examples, how many, and why the others have none.

What does not belong here: deciding any of it (`sampling`, `generate`, `validate`).
"""

from __future__ import annotations

from collections import Counter, defaultdict

import polars as pl

from ev_platform.dataset.sampling import text_id
from ev_platform.records import Coverage, to_frame


def build_coverage(
    generation_log: pl.DataFrame,
    candidates: pl.DataFrame,
    examples: pl.DataFrame,
    rejected: pl.DataFrame,
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
) -> pl.DataFrame:
    """Count, for every source of the log, what was asked, made, rejected and kept.

    Examples and rejections are those of the train split: generated, labelled, reviewed, and hand-written rows that
    rest on the source. A chunk that holds the answer to a test row is `held_out`, and none of its examples counts.

    Args:
        generation_log: A row for every chunk and text.
        candidates: The `qa_candidates` table.
        examples: The `examples` table.
        rejected: The `rejected_examples` table.
        chunks: The `chunks` table.
        documents: The `clean_documents` table.

    Returns:
        The table `coverage`, one row for each row of the log, in its order.
    """
    source_of = _sources(candidates)
    n_examples = Counter(_sources(examples).values())
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for example_id, reason in rejected.select("example_id", "reject_reason").iter_rows():
        if example_id in source_of:
            reasons[source_of[example_id]][reason] += 1
    urls = dict(documents.select("document_id", "url").iter_rows())
    known = {chunk["chunk_id"]: chunk for chunk in chunks.iter_rows(named=True)}
    rows = []
    for outcome in generation_log.iter_rows(named=True):
        source_id = outcome["source_id"]
        chunk = known.get(source_id)
        status, detail = outcome["status"], outcome["detail"]
        n_rejected = reasons[source_id].total()
        if n_examples[source_id]:
            status, detail = "covered", _commonest(reasons[source_id])
        elif status == "ok":
            status, detail = "all_rejected", _commonest(reasons[source_id])
        rows.append(
            Coverage(
                source_id=source_id,
                document_id=chunk["document_id"] if chunk else None,
                url=urls.get(chunk["document_id"]) if chunk else None,
                heading_path=chunk["heading_path"] if chunk else None,
                n_tokens=chunk["n_tokens"] if chunk else None,
                n_asked=outcome["n_asked"],
                n_made=outcome["n_made"],
                n_rejected=n_rejected,
                n_examples=n_examples[source_id],
                status=status,
                detail=detail,
            )
        )
    return to_frame("coverage", rows)


def _sources(examples: pl.DataFrame) -> dict[str, str]:
    """Return the source of each train example: its chunk, or the text that was labelled."""
    rows = examples.filter(pl.col("split") != "test").select("example_id", "chunk_id", "question").iter_rows()
    return {example_id: chunk_id or text_id(question) for example_id, chunk_id, question in rows}


def _commonest(reasons: Counter[str]) -> str | None:
    if not reasons:
        return None
    reason, n = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    return f"{reason} ({n} of {reasons.total()})"
