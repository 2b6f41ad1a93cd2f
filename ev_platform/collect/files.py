"""`raw_pdfs` and `raw_texts`: the files that a task's globs match, its drop folder, and its unlabelled texts.

The drop folder is `<data folder>/inbox/<task>/`; whatever PDF is put there, at any depth, is collected.

What does not belong here: PDFs that pages link to (`crawl`) and what files say (`corpus`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from email.utils import formatdate
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl

from ev_platform.collect.bodies import HTML, PDF, TEXT, as_gone, blank_row, keep_first_seen, rows_by_url, sniff
from ev_platform.collect.refused import TAKEN_DOWN, refused_addresses
from ev_platform.errors import UserError
from ev_platform.identity import fingerprint
from ev_platform.records import RawBody, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.formats import Problem
from ev_platform.tasks.rows import row_files, scan_placed_texts
from ev_platform.tasks.types import get_task_type

_INBOX = "inbox/"
_ROWS = "task:"  # addresses of rows of the task's own file
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
        `inbox/` and the path below the drop folder, else a `file:` address. A file that is no PDF, empty, too large,
        unreadable or taken down has a `drop_reason`; one that was there the last time and does not exist any more is
        `gone`.

    Raises:
        UserError: If a glob matches no file and never did, or two files have the same address.
    """
    known, refused = rows_by_url(previous), refused_addresses(store, task.name)
    files = _match_all(task, task.sources.pdfs, "PDF", known)
    taken = set(files.values())
    for file, url in _inbox(task, store):
        if url in taken:
            raise UserError(f"{file} has the address {url}, as a file of {task.folder} has: rename one of them.")
        files.setdefault(file.resolve(), url)
    rows = {url: _read(file, url, "pdf", task, store, known.get(url), refused) for file, url in files.items()}
    rows |= _gone(rows, known, task, store)
    return to_frame("raw_pdfs", [rows[url] for url in sorted(rows)])


def collect_texts(task: Task, store: Store, *, previous: pl.DataFrame) -> pl.DataFrame:
    """Store the text files that `sources.texts` matches and, if the task type has a corpus, its unlabelled texts.

    Where questions are written about a corpus, each row of `unstructured.csv` is a document. In a classification task
    the rows are texts to label and no documents.

    Args:
        task: Its sources say which files.
        store: Takes the bytes, one blob a file and one a row.
        previous: The last `raw_texts`; a text with the same bytes keeps its `fetched_at`.

    Returns:
        `raw_texts`, one row a text, files by url and then rows in the file's order. The address of a file is `file:`
        and the path below the task's folder (`file:docs/keys.md`), or the absolute one where the glob is absolute; of
        a row it is the task, the file and the place as a spreadsheet shows it (`task:my_task/unstructured.csv#row=12`).
        What is no text, empty, too large, unreadable or taken down has a `drop_reason`; a file that was there the
        last time and does not exist any more is `gone`.

    Raises:
        UserError: If a glob matches no file and never did, or `unstructured.csv` cannot be parsed at all.
    """
    known, refused = rows_by_url(previous), refused_addresses(store, task.name)
    files = _match_all(task, task.sources.texts, "text", known)
    rows = {url: _read(file, url, "text", task, store, known.get(url), refused) for file, url in files.items()}
    rows |= _gone(rows, known, task, store)
    found = [rows[url] for url in sorted(rows)]
    if get_task_type(task.config.type).has_corpus:
        found += _read_rows(task, store, known, refused)
        store.sync_blobs()
    return to_frame("raw_texts", found)


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


def _match_all(task: Task, patterns: Iterable[str], what: str, known: Mapping[str, RawBody]) -> dict[Path, str]:
    """Return the address of each file that the globs match."""
    prefix = "file:" if what == "text" else ""
    files: dict[Path, str] = {}
    for pattern in patterns:
        matched = _match(task, pattern, prefix)
        if not matched and not any(_has_matched(pattern, url) for url in known):
            raise UserError(
                f"{task.folder / 'sources.yaml'}: no file matches the {what} glob {pattern!r}: put the files there, or "
                f"remove the glob."
            )
        for file, url in matched:
            files.setdefault(file.resolve(), url)
    return files


