"""People judge a sample of the examples in a spreadsheet; what they say comes back as rows of `reviews`.

What does not belong here: what several reviews come to (`agreement`), and what they change in the dataset (`validate`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import fingerprint
from ev_platform.prompting import passage_text
from ev_platform.records import Review, to_frame
from ev_platform.tasks.formats import Problem, read_csv

DECISIONS = ("accept", "edit", "reject")
COLUMNS: tuple[str, ...] = (
    "example_id",
    "question",
    "answer",
    "passage",
    "url",
    "kind",
    "origin",
    "decision",
    "edited_question",
    "edited_answer",
    "reviewer",
    "comment",
)
# A sheet of feedback says beside that how the answer came to be judged.
FEEDBACK_COLUMNS: tuple[str, ...] = (*COLUMNS, "given_answer", "n_up", "n_down", "users_comments", "request_id")
_NEEDED = ("example_id", "decision", "edited_question", "edited_answer", "reviewer", "comment")
# A spreadsheet runs a cell that begins so; one quote in front makes it text. A cell that has quotes before such a
# character gets one more, so that taking one away always gives back what was written.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def export_sample(
    examples: pl.DataFrame, chunks: pl.DataFrame, documents: pl.DataFrame, path: Path, *, n: int, seed: int
) -> int:
    """Write a sample of the training examples for people to judge.

    Every pair of kind and origin gets a row as long as there are enough, the largest first, and beyond that its share;
    within a pair the rows go round the documents. The same examples and seed give the same file, so that several people
    can judge the same rows.

    Args:
        examples: The `examples` table; test rows are left out.
        chunks: The `chunks` table.
        documents: The `clean_documents` table.
        path: `.csv` or `.parquet`; reviewers fill in `decision` (accept, edit or reject), `reviewer` and, for edits,
            `edited_question` or `edited_answer` or both.
        n: Most rows.
        seed: Of the choice.

    Returns:
        The number of rows written.

    Raises:
        UserError: If the file's name ends otherwise, the file exists (it may hold somebody's work), or there is nothing
            to judge.
    """
    _check_free(path)
    rows = _draw(examples.filter(pl.col("split") != "test").to_dicts(), n, seed)
    if not rows:
        raise UserError("There are no training examples to review: run `ev-platform run --stage dataset` first.")
    passages, urls = _passages(chunks), dict(documents.select("document_id", "url").iter_rows())
    table = [
        dict.fromkeys(COLUMNS, "")
        | {name: row[name] for name in ("example_id", "question", "answer", "kind", "origin")}
        | {
            "passage": row["context"] or passages.get(row["chunk_id"], ""),
            "url": urls.get(row["document_id"], ""),
        }
        for row in rows
    ]
    _write(path, table, COLUMNS)
    return len(table)


def export_feedback(
    candidates: pl.DataFrame,
    reviews: pl.DataFrame,
    chunks: pl.DataFrame,
    documents: pl.DataFrame,
    path: Path,
    *,
    n: int,
    seed: int,
) -> int:
    """Write what people said of served answers, and nobody has decided on yet, for people to judge.

    Args:
        candidates: The `feedback_candidates` table.
        reviews: The `reviews` table.
        chunks: The `chunks` table; passages that are no longer in it are not shown.
        documents: The `clean_documents` table.
        path: As in `export_sample`. A row without an answer is one that somebody disliked without saying why: write the
            right one, or reject it.
        n: Most rows; of more, every kind gets its share.
        seed: Of the choice.

    Returns:
        The number of rows written.

    Raises:
        UserError: As in `export_sample`.
    """
    _check_free(path)
    waiting = candidates.filter(~pl.col("example_id").is_in(reviews["example_id"].to_list()))
    rows = _draw(waiting.with_columns(origin=pl.lit("feedback"), document_id=pl.lit("")).to_dicts(), n, seed)
    if not rows:
        raise UserError("There is no feedback to review: none was given, or all of it is decided.")
    passages, urls = _passages(chunks), dict(documents.select("document_id", "url").iter_rows())
    source = {chunk_id: urls.get(document, "") for chunk_id, document in chunks["chunk_id", "document_id"].iter_rows()}
    table = [
        dict.fromkeys(FEEDBACK_COLUMNS, "")
        | {name: row[name] for name in ("example_id", "question", "answer", "kind", "origin", "request_id")}
        | {name: str(row[name]) for name in ("n_up", "n_down")}
        | {
            "passage": "\n\n".join(passages[chunk_id] for chunk_id in row["chunk_ids"] if chunk_id in passages),
            "url": next((source[chunk_id] for chunk_id in row["chunk_ids"] if chunk_id in source), ""),
            "given_answer": row["given_answer"] or "",
            "users_comments": "\n".join(row["comments"]),
        }
        for row in rows
    ]
    _write(path, table, FEEDBACK_COLUMNS, mode=0o600)  # as the journal that it comes from
    return len(table)


def _check_free(path: Path) -> None:
    _check_suffix(path)
    if path.exists():
        raise UserError(f"{path} exists and may hold somebody's decisions: name another file, or move it away.")


def _passages(chunks: pl.DataFrame) -> dict[str, str]:
    return {c["chunk_id"]: passage_text(c["heading_path"], c["text"]) for c in chunks.iter_rows(named=True)}


def _write(path: Path, table: Sequence[Mapping[str, str]], columns: Sequence[str], mode: int = 0o644) -> None:
    write_atomic(path, as_csv(table, columns) if path.suffix == ".csv" else _as_parquet(table, columns), mode)


def _draw(rows: Sequence[dict[str, Any]], n: int, seed: int) -> list[dict[str, Any]]:
    def chance(*parts: Any) -> str:
        return fingerprint([seed, *parts])

    strata: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        strata[row["kind"], row["origin"]][row["document_id"] or ""].append(row)
    ranked = []
    for stratum, by_document in sorted(strata.items()):
        rounds = [
            (turn, chance(document), row)
            for document, own in by_document.items()
            for turn, row in enumerate(sorted(own, key=lambda row: chance(row["example_id"])))
        ]
        rounds.sort(key=lambda item: item[:2])
        # The middle of the row's share of its stratum: cut anywhere, each stratum has given its share.
        ranked += [((i > 0, (i + 0.5) / len(rounds), stratum), row) for i, (_, _, row) in enumerate(rounds)]
    ranked.sort(key=lambda item: item[0])
    chosen = {row["example_id"] for _, row in ranked[:n]}
    return [row for row in rows if row["example_id"] in chosen]


def as_csv(table: Iterable[Mapping[str, str]], columns: Sequence[str]) -> bytes:
    """Return rows as a CSV file that a spreadsheet opens as text; `as_written` takes back what it adds to a cell.

    A NUL byte, which an untrained model may write and no CSV reader takes, becomes U+FFFD.
    """
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    for row in table:
        cells = {name: _in_sheet(cell) for name, cell in row.items()}
        writer.writerow({name: f"'{cell}" if _FORMULA.match(cell) else cell for name, cell in cells.items()})
    # With the byte order mark Excel reads the file as UTF-8.
    return buffer.getvalue().encode("utf-8-sig")


def _in_sheet(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _as_parquet(table: Sequence[Mapping[str, str]], columns: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(table, schema=dict.fromkeys(columns, pl.String)).write_parquet(buffer)
    return buffer.getvalue()


def read_review(
    path: Path, examples: pl.DataFrame, reviewed_at: datetime, default_reviewer: str | None = None
) -> pl.DataFrame:
    """Read a sample that people filled in.

    Rows without a decision were not judged and give no review. One example may be judged by several people, each in a
    row of its own.

    Args:
        path: `.csv` or `.parquet`.
        examples: Every row that may have been asked about: see `steps.reviewable`.
        reviewed_at: When, for all rows.
        default_reviewer: Whose decisions they are where the file does not say.

    Returns:
        The table `reviews`, in the order of the file.

    Raises:
        UserError: If the file or a row cannot be used; names file, row and column.
    """
    known = {row["example_id"]: row for row in examples.iter_rows(named=True)}
    reviews: dict[tuple[str, str], tuple[str, Review]] = {}
    for place, row in _read_rows(path):
        cells = {name: str(row.get(name) or "").strip() for name in COLUMNS}
        where = f"{path} {place}"
        if not any(cells.values()):
            continue
        edits = [name for name in ("edited_question", "edited_answer") if cells[name]]
        decision = cells["decision"].lower()
        if not decision:
            if edits:
                raise UserError(f"{where}: {edits[0]} is filled in, but decision is empty: write edit.")
            continue
        example = known.get(cells["example_id"])
        if example is None:
            raise UserError(
                f"{where}: example_id {cells['example_id']!r} is no example of this task: leave ids as they were "
                "exported, or remove the row."
            )
        _check_decision(where, cells, decision, edits, example)
        reviewer = cells["reviewer"] or (default_reviewer or "").strip()
        if not reviewer:
            raise UserError(f"{where}: reviewer is empty: write who decided, or give --reviewer for the whole file.")
        before = reviews.get((example["example_id"], reviewer))
        if before:
            raise UserError(
                f"{where}: {reviewer} has decided on this example in {before[0]} already: keep one of them."
            )
        review = Review(
            example_id=example["example_id"],
            decision=decision,
            question=cells["edited_question"] or example["question"],
            answer=cells["edited_answer"] or example["answer"],
            reviewer=reviewer,
            comment=cells["comment"] or None,
            reviewed_at=reviewed_at,
        )
        reviews[example["example_id"], reviewer] = (place, review)
    return to_frame("reviews", [review for _, review in reviews.values()])


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} ends neither in .csv nor in .parquet: name it so.")


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path} is missing: make it with `ev-platform dataset review-export`.")
    if path.suffix == ".parquet":
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{path} is no Parquet file that can be read: export it again.") from error
        _check_header(path, frame.columns)
        for number, row in enumerate(frame.iter_rows(named=True), 1):
            yield f"row {number}", row
        return
    header, records = read_csv(path)
    _check_header(path, header)
    for record in records:
        if isinstance(record, Problem):
            raise UserError(record.sentence)
        yield record.place, {name: as_written(cell) for name, cell in record.data.items()}


def as_written(cell: str) -> str:
    """Return a cell of a file that `as_csv` made as it was before."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) == 1 and (mark := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise UserError(f"{path} row 1 (the header) is separated by {mark!r}: save the file with commas.")
    for name in _NEEDED:
        if header.count(name) != 1:
            said = "lacks the column" if name not in header else "names more than once the column"
            raise UserError(f"{path} row 1 (the header) {said} {name!r}: leave the columns as they were exported.")


def _check_decision(
    where: str, cells: dict[str, str], decision: str, edits: list[str], example: dict[str, Any]
) -> None:
    if decision not in DECISIONS:
        raise UserError(f"{where}: decision {cells['decision']!r} is none of {', '.join(DECISIONS)}.")
    if decision == "edit" and not edits:
        raise UserError(
            f"{where}: decision is edit, but edited_question and edited_answer are empty: write the new text."
        )
    if decision != "edit" and edits:
        raise UserError(f"{where}: decision is {decision}, but {edits[0]} is filled in: write edit, or empty the cell.")
    if decision != "reject" and not (cells["edited_answer"] or example["answer"]):
        raise UserError(f"{where}: there is no answer yet: write edit and the right one into edited_answer, or reject.")
    for name in ("question", "answer"):
        # Work that somebody did in the wrong cell must not get lost.
        if cells[name] and _in_sheet(cells[name]).split() != _in_sheet(example[name]).split():
            raise UserError(
                f"{where}: {name} differs from what was exported: write a new text into edited_{name}, and empty the "
                f"cell {name} if a spreadsheet changed it."
            )
