"""The rows that people wrote: `train` and `test` as CSV, JSONL, JSON or SQuAD, checked one by one.

`files` in config.yaml names files of another name or place, and one file for both splits.
Columns are found by their names: `question` and `answer`; `text` and `label` or `category`; `instruction`, `input` and
`output`; chat `messages`. `columns` in config.yaml names any others. How files are parsed is in `formats` and `squad`;
what rows say about each other is in `folders`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.config import Columns
from ev_platform.tasks.formats import (
    SUFFIXES,
    Problem,
    Record,
    as_record,
    check_passages,
    check_value,
    find_files,
    parse_json,
    read_csv,
    read_jsonl,
    read_text,
)
from ev_platform.tasks.splitting import choose_test_rows
from ev_platform.tasks.squad import SquadQuestion, read_squad

REQUIRED = ("question", "answer")
_INSTRUCTION = ("instruction", "output")
_PAIRS = (REQUIRED, ("text", "label"), ("text", "category"), _INSTRUCTION)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One hand-written row.

    Attributes:
        split: `train` or `test`.
        where: File and row, as a person would look it up.
        question: Not empty; the text of a classification row.
        answer: Not empty; the label of a classification row, `no_answer` of config.yaml where there is no answer.
        context: The passage to answer from, where the row brings it.
        source: Address of the document that holds the answer (`#page=N` for a PDF's page), where it is known.
        answers: All accepted answers, where the file gives more than one field for them (SQuAD).
        answer_start: Where the answer begins in the context, in characters, where the file says so.
        is_answerable: False where the file says that the context does not hold the answer, or the answer is the
            `no_answer` of config.yaml.
    """

    split: str
    where: str
    question: str
    answer: str
    context: str | None
    source: str | None
    answers: tuple[str, ...] = ()
    answer_start: int | None = None
    is_answerable: bool = True


def read_rows(task: Task, split: str) -> list[TaskRow]:
    """Read the rows of one split.

    Raises:
        UserError: If the file is missing, malformed, or a row lacks a question or an answer; names file and row.
    """
    rows = []
    for row in scan_rows(task, split):
        if isinstance(row, Problem):
            raise UserError(row.sentence)
        rows.append(row)
    return rows


def scan_rows(task: Task, split: str) -> Iterator[TaskRow | Problem]:
    """Yield the rows of one split in the file's order, and in place of a row that cannot be used what is wrong.

    What is wrong in a file for both splits is told with its train rows.

    Raises:
        UserError: If the file is missing, cannot be parsed at all, or has no rows.
    """
    files = row_files(task, split)
    if not files:
        raise UserError(f"{task.folder / split}.csv is missing: write a table with the columns question and answer.")
    file = files[0]
    n_rows = 0
    for row in _scan_both(file, split, task) if task.config.files.rows else _scan(file, split, task):
        n_rows += 1
        yield row
    if not n_rows:
        if task.config.files.rows:
            raise UserError(f"{file} has too few rows to make {split} rows of: look at files.test_fraction.")
        raise UserError(f"{file} has no rows: write at least one question and answer.")


def row_files(task: Task, name: str) -> list[Path]:
    """Return the files of `train`, `test` or `unstructured`; the first one is read.

    Raises:
        UserError: If config.yaml names one that does not exist or is of no known format.
    """
    files = task.config.files
    own, key = getattr(files, name), name
    if files.rows and name != "unstructured":
        own, key = files.rows, "rows"
    if own is None:
        return find_files(task.folder, name)
    file = task.folder / own
    said = f"{task.folder / 'config.yaml'}: files.{key} is {own!r}"
    if not file.is_file():
        raise UserError(f"{said}, but there is no file {file}: put it there, or correct the path.")
    if file.suffix not in SUFFIXES:
        raise UserError(f"{said}, which is none of {', '.join(SUFFIXES)}: save it as one of them.")
    return [file]


def scan_texts(task: Task) -> Iterator[str | Problem]:
    """Yield the texts of `unstructured.csv` (or `.jsonl`, `.json`), one for each row.

    They stand in the column `context`; where there is none, in the one that config.yaml names for contexts, else for
    questions.

    Raises:
        UserError: If the file is missing, cannot be parsed at all, or lacks the column.
    """
    return (text for _, _, text in scan_placed_texts(task))


def scan_placed_texts(task: Task) -> Iterator[tuple[Path, str, str | Problem]]:
    """Yield what `scan_texts` does, each with its file and its place in the file, such as `row 12`.

    Raises:
        UserError: As `scan_texts`.
    """
    files = row_files(task, "unstructured")
    if not files:
        raise UserError(f"{task.folder / 'unstructured.csv'} is missing: write a table with the column context.")
    file, columns = files[0], task.config.columns
    header, records = _records(file)
    if header and header.count(column := _text_column(header, columns)) != 1:
        raise UserError(f"{file} row 1 (the header) does not name one column {column!r}; it has {header}.")
    for record in records:
        if isinstance(record, Problem):
            yield file, record.place or "", record
        elif isinstance(record, SquadQuestion):
            yield file, record.place, record.context
        else:
            column = _text_column(record.data, columns)
            yield file, record.place, check_passages(file, record.place, column, record.data.get(column))


def _text_column(names: Collection[str], columns: Columns) -> str:
    return next((name for name in ("context", columns.context, columns.question) if name and name in names), "context")