def _match(task: Task, pattern: str, prefix: str) -> list[tuple[Path, str]]:
    if Path(pattern).is_absolute():
        anchor = Path(Path(pattern).anchor)
        found = sorted(anchor.glob(str(Path(pattern).relative_to(anchor))))
        return [(file, file.as_uri()) for file in found if file.is_file()]
    found = sorted(task.folder.glob(pattern))
    return [(file, prefix + file.relative_to(task.folder).as_posix()) for file in found if file.is_file()]


def _has_matched(pattern: str, url: str) -> bool:
    path = url2pathname(urlsplit(url).path) if url.startswith("file:/") else url.removeprefix("file:")
    return fnmatchcase(path, pattern.replace("**/", "*"))  # fnmatch's star crosses folders


def _gone(rows: Mapping[str, RawBody], known: Mapping[str, RawBody], task: Task, store: Store) -> dict[str, RawBody]:
    """Return the rows of files that were there the last time and do not exist any more.

    A file that exists but is matched no longer was left out on purpose; its rows are in the table's history.
    """
    return {
        url: as_gone(row, None)
        for url, row in known.items()
        if url not in rows
        and row.path
        and not url.startswith(_ROWS)
        and not any(file.exists() for file in _places(url, task, store))
    }


def _places(url: str, task: Task, store: Store) -> list[Path]:
    """Return where the file of an address may lie."""
    if url.startswith("file:/"):
        return [Path(url2pathname(urlsplit(url).path))]
    if url.startswith("file:"):
        return [task.folder / url.removeprefix("file:")]
    dropped = store.root / _INBOX / task.name / url.removeprefix(_INBOX)
    return [task.folder / url, *([dropped] if url.startswith(_INBOX) else [])]


def _read(
    file: Path, url: str, kind: str, task: Task, store: Store, known: RawBody | None, refused: frozenset[str]
) -> RawBody:
    row = blank_row(url, kind, task.sources)
    if url in refused:
        return keep_first_seen(replace(row, drop_reason=TAKEN_DOWN), known)
    limit = task.sources.max_bytes
    data = b""
    try:
        stat = file.stat()
        row = replace(row, n_bytes=stat.st_size, last_modified=formatdate(stat.st_mtime, usegmt=True))
        if stat.st_size <= limit:
            data = file.read_bytes()
    except OSError as error:
        return keep_first_seen(replace(row, drop_reason="unreadable", drop_detail=error.strerror), known)
    content_type = sniff(data)
    is_right = content_type == PDF if kind == "pdf" else _is_text(data, content_type)
    if row.n_bytes > limit:
        row = replace(row, drop_reason="too_large", drop_detail=f"more than {limit} bytes")
    elif not data.strip():
        row = replace(row, drop_reason="empty_body")
    elif not is_right:
        row = replace(row, content_type=content_type, drop_reason=f"not_a_{kind}", drop_detail=content_type)
    else:
        sha, path = store.put_blob(data)
        content_type = PDF if kind == "pdf" else TEXT
        row = replace(row, content_type=content_type, content_sha256=sha, n_bytes=len(data), path=path)
    return keep_first_seen(row, known)


def _is_text(data: bytes, content_type: str) -> bool:
    # Markdown may begin with a tag, a brace or a bracket; a whole page of HTML is no Markdown.
    if content_type == HTML:
        return not re.match(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html)\b", data, re.I)
    return content_type in (TEXT, "application/json", "application/xml")


def _read_rows(task: Task, store: Store, known: Mapping[str, RawBody], refused: frozenset[str]) -> list[RawBody]:
    """Return a row for each text of `unstructured.csv`, in the file's order; none where there is no such file."""
    if not row_files(task, "unstructured"):
        return []
    rows = []
    for file, place, text in scan_placed_texts(task):
        url = f"{_ROWS}{task.name}/{file.name}#{place.replace(' ', '=')}"
        row = blank_row(url, "text", task.sources)
        if url in refused:
            row = replace(row, drop_reason=TAKEN_DOWN)
        elif isinstance(text, Problem):
            row = replace(row, drop_reason="unusable_row", drop_detail=text.sentence)
        else:
            data = text.encode()
            sha, path = store.put_blob(data, sync=False)
            row = replace(row, content_type=TEXT, content_sha256=sha, n_bytes=len(data), path=path)
        rows.append(keep_first_seen(row, known.get(url)))
    return rows
