"""`raw_pdfs`: the PDF files that a task's globs match.

What does not belong here: PDFs that pages link to (`crawl`) and what PDFs say (`corpus`).
"""

from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import polars as pl

from ev_platform.collect.bodies import PDF, blank_row, keep_first_seen, rows_by_url, sniff
from ev_platform.errors import UserError
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task


def collect_pdfs(task: Task, store: Store, *, previous: pl.DataFrame) -> pl.DataFrame:
    """Store the PDF files that `sources.pdfs` matches.

    Args:
        task: Its sources say which files.
        store: Takes the bytes.
        previous: The last `raw_pdfs`; a file with the same bytes keeps its `fetched_at`.

    Returns:
        `raw_pdfs`, one row a file, sorted by url: the path below the task's folder where the glob is relative, else a
        `file:` address. A file that is no PDF, empty, too large or unreadable has a `drop_reason`.

    Raises:
        UserError: If a glob matches no file.
    """
    files: dict[Path, str] = {}
    for pattern in task.sources.pdfs:
        matched = _match(task, pattern)
        if not matched:
            raise UserError(
                f"{task.folder / 'sources.yaml'}: no file matches the PDF glob {pattern!r}: put the files there, or "
                f"remove the glob."
            )
        for file, url in matched:
            files.setdefault(file.resolve(), url)
    known = rows_by_url(previous)
    rows = [_read(file, url, task, store, known.get(url)) for file, url in files.items()]
    return to_frame("raw_pdfs", sorted(rows, key=lambda row: row.url))


def _match(task: Task, pattern: str) -> list[tuple[Path, str]]:
    if Path(pattern).is_absolute():
        anchor = Path(Path(pattern).anchor)
        found = sorted(anchor.glob(str(Path(pattern).relative_to(anchor))))
        return [(file, file.as_uri()) for file in found if file.is_file()]
    found = sorted(task.folder.glob(pattern))
    return [(file, file.relative_to(task.folder).as_posix()) for file in found if file.is_file()]


def _read(file: Path, url: str, task: Task, store: Store, known: RawBody | None) -> RawBody:
    row = blank_row(url, "pdf", task.sources)
    limit = task.sources.max_bytes
    data = b""
    try:
        stat = file.stat()
        row = replace(row, n_bytes=stat.st_size, last_modified=formatdate(stat.st_mtime, usegmt=True))
        if stat.st_size <= limit:
            data = file.read_bytes()
    except OSError as error:
        return keep_first_seen(replace(row, drop_reason="unreadable", drop_detail=error.strerror), known)
    if row.n_bytes > limit:
        row = replace(row, drop_reason="too_large", drop_detail=f"more than {limit} bytes")
    elif not data:
        row = replace(row, drop_reason="empty_body")
    elif (content_type := sniff(data)) != PDF:
        row = replace(row, content_type=content_type, drop_reason="not_a_pdf", drop_detail=content_type)
    else:
        sha, path = store.put_blob(data)
        row = replace(row, content_type=PDF, content_sha256=sha, n_bytes=len(data), path=path)
    return keep_first_seen(row, known)
