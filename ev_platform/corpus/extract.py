"""One `documents` row for each fetched body: who reads it, with which limits, and what becomes of the result.

How a web page or a PDF is read does not belong here (`html`, `pdf`), nor how processes are run (`workers`).
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import polars as pl
from tqdm import tqdm

from ev_platform.cluster import Spread, here
from ev_platform.corpus.extracted import Extracted, UnusableError
from ev_platform.corpus.html import read_html
from ev_platform.corpus.language import detect_language
from ev_platform.corpus.pdf import PAGES_PER_CALL, PdfFacts, join_pages, open_pdf
from ev_platform.corpus.pdf_pages import Block, read_pages
from ev_platform.corpus.privacy import mask_personal_data
from ev_platform.corpus.text import read_text
from ev_platform.corpus.workers import Call, Job, run_jobs, worker_pool
from ev_platform.identity import short_id
from ev_platform.records import Document, to_frame
from ev_platform.storage import Store

# The first three may be the machine's hour and not the file's fault; the others are of a body that was not read.
READ_AGAIN = ("extraction_timeout", "extraction_crashed", "extraction_failed", "gone", "noindex")
# A text of a few pages is read where it lies: a task may bring thousands, and each costs less than handing it over.
MAX_BYTES_HERE = 200_000

log = logging.getLogger(__name__)


def extract_documents(
    bodies: pl.DataFrame,
    store: Store,
    previous: pl.DataFrame | None = None,
    *,
    workers: int = 1,
    timeout_s: float = 60.0,
    max_pdf_pages: int = 2000,
    spread: Spread = here,
) -> pl.DataFrame:
    """Extract one document from each fetched body.

    Files are read in processes of their own, which start with the first file that must be read: a file that hangs,
    crashes or eats memory costs its own row and nothing else. Short texts of the task's own are read in this process.
    The rows do not depend on the number of workers, nor on the machines that they are on.

    Args:
        bodies: Rows of `raw_pages`, `raw_pdfs` and `raw_texts`.
        store: Holds the bytes.
        previous: Documents of an earlier run of this same code; a body whose bytes are in it is not extracted again.
        workers: Processes.
        timeout_s: Longest time for a page, or for `PAGES_PER_CALL` pages of a PDF.
        max_pdf_pages: A longer PDF is set aside.
        spread: Which machines read what must be read.

    Returns:
        One `documents` row for each body, ordered by `url`; rows without text carry a `drop_reason`.
    """
    done: dict[tuple[str, str | None], dict[str, Any]] = {}
    if previous is not None:
        done = {(row["fetched_url"], row["content_sha256"]): row for row in previous.iter_rows(named=True)}
    bodies = bodies.sort("url", maintain_order=True)
    rows: dict[int, Document] = {}
    unread: list[int] = []
    for n, body in enumerate(bodies.iter_rows(named=True)):
        known = done.get((body["url"], body["content_sha256"]))
        if body["drop_reason"] or not body["path"]:
            rows[n] = _document(body, UnusableError(body["drop_reason"], body["drop_detail"]))
        elif known is not None and known["drop_reason"] not in READ_AGAIN:
            rows[n] = _again(known, body)
        else:
            unread.append(n)
    read = partial(_read, store=store, workers=workers, timeout_s=timeout_s, max_pdf_pages=max_pdf_pages)
    fresh = spread(read, bodies[unread]) if unread else to_frame("documents", [])
    numbered = [to_frame("documents", rows.values()).with_columns(n=pl.Series(rows.keys(), dtype=pl.Int64))]
    numbered.append(fresh.with_columns(n=pl.Series(unread, dtype=pl.Int64)))
    return pl.concat(numbered).sort("n").drop("n")


def _read(bodies: pl.DataFrame, store: Store, workers: int, timeout_s: float, max_pdf_pages: int) -> pl.DataFrame:
    """Return the documents of bodies, in their order."""
    store.bring(bodies["path"])
    rows: dict[int, Document] = {}
    unread: dict[int, dict[str, Any]] = {}
    for n, body in enumerate(bodies.iter_rows(named=True)):
        if body["kind"] == "text" and body["n_bytes"] <= MAX_BYTES_HERE:
            rows[n] = _document(body, _read_here(store.root / body["path"]))
        else:
            unread[n] = body
    jobs = ((n, _job(body, store.root / body["path"], timeout_s, max_pdf_pages)) for n, body in unread.items())
    with worker_pool(workers) as pool:
        results = run_jobs(jobs, pool, workers)
        for n, got in tqdm(results, total=len(unread), desc="extract", unit="doc", disable=None if unread else True):
            rows[n] = _document(unread[n], got)
    return to_frame("documents", [rows[n] for n in sorted(rows)])


def _again(known: dict[str, Any], body: dict[str, Any]) -> Document:
    fresh = {"fetched_at": body["fetched_at"], "robots": body["robots"]}
    fresh |= {name: body[name] for name in ("licence", "publisher") if known[name] == "unknown"}
    return Document(**{**known, **fresh})


def _job(body: dict[str, Any], path: Path, timeout_s: float, max_pdf_pages: int) -> Job:
    try:
        if body["kind"] == "pdf":
            return (yield from pdf_job(path, body["url"], timeout_s, max_pdf_pages))
        if body["kind"] == "text":
            (got,) = yield [Call(_finished_text, (path,), timeout_s)]
            return got
        (got,) = yield [Call(_finished_page, (path, body["final_url"], body["charset"]), timeout_s)]
        return got
    except UnusableError as error:  # one bad file is set aside with its reason, never stops a run
        return error


def pdf_job(path: Path, url: str, timeout_s: float, max_pages: int) -> Job:
    """Read a PDF, ranges of its pages side by side."""
    (facts,) = yield [Call(open_pdf, (path, max_pages), timeout_s)]
    starts = range(0, facts.n_pages, PAGES_PER_CALL)
    ranges = yield [
        Call(read_pages, (path, start, min(start + PAGES_PER_CALL, facts.n_pages)), timeout_s) for start in starts
    ]
    pages = [page for pages in ranges for page in pages]
    if empty := sum(not page for page in pages):
        log.info("%s: %d of %d pages hold no text", url, empty, len(pages))
    (got,) = yield [Call(_finished_pdf, (facts, pages), timeout_s)]
    return got


def _finished_page(path: Path, url: str, charset: str | None) -> Extracted:
    return _finish(read_html(path.read_bytes(), url, charset))


def _finished_text(path: Path) -> Extracted:
    return _finish(read_text(path.read_bytes()))


def _read_here(path: Path) -> Extracted | UnusableError:
    try:
        return _finished_text(path)
    except UnusableError as error:
        return error
    except Exception as error:
        return UnusableError("extraction_failed", f"{type(error).__name__}: {error}"[:300])


def _finished_pdf(facts: PdfFacts, pages: list[list[Block]]) -> Extracted:
    return _finish(join_pages(facts, pages))


def _finish(got: Extracted) -> Extracted:
    """Mask personal data and detect the language: still in the worker, for both run patterns over a stranger's text."""
    for name, value in vars(got).items():
        if isinstance(value, str):  # half a character (a lone surrogate) cannot be stored
            setattr(got, name, value.encode("utf-8", "replace").decode())
    got.text, got.page_offsets, got.n_masked = _mask(got.text, got.page_offsets)
    got.title, n_in_title = mask_personal_data(got.title) if got.title else (None, 0)
    got.n_masked += n_in_title
    got.language, got.language_score = detect_language(got.text, got.language_declared)
    return got