def _records(file: Path) -> tuple[list[str] | None, Iterator[Record | Problem | SquadQuestion]]:
    """Return the names of a table's header, None where each row has its own, and the rows."""
    if file.suffix == ".csv":
        return read_csv(file)
    if file.suffix == ".jsonl":
        return None, read_jsonl(file)
    data = parse_json(read_text(file), str(file))
    if isinstance(data, dict) and "data" in data:
        return None, read_squad(file, data)
    if not isinstance(data, list):
        raise UserError(f"{file} is neither a list of objects nor a SQuAD file with data, paragraphs and qas.")
    return None, (as_record(file, f"row {number}", item) for number, item in enumerate(data, 1))


def _scan_both(file: Path, split: str, task: Task) -> Iterator[TaskRow | Problem]:
    found = list(_scan(file, split, task))
    rows = [row for row in found if isinstance(row, TaskRow)]
    chosen = iter(choose_test_rows(rows, task.config.files.test_fraction, task.config.dataset.seed))
    for row in found:
        if isinstance(row, Problem):
            if split == "train":
                yield row
        elif next(chosen) == (split == "test"):
            yield row


def _scan(file: Path, split: str, task: Task) -> Iterator[TaskRow | Problem]:
    columns = task.config.columns
    header, found = _records(file)
    if header:
        _check_header(file, header, _fields(header, columns), columns.model_dump(exclude_none=True))
    records = [_from_chat(file, record) if isinstance(record, Record) else record for record in found]
    is_one = _has_one_instruction([record for record in records if isinstance(record, Record)])
    for record in records:
        if isinstance(record, Problem):
            yield record
        elif isinstance(record, SquadQuestion):
            answer = record.answers[0] if record.answers else task.config.no_answer
            where = f"{file.name} {record.place}"
            yield TaskRow(
                split,
                where,
                record.question,
                answer,
                record.context,
                None,
                answers=record.answers,
                answer_start=record.answer_start,
                is_answerable=bool(record.answers),
            )
        else:
            fields = _fields(record.data, columns, is_one_instruction=is_one)
            yield _row(file, split, record, fields, task.config.no_answer)


def _fields(names: Collection[str], columns: Columns, *, is_one_instruction: bool = False) -> dict[str, str]:
    """Return the column of each field of a row."""
    configured = columns.model_dump(exclude_none=True)
    question, answer = next((pair for pair in _PAIRS if set(pair) <= set(names)), REQUIRED)
    fields = {"question": question, "answer": answer, "context": "context", "source": "source"}
    if (question, answer) == _INSTRUCTION and "input" in names and "input" not in configured.values():
        fields["question" if is_one_instruction else "context"] = "input"
    return fields | configured


def _has_one_instruction(records: Sequence[Record]) -> bool:
    """Whether all rows share one instruction: it is the task's then, and the input is the question."""
    instructions = [record.data.get("instruction") for record in records]
    is_shared = (
        len(records) > 1 and isinstance(instructions[0], str) and all(i == instructions[0] for i in instructions)
    )
    return is_shared and all(record.data.get("input") for record in records)


def _check_header(file: Path, header: list[str], fields: dict[str, str], configured: Collection[str]) -> None:
    for field, column in fields.items():
        if header.count(column) > 1:
            raise UserError(f"{file} row 1 (the header) names the column {column!r} twice: rename one of them.")
        if column in header or (field not in REQUIRED and field not in configured):
            continue
        if len(header) == 1 and (found := next((mark for mark in ";\t|" if mark in header[0]), None)):
            raise UserError(f"{file} row 1 (the header) is separated by {found!r}: save the file with commas.")
        said = f"{file} row 1 (the header) lacks the column {column!r}"
        if field in configured:
            raise UserError(f"{said}, which config.yaml names for {field}; it has {header}.")
        raise UserError(
            f"{said}; it has {header}: write it, or name another in config.yaml (columns: {{{field}: ...}})."
        )


def _from_chat(file: Path, record: Record) -> Record | Problem:
    """Return a chat of one question and its answer as those; any other record as it is."""
    turns = record.data.get("messages")
    if turns is None or "question" in record.data:
        return record

    def wrong(what: str) -> Problem:
        return Problem(f"{file} {record.place}: messages {what}", file.name, record.place, "messages")

    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return wrong("is not a list of objects with role and content.")
    roles = [str(turn.get("role")) for turn in turns]
    if roles[roles[:1] == ["system"] :] != ["user", "assistant"]:
        said = ", ".join(roles[:5]) + (", ..." if len(roles) > 5 else "") or "none"
        return wrong(f"has the turns {said}: only one of user and one of assistant, after a system turn, can be read.")
    question, answer = (turn.get("content") for turn in turns[-2:])
    return Record(record.place, record.data | {"question": question, "answer": answer})


def _row(file: Path, split: str, record: Record, fields: dict[str, str], no_answer: str) -> TaskRow | Problem:
    if not any(fields[name] in record.data for name in REQUIRED):
        said = f"has neither {fields['question']!r} nor {fields['answer']!r}, but {sorted(record.data)}"
        return Problem(
            f"{file} {record.place} {said}: name its columns in config.yaml (columns: {{question: ..., answer: ...}}).",
            file.name,
            record.place,
        )
    values: dict[str, str] = {}
    for field, column in fields.items():
        check = check_passages if field == "context" else check_value
        value = check(file, record.place, column, record.data.get(column), required=field in REQUIRED)
        if isinstance(value, Problem):
            return value
        values[field] = value
    return TaskRow(
        split,
        f"{file.name} {record.place}",
        values["question"],
        values["answer"],
        values["context"] or None,
        values["source"] or None,
        is_answerable=values["answer"] != no_answer,
    )
