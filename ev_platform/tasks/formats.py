"""Files of rows as records: CSV, JSONL, and JSON lists; each broken row is told by file, row and column.

What the fields of a record mean is decided in `rows`; SQuAD files are read by `squad`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".json")
MAX_FIELD_CHARS = 200_000
MAX_FILE_BYTES = 256_000_000


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row, or with a whole file.

    Attributes:
        sentence: What is wrong, with the file's path and the row in it.
        file: The file's name.
        place: The row, as a person would look it up.
        column: As the file calls it.
    """

    sentence: str
    file: str
    place: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file holds it; `place` is such as `row 3`."""

    place: str
    data: dict[str, Any]


def find_files(folder: Path, name: str) -> list[Path]:
    """Return the files of a split (or of `unstructured`) in the order of preference; the first one is read."""
    return [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]


def read_text(file: Path) -> str:
    """Read a text file that a person wrote, without its byte order mark.

    Raises:
        UserError: If it is too large, cannot be read, is not UTF-8, or holds a NUL byte.
    """
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"{file} has {size:,} bytes, more than {MAX_FILE_BYTES:,}: leave rows out.")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): change its permissions.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    nul = text.find("\0")
    if nul >= 0:
        line = text.count("\n", 0, nul) + 1
        raise UserError(f"{file} line {line} holds a NUL byte: save the file as UTF-8 text without it.")
    return text


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Raises:
        UserError: With `where` and what does not parse.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise UserError(f"{where} is not JSON: {error.msg} at {line}column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON that can be read: {str(error).split(';')[0]}.") from error


def read_csv(file: Path) -> tuple[list[str], Iterator[Record | Problem]]:
    """Read a CSV file with a header.

    Returns:
        The header's names, none for an empty file, and the rows; row 1 is the header, as a spreadsheet shows it.

    Raises:
        UserError: If the file or its header cannot be read.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{file} row 1 is malformed CSV: {error}.") from error
    return header, _csv_rows(file, reader, header)


def _csv_rows(file: Path, reader: Iterator[list[str]], header: list[str]) -> Iterator[Record | Problem]:
    number = 1  # of the last row read
    try:
        for number, cells in enumerate(reader, 2):
            place = f"row {number}"
            if not cells:
                continue  # an empty line, often the last one of a file
            if len(cells) != len(header):
                said = f"{file} {place} has {len(cells)} fields, the header has {len(header)}."
                yield Problem(said, file.name, place)
            else:
                yield Record(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        place = f"row {number + 1}"
        yield Problem(f"{file} {place} is malformed CSV: {error}.", file.name, place)


def read_jsonl(file: Path) -> Iterator[Record | Problem]:
    """Read a file with one JSON object a line; empty lines count but are no rows.

    Raises:
        UserError: If the file cannot be read.
    """
    # Not splitlines: a JSON string may hold U+2028 and its like as they are.
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        place = f"row {number}"
        try:
            data = parse_json(line, f"{file} {place}")
        except UserError as error:
            yield Problem(str(error), file.name, place)
        else:
            yield as_record(file, place, data)


def as_record(file: Path, place: str, data: Any) -> Record | Problem:
    """Return a parsed JSON value as a record, or what is wrong with it."""
    if isinstance(data, dict):
        return Record(place, data)
    return Problem(f"{file} {place} is not a JSON object with question and answer.", file.name, place)


def check_value(file: Path, place: str, column: str, value: Any, *, required: bool = True) -> str | Problem:
    """Return a field as text without the blanks around it, empty where there is none, or what is wrong with it."""
    if value is not None and not isinstance(value, str):
        wrong = f"is {type(value).__name__}, not text."
    elif value is None or not value.strip():
        if not required:
            return ""
        wrong = "is empty."
    elif len(value) > MAX_FIELD_CHARS:
        wrong = f"has {len(value):,} characters, more than {MAX_FIELD_CHARS:,}: shorten it."
    elif "\0" in value:
        wrong = "holds a NUL character: remove it."
    elif any("\ud800" <= character <= "\udfff" for character in value):
        wrong = "holds half a character (a lone surrogate): remove it."
    else:
        return value.strip()
    return Problem(f"{file} {place}: {column} {wrong}", file.name, place, column)


def check_passages(file: Path, place: str, column: str, value: Any, *, required: bool = True) -> str | Problem:
    """Return a field of passages as one text, or what is wrong with it, as `check_value` does.

    A list is read as passages with an empty line between them, a list in it as lines, a list in that as sentences:
    that is how RAG sets and HotpotQA (Yang et al. 2018) write a context.
    """
    return check_value(file, place, column, _join(value, ("\n\n", "\n", " ")), required=required)


def _join(value: Any, separators: tuple[str, ...]) -> Any:
    if not isinstance(value, list) or not separators:
        return value
    parts = [_join(part, separators[1:]) for part in value]
    return separators[0].join(part.strip() for part in parts) if all(isinstance(p, str) for p in parts) else value
