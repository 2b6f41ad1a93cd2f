"""`raw_pdfs`: the PDF files that a task's globs match, and those that lie in its drop folder.

The drop folder is `<data folder>/inbox/<task>/`; whatever PDF is put there, at any depth, is collected.

What does not belong here: PDFs that pages link to (`crawl`) and what PDFs say (`corpus`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl

from ev_platform.collect.bodies import PDF, as_gone, blank_row, keep_first_seen, rows_by_url, sniff
from ev_platform.errors import UserError
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store, fingerprint
from ev_platform.tasks import Task

_INBOX = "inbox/"
_SETTLED_S = 2.0  # a copy that is under way touches its file more often than that
_END_MARK_BYTES = 1024  # a PDF's end mark lies within its last 1,024 bytes (ISO 32000-1, annex H.3.4.4)


def collect_pdfs(task: Task, store: Store, *, previous: pl.DataFrame) -> pl.DataFrame:
    """Store the PDF files that `sources.pdfs` matches, and those in the task's drop folder.

    Args:
        task: Its sources say which files.
        store: Takes the bytes; the drop folder lies below its root.
        previous: The last `raw_pdfs`; a file with the same bytes keeps its `fetched_at`.

    Returns:
        `raw_pdfs`, one row a file, sorted by url: the path below the task's folder where the glob is relative,
        `inbox/` and the path below the drop folder, else a `file:` address. A file that is no PDF, empty, too large or
        unreadable has a `drop_reason`; one that was there the last time and does not exist any more is `gone`.

    Raises:
        UserError: If a glob matches no file and never did, or two files have the same address.
    """
    known = rows_by_url(previous)
    files: dict[Path, str] = {}
    for pattern in task.sources.pdfs:
        matched = _match(task, pattern)
        if not matched and not any(_has_matched(pattern, url) for url in known):
            raise UserError(
                f"{task.folder / 'sources.yaml'}: no file matches the PDF glob {pattern!r}: put the files there, or "
                f"remove the glob."
            )
        for file, url in matched:
            files.setdefault(file.resolve(), url)
    taken = set(files.values())
    for file, url in _inbox(task, store):
        if url in taken:
            raise UserError(f"{file} has the address {url}, as a file of {task.folder} has: rename one of them.")
        files.setdefault(file.resolve(), url)
    rows = {url: _read(file, url, task, store, known.get(url)) for file, url in files.items()}
    for url, row in known.items():
        # A file that exists but is matched no longer was left out on purpose; its rows are in the table's history.
        if url not in rows and row.path and not any(file.exists() for file in _places(url, task, store)):
            rows[url] = as_gone(row, None)
    return to_frame("raw_pdfs", [rows[url] for url in sorted(rows)])


def inbox_state(task: Task, store: Store) -> str:
    """Return a hash of the names, sizes and times of the PDFs in a task's drop folder; empty where there are none.

    Files that are still being written count once they are whole, so the state changes then.
    """
    state = []
    for file, url in _inbox(task, store):
        stat = file.stat()
        state.append([url, stat.st_size, stat.st_mtime_ns])
    return fingerprint(state) if state else ""


def _inbox(task: Task, store: Store) -> Iterator[tuple[Path, str]]:
    """Yield the PDFs of the drop folder, except hidden ones and those that are still being written."""
    folder = store.root / _INBOX / task.name
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.suffix.lower() != ".pdf" or any(part.startswith(".") for part in inside.parts):
            continue  # programs that copy or load down give a file its name last: .name.pdf.Xy12, name.pdf.part
        if file.is_file() and _is_settled(file):
            # A name that is no UTF-8 must not keep the table from being written.
            yield file, _INBOX + inside.as_posix().encode(errors="surrogateescape").decode(errors="replace")


def _is_settled(file: Path) -> bool:
    """Whether a file has not been touched for two seconds, or ends as a PDF does."""
    try:
        if abs(time.time() - file.stat().st_mtime) > _SETTLED_S:
            return True
        with file.open("rb") as data:
            data.seek(max(0, os.fstat(data.fileno()).st_size - _END_MARK_BYTES))
            return b"%%EOF" in data.read()
    except FileNotFoundError:
        return False  # moved away meanwhile
    except OSError:
        return True  # `_read` will say what is wrong


def _match(task: Task, pattern: str) -> list[tuple[Path, str]]:
    if Path(pattern).is_absolute():
        anchor = Path(Path(pattern).anchor)
        found = sorted(anchor.glob(str(Path(pattern).relative_to(anchor))))
        return [(file, file.as_uri()) for file in found if file.is_file()]
    found = sorted(task.folder.glob(pattern))
    return [(file, file.relative_to(task.folder).as_posix()) for file in found if file.is_file()]


def _has_matched(pattern: str, url: str) -> bool:
    path = url2pathname(urlsplit(url).path) if url.startswith("file:") else url
    return fnmatchcase(path, pattern.replace("**/", "*"))  # fnmatch's star crosses folders


def _places(url: str, task: Task, store: Store) -> list[Path]:
    """Return where the file of an address may lie."""
    if url.startswith("file:"):
        return [Path(url2pathname(urlsplit(url).path))]
    dropped = store.root / _INBOX / task.name / url.removeprefix(_INBOX)
    return [task.folder / url, *([dropped] if url.startswith(_INBOX) else [])]


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
