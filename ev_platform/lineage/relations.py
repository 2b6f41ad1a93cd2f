"""Which row of which table joins what to what, and how far that is followed.

What does not belong here: how the joins are stored (`index`), what is reached through them (`reach`, `trace`).
"""

from __future__ import annotations

from typing import NamedTuple

from ev_platform.records import SERVED, TABLES


class Relation(NamedTuple):
    """How a row of a table joins a parent to a child.

    Attributes:
        parent: Kind.
        child: Kind.
        parent_sql: The parent's id; may be NULL.
        child_sql: The child's id; may be NULL.
        join_sql: What the rows, `own`, are joined to where they do not name both. Edges are stored with the rows, so it
            must say the same whenever it is asked.
        reads: Tables that `join_sql` names; it sees all their versions of the task.
    """

    parent: str
    child: str
    parent_sql: str
    child_sql: str
    join_sql: str = ""
    reads: tuple[str, ...] = ()


# An address may have held several bodies, and a body may have come from several addresses: it takes both to name one.
_RAW = (Relation("url", "body", "unnest(list_distinct([url, final_url]))", "url || '#sha256=' || content_sha256"),)
_ORIGIN = (
    Relation("chunk", "example", "chunk_id", "example_id"),
    Relation("document", "example", "CASE WHEN chunk_id IS NULL THEN document_id END", "example_id"),
)
_ASKED = Relation("request", "example", "request_id", "example_id")
# One request may have given several candidates: which of them became the row, its reviewed words tell. Rejected ones
# keep their id. What is decided on stays as it was then, so that its newest row is the one that was decided on.
_SAID = Relation(
    "feedback",
    "example",
    "said.feedback_id",
    "own.example_id",
    """
    JOIN (
        SELECT DISTINCT c.feedback_id, c.example_id, c.request_id, r.question, r.answer, r.decision = 'reject' AS is_out
        FROM (SELECT DISTINCT ON (example_id) * FROM {feedback_candidates} ORDER BY example_id, filename DESC) AS c
        JOIN {reviews} AS r ON r.example_id = c.example_id
    ) AS said ON own.request_id = said.request_id AND own.question = said.question AND own.answer = said.answer
        AND (own.example_id = said.example_id) = said.is_out
    """,
    ("feedback_candidates", "reviews"),
)
_MADE = Relation("call", "example", "unnest([call_id, check_call_id])", "example_id")
# Rows are of one content of a table, {dataset}: what another version trained on is another row.
_ROW = "'{dataset}/' || example_id"
_ROWS = (
    *_ORIGIN,
    _ASKED,
    Relation("example", "row", "example_id", _ROW),
    Relation("chunk", "row", "unnest(list_filter(context_chunk_ids, lambda c: c IS DISTINCT FROM chunk_id))", _ROW),
    Relation("row", "dataset", _ROW, "'{dataset}'"),
)
_ARTIFACT = (Relation("adapter", "weights", "NULL", "artifact_id"),)
RELATIONS: dict[str, tuple[Relation, ...]] = {
    "raw_pages": _RAW,
    "raw_pdfs": _RAW,
    "raw_texts": _RAW,
    "documents": (
        Relation("body", "document", "fetched_url || '#sha256=' || content_sha256", "document_id"),
        Relation("url", "document", "CASE WHEN url <> fetched_url THEN url END", "document_id"),
    ),
    "chunks": (
        Relation("document", "chunk", "document_id", "chunk_id"),
        Relation("chunk", "dataset", "chunk_id", "'{dataset}'"),
    ),
    "qa_candidates": (*_ORIGIN, _ASKED, _MADE),
    "examples": (*_ORIGIN, _ASKED, _SAID, _MADE),
    "rejected_examples": (*_ORIGIN, _ASKED, _SAID, _MADE),
    "teacher_calls": (Relation("chunk", "call", "NULL", "call_id"),),
    # A teacher that labels texts is asked about those, and not about passages.
    "generation_log": (
        Relation("chunk", "call", "CASE WHEN starts_with(source_id, 'chk_') THEN source_id END", "call_id"),
    ),
    "training_set": _ROWS,
    "validation_set": _ROWS,
    "benchmark": _ROWS,
    "adapter": (Relation("dataset", "adapter", "unnest({inputs})", "artifact_id"),),
    "serving_model": _ARTIFACT,
    "base_serving_model": _ARTIFACT,
    "registered_model": (
        Relation("adapter", "weights", "adapter_id", "serving_model_id"),
        Relation("weights", "model", "serving_model_id", "model_version"),
        Relation(
            "dataset",
            "model",
            "unnest(['benchmark@' || left(benchmark_fingerprint, 12), 'chunks@' || left(chunks_fingerprint, 12)])",
            "model_version",
        ),
    ),
    "promotions": (Relation("model", "promotion", "model_version", "model_version || '#' || (file_row_number + 1)"),),
    "predictions": (
        Relation("example", "prediction", "example_id", "prediction_id"),
        Relation("chunk", "prediction", "unnest(context_chunk_ids)", "prediction_id"),
        Relation("weights", "prediction", "model_id", "prediction_id"),
    ),
    "requests": (
        Relation("model", "request", "model_version", "request_id"),
        Relation("chunk", "request", "unnest(chunk_ids)", "request_id"),
    ),
    "feedback": (Relation("request", "feedback", "request_id", "feedback_id"),),
}
# Where the newest file that names a node tells all of its far ends: its id is a hash of them, or of its row.
ONE = {
    ("document", "chunk", False),
    ("chunk", "example", False),
    ("example", "row", False),
    ("chunk", "row", False),
    ("row", "dataset", True),
}
# What a version was only measured by is no source of it; what tests it depends on that all the same.
FORWARD_ONLY = {("dataset", "model")}
# All that a model ever answered is not counted among what depends on one of its sources, but on the model.
ANSWERS = {("model", "request"), ("weights", "prediction")}

assert set(RELATIONS) <= {*TABLES, *SERVED}  # noqa: S101
