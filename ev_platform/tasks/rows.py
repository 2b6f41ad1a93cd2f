"""The rows that people wrote: `train.csv|jsonl` and `test.csv|jsonl`, checked one by one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import Task

REQUIRED = ("question", "answer")
OPTIONAL = ("context", "source")
MAX_FIELD_CHARS = 200_000


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One hand-written row.

    Attributes:
        split: `train` or `test`.
        where: File and row, as a person would look it up.
        question: Not empty.
        answer: Not empty.
        context: The passage to answer from, where the row brings it.
        source: Address of the document that holds the answer (`#page=N` for a PDF's page), where it is known.
    """

    split: str
    where: str
    question: str
    answer: str
    context: str | None
    source: str | None


def read_rows(task: Task, split: str) -> list[TaskRow]:
    """Read the rows of one split.

    Raises:
        UserError: If the file is missing, malformed, or a row lacks a question or an answer; names file and row.
    """
    for name in (f"{split}.csv", f"{split}.jsonl"):
        file = task.folder / name
        if file.exists():
            rows = [_row(split, file, number, data) for number, data in _records(file)]
            if not rows:
                raise UserError(f"{file} has no rows: write at least one question and answer.")
            return rows
    raise UserError(f"{task.folder / split}.csv is missing: write a table with the columns question and answer.")


def _records(file: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    if file.suffix == ".jsonl":
        # Not splitlines: a JSON string may hold U+2028 and its like as they are.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    data = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{file} row {number} is not JSON: {error.msg} at column {error.colno}.") from error
                if not isinstance(data, dict):
                    raise UserError(f"{file} row {number} is not a JSON object with question and answer.")
                yield number, data
        return
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    number = -1  # of the last record read, from 0; the header is row 1 to a person
    try:
        for number, cells in enumerate(reader):
            if header is None:
                header = [name.strip() for name in cells]
                missing = [name for name in REQUIRED if name not in header]
                if missing:
                    raise UserError(f"{file} row 1 (the header) lacks the column {missing[0]!r}; it has {header}.")
            elif not cells:
                continue  # an empty line, often the last one of a file
            elif len(cells) != len(header):
                raise UserError(f"{file} row {number + 1} has {len(cells)} fields, the header has {len(header)}.")
            else:
                yield number + 1, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{file} row {number + 2} is malformed CSV: {error}.") from error


def _row(split: str, file: Path, number: int, data: dict[str, str | None]) -> TaskRow:
    values: dict[str, str | None] = {}
    for name in REQUIRED + OPTIONAL:
        value = data.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{file} row {number}: {name} is {type(value).__name__}, not text.")
        values[name] = (value or "").strip() or None
        if name in REQUIRED and values[name] is None:
            raise UserError(f"{file} row {number}: {name} is empty.")
    return TaskRow(split, f"{file.name} row {number}", **values)  # type: ignore[arg-type]
