"""What in the tables hangs on a document: which rows go, and which lose their words.

What belongs here: the rules, by table and column, and a task's ids that they apply to. What does not: which documents
are meant (`takedown`) and writing what is left (`erase`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import polars as pl

from ev_platform.identity import short_id
from ev_platform.lineage.quotes import Quotes
from ev_platform.records import schema_of
from ev_platform.storage import Store

MASK = "[taken down]"
BODIES = ("raw_pages", "raw_pdfs", "raw_texts")
DOCUMENTS = ("documents", "clean_documents", "dropped_documents")
_CORPUS = {*BODIES, *DOCUMENTS, "chunks", "chunk_vectors"}
_EXAMPLES = ("qa_candidates", "examples", "rejected_examples")
ROWS = ("training_set", "validation_set", "benchmark")
# Tables whose rows go, by the columns that tie them to what is taken down; of the others only words are replaced.
REMOVED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(BODIES, ("url",)),
    **dict.fromkeys(DOCUMENTS, ("document_id",)),
    "chunks": ("document_id",),
    "chunk_vectors": ("passage_id",),
    **dict.fromkeys(_EXAMPLES, ("example_id",)),
    **dict.fromkeys(ROWS, ("example_id", "document_id", "chunk_id", "context_chunk_ids")),
    "feedback_candidates": ("example_id", "chunk_ids"),
    "reviews": ("example_id",),
    "coverage": ("source_id", "document_id"),
    "generation_log": ("source_id",),
    "abstention_scores": ("question",),
}
# Of a table, the columns that tie a row to what is taken down, and the words that it loses then.
_MASKED: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "predictions": (
        (("example_id", "gold_chunk_id"), ("question", "reference", "prediction")),
        (("context_chunk_ids",), ("prediction",)),
    ),
    "teacher_answers": ((("example_id",), ("question", "reference", "prediction", "judge_reason")),),
    "pair_judgements": ((("example_id",), ("reason",)),),
    "teacher_calls": ((("call_id",), ("detail",)),),
}
# Ids are no words, JSON must stay readable, and the task's own instructions are in every row.
_NO_WORDS = frozenset(
    {"instruction", "recipe", "inputs", "metrics", "scores", "serving", "thresholds", "overrides", "touched"}
)
_ID_OF = {
    "url": "urls",
    "document_id": "documents",
    "chunk_id": "chunks",
    "gold_chunk_id": "chunks",
    "context_chunk_ids": "chunks",
    "chunk_ids": "chunks",
    "source_id": "chunks",
    "passage_id": "passages",
    "example_id": "examples",
    "question": "questions",
    "call_id": "calls",
}


@dataclass
class Ids:
    """What is taken down in one task, by kind.

    Attributes:
        urls: Of bodies, as the rows say them.
        blobs: Their paths, relative to the data folder.
        documents: Of all versions.
        chunks: Of all versions.
        passages: As `chunk_vectors` names them.
        examples: Made from one of the passages, or resting on one.
        questions: Theirs, as hashes: a plan that waits on the disk must not hold words.
        calls: Of the teachers that made, checked or answered them.
    """

    urls: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    chunks: set[str] = field(default_factory=set)
    passages: set[str] = field(default_factory=set)
    examples: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)

    def __or__(self, other: Ids) -> Ids:
        return Ids(*(getattr(self, f.name) | getattr(other, f.name) for f in fields(Ids)))


def versions(store: Store, table: str, task: str, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield some columns of every stored version of a table, oldest first."""
    for record in store.history(table, task):
        yield store.read(table, task, record.version).select(columns)


def every(store: Store, table: str, task: str, columns: Sequence[str]) -> pl.DataFrame:
    """Return the distinct rows of all versions of a table, in some columns."""
    empty = pl.DataFrame(schema={name: schema_of(table)[name] for name in columns})
    return pl.concat([empty, *versions(store, table, task, columns)]).unique(maintain_order=True)


