"""Rows of the stages `collect` and `corpus`: bodies, documents, chunks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from ev_platform.records.columns import VOLATILE


@dataclass(frozen=True, slots=True)
class RawBody:
    """One fetched or failed body (`raw_pages`, `raw_pdfs`, `raw_texts`)."""

    url: str  # as linked, without fragment
    final_url: str  # after redirects
    kind: str  # "web", "pdf", or "text" for what the task brings itself
    status: int | None  # HTTP status; None for a local file or when no answer came
    content_type: str | None  # as sniffed from the bytes
    content_sha256: str | None
    n_bytes: int
    path: str | None  # of the bytes, relative to the data folder
    fetched_at: Annotated[datetime, VOLATILE]  # when these very bytes were first fetched
    checked_at: Annotated[datetime, VOLATILE]  # when they were last asked for
    etag: Annotated[str | None, VOLATILE]
    last_modified: Annotated[str | None, VOLATILE]
    licence: str
    publisher: str
    depth: int  # links away from a seed; 0 for seeds and files
    referrer: str | None  # url of the page that linked here first
    robots: (
        str  # what robots.txt said: "allowed", "disallowed", "none" (there is no file), "ignored" or "not_applicable"
    )
    charset: str | None  # as the Content-Type header declares
    robots_header: str | None  # the answer's X-Robots-Tag
    drop_reason: str | None  # why there is no usable body
    drop_detail: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """One version of one document (`documents`); with a `drop_reason` where no text could be had."""

    document_id: str  # hash of url and text
    url: str  # canonical where the page declares one
    fetched_url: str
    kind: str
    title: str | None
    author: str | None
    publisher: str
    published_on: str | None  # ISO 8601 date
    modified_on: str | None
    licence: str
    language_declared: str | None  # ISO 639-1
    language: str | None  # ISO 639-1, detected; None without text
    language_score: float | None  # share of the text that is in it, 0 to 1
    robots: str  # as in `raw_pages`
    content_sha256: str | None
    fetched_at: Annotated[datetime, VOLATILE]
    text: str  # Markdown, personal data masked
    page_offsets: list[int]  # PDF: start of each page in `text`; empty for web pages
    n_chars: int
    n_masked: int  # personal data replaced by a mark
    drop_reason: str | None
    drop_detail: str | None


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """One document that passed every filter (`clean_documents`)."""

    document_id: str
    url: str
    fetched_url: str
    kind: str
    title: str | None
    author: str | None
    publisher: str
    published_on: str | None
    modified_on: str | None
    licence: str
    language_declared: str | None  # ISO 639-1
    language: str  # ISO 639-1, detected
    language_score: float  # share of the text that is in it, 0 to 1
    robots: str  # as in `raw_pages`
    content_sha256: str | None
    fetched_at: Annotated[datetime, VOLATILE]
    text: str  # without the lines that its site repeats
    page_offsets: list[int]
    n_chars: int
    n_masked: int  # personal data replaced by a mark
    n_boilerplate_lines: int  # removed, because the site repeats them
    relevance: float | None  # 0 to 1; 0.5 is even evidence; None where a person chose the text for the task
    cluster_id: str  # documents about the same text share it (near-duplicates)


@dataclass(frozen=True, slots=True)
class DroppedDocument:
    """One document that was set aside, with its reason (`dropped_documents`)."""

    document_id: str
    url: str
    fetched_url: str
    kind: str
    title: str | None
    publisher: str
    licence: str
    language: str | None  # ISO 639-1, detected
    fetched_at: Annotated[datetime, VOLATILE]
    text: str
    drop_reason: str
    drop_detail: str | None  # the figure that tripped the filter
    relevance: float | None  # where it was measured
    duplicate_of: str | None  # document_id of the survivor


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage of one clean document (`chunks`)."""

    chunk_id: str  # hash of document_id, span and text
    document_id: str
    cluster_id: str
    ordinal: int
    start: int  # span in the document's text, in characters
    end: int
    heading_path: str  # "Title > Section > Subsection"
    page: int | None  # 1-based, PDF only
    text: str
    n_tokens: int  # in the student's tokens


@dataclass(frozen=True, slots=True)
class ChunkVector:
    """What the sentence embedder makes of one passage (`chunk_vectors`)."""

    passage_id: str  # hash of headings and text, which is what is embedded
    embedder: str
    vector: Annotated[list[float], VOLATILE]  # unit length; its last digits depend on the processor


@dataclass(frozen=True, slots=True)
class CorpusFigure:
    """One bar of the corpus report (`corpus_report`): documents, or chunks, counted by one of their properties."""

    section: str  # "outcome", "language", "source", "publisher", "licence", "kind", "n_chars", "chunk_n_tokens"
    name: str
    n: int  # documents that came in; chunks in the sections whose name begins with "chunk_"
    n_kept: int
    n_chars: int  # of what is kept