def _document(body: dict[str, Any], result: Extracted | UnusableError) -> Document:
    got = Extracted() if isinstance(result, UnusableError) else result
    failed = result if isinstance(result, UnusableError) else None
    url = got.canonical or body["url"]
    return Document(
        document_id=short_id("doc", url, got.text if got.text else body["url"]),
        url=url,
        fetched_url=body["url"],
        kind=body["kind"],
        title=got.title or _name_of(url),
        author=got.author,
        publisher=got.publisher or body["publisher"],
        published_on=got.published_on,
        modified_on=got.modified_on,
        licence=got.licence or body["licence"],
        language_declared=got.language_declared,
        language=got.language,
        language_score=got.language_score,
        robots=body["robots"],
        content_sha256=body["content_sha256"],
        fetched_at=body["fetched_at"],
        text=got.text,
        page_offsets=got.page_offsets,
        n_chars=len(got.text),
        n_masked=got.n_masked,
        drop_reason=failed.reason if failed else None,
        drop_detail=failed.detail if failed else None,
    )


def _name_of(url: str) -> str | None:
    """Return the name of the page or file, without its ending; a row of a file has none."""
    parts = urlsplit(url)
    return (PurePosixPath(parts.path).stem or None) if parts.scheme != "task" else None


def _mask(text: str, page_offsets: list[int]) -> tuple[str, list[int], int]:
    """Mask personal data page by page, so that the pages' offsets stay true."""
    if not page_offsets:
        masked, n = mask_personal_data(text)
        return masked, [], n
    parts, offsets, at, total = [], [], 0, 0
    for start, end in pairwise([*page_offsets, len(text)]):
        part, n = mask_personal_data(text[start:end])
        offsets.append(at)
        parts.append(part)
        at += len(part)
        total += n
    return "".join(parts), offsets, total