def dependants(store: Store, task: str, urls: set[str], documents: set[str]) -> Ids:
    """Follow some documents of a task to all that was made of them, in every stored version.

    Args:
        store: Where the tables lie.
        task: Partition.
        urls: Of the bodies, as `raw_pages`, `raw_pdfs` and `raw_texts` say them.
        documents: Ids.
    """
    from ev_platform.prompting import passage_text

    ids = Ids(urls=urls, documents=documents)
    for table in BODIES:
        bodies = every(store, table, task, ["url", "path"]).filter(pl.col("url").is_in(urls))
        ids.blobs |= set(bodies["path"].drop_nulls())
    chunks = every(store, "chunks", task, ["document_id", "chunk_id", "heading_path", "text"])
    for _, chunk_id, heading, text in chunks.filter(pl.col("document_id").is_in(documents)).iter_rows():
        ids.chunks.add(chunk_id)
        ids.passages.add(short_id("psg", passage_text(heading, text)))
    others = chunks.filter(~pl.col("document_id").is_in(documents)).select("heading_path", "text")
    ids.passages -= {short_id("psg", passage_text(heading, text)) for heading, text in others.iter_rows()}
    for table in (*_EXAMPLES, *ROWS, "feedback_candidates"):
        columns = [c for c in ("example_id", "question", "call_id", "check_call_id") if c in schema_of(table)]
        ties = [c for c in ("document_id", "chunk_id", "chunk_ids") if c in schema_of(table)]
        for frame in versions(store, table, task, [*columns, *ties]):
            made = frame.filter(_tied(ties, ids))
            ids.examples |= set(made["example_id"])
            ids.questions |= {short_id("qst", question) for question in made["question"]}
            for column in columns[2:]:
                ids.calls |= set(made[column].drop_nulls())
    log = every(store, "generation_log", task, ["source_id", "call_id"])
    ids.calls |= set(log.filter(pl.col("source_id").is_in(ids.chunks))["call_id"].drop_nulls())
    answers = every(store, "teacher_answers", task, ["example_id", "call_id", "judge_call_id"])
    answers = answers.filter(pl.col("example_id").is_in(ids.examples))
    judgements = every(store, "pair_judgements", task, ["example_id", "call_ids"])
    judged = judgements.filter(pl.col("example_id").is_in(ids.examples))["call_ids"].explode()
    for column in (answers["call_id"], answers["judge_call_id"], judged):
        ids.calls |= set(column.drop_nulls())
    return ids


def _tied(columns: Sequence[str], ids: Ids) -> pl.Expr:
    """Return whether a row names, in one of the columns, something that is taken down."""
    ties = []
    for column in columns:
        meant = sorted(getattr(ids, _ID_OF[column]))
        named = pl.col(column)
        if column == "question":
            named = named.map_elements(lambda question: short_id("qst", question), return_dtype=pl.String)
        is_list = column.endswith("_ids")
        ties.append(named.list.eval(pl.element().is_in(meant)).list.any() if is_list else named.is_in(meant))
    return pl.any_horizontal(*(tie.fill_null(value=False) for tie in ties))


@dataclass(frozen=True)
class Redacted:
    """A frame without what is taken down.

    Attributes:
        frame: Its columns as they were.
        n_removed: Rows that went.
        n_masked: Rows that lost words.
    """

    frame: pl.DataFrame
    n_removed: int
    n_masked: int


def redact(table: str, frame: pl.DataFrame, ids: Ids, quotes: Quotes) -> Redacted:
    """Remove the rows that hang on what is taken down, and replace words where the row itself stays.

    Args:
        table: Says by which rules.
        frame: One version; of an older release it may lack columns.
        ids: What is taken down.
        quotes: Its words; a row of the dataset that quotes them goes, elsewhere they are replaced.
    """
    quoted = pl.Series([False] * frame.height, dtype=pl.Boolean)
    masks: dict[str, pl.Series] = {}
    if table not in _CORPUS:
        for name in frame.columns:
            dtype = frame.schema[name]
            if name in _NO_WORDS or not (dtype == pl.String or isinstance(dtype, pl.List)):
                continue
            found = quotes.are_in_column(frame[name])
            if dtype == pl.String:
                masks[name] = found
            quoted |= found
    if table in REMOVED:
        ties = [column for column in REMOVED[table] if column in frame.columns]
        gone = frame.select(_tied(ties, ids)).to_series() | quoted if ties and frame.height else quoted
        return Redacted(frame.filter(~gone), int(gone.sum()), 0)
    for ties, words in _MASKED.get(table, ()):
        tied = frame.select(_tied([c for c in ties if c in frame.columns], ids)).to_series()
        for name in words:
            masks[name] = masks[name] | tied if name in masks else tied
    masks = {name: mask & frame[name].is_not_null() & (frame[name] != MASK) for name, mask in masks.items()}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if not masks:
        return Redacted(frame, 0, 0)
    n_masked = int(pl.DataFrame(masks).select(pl.any_horizontal(pl.all())).to_series().sum())
    changed = [pl.when(mask).then(pl.lit(MASK)).otherwise(pl.col(name)).alias(name) for name, mask in masks.items()]
    return Redacted(frame.with_columns(changed), 0, n_masked)
