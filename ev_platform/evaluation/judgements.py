"""What people say of two systems' answers: the sheet that they fill in, and `judgements.csv` in the task's folder.

A judgement is about two texts and not about two systems, so the file holds the texts: it stays true when a model is
trained anew, and counts again wherever the same two answers meet. Columns:

- `question`: as the test row has it;
- `answer_a`, `answer_b`: the two answers, in either order;
- `better`: `a`, `b` or `tie`; empty where nobody has judged yet.

Others, such as `reference`, are not read. What does not belong here: what a teacher says of the same pairs, and how far
the two agree (`judge`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ev_platform.dataset.review import as_csv, as_written
from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import fingerprint
from ev_platform.tasks.formats import Problem, read_csv

FILE = "judgements.csv"
COLUMNS = ("question", "reference", "answer_a", "answer_b", "better")
_NEEDED = ("question", "answer_a", "answer_b", "better")
_CHOICES = ("a", "b", "tie")

Key = tuple[str, str, str]  # the question and the two answers, folded, the answers in the order of the alphabet


@dataclass(frozen=True, slots=True)
class Judged:
    """What a person said of a pair.

    Attributes:
        better: The better answer, folded; None: a tie.
        place: Where it stands in the file.
    """

    better: str | None
    place: str


def fold(text: str) -> str:
    """Return a text without regard to case and blanks, by which answers are told apart."""
    return " ".join(text.casefold().split())


def key_of(question: str, one: str, other: str) -> Key:
    """Return what two answers to a question are found by, whichever is named first."""
    first, second = sorted((fold(one), fold(other)))
    return fold(question), first, second


def verdict_of(judged: Judged | None, answer: str) -> str | None:
    """Return what a judgement of a pair says of one of its answers: `better`, `worse` or `tie`; None without one."""
    if judged is None:
        return None
    if judged.better is None:
        return "tie"
    return "better" if judged.better == fold(answer) else "worse"


def read_judgements(file: Path) -> dict[Key, Judged]:
    """Read the judgements of a file; none where there is no file.

    Raises:
        UserError: If the file or a row cannot be used; names file, row and column.
    """
    if not file.exists():
        return {}
    header, records = read_csv(file)
    if len(header) == 1 and (mark := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise UserError(f"{file} row 1 (the header) is separated by {mark!r}: save the file with commas.")
    for name in _NEEDED:
        if header.count(name) != 1:
            said = "lacks the column" if name not in header else "names more than once the column"
            raise UserError(f"{file} row 1 (the header) {said} {name!r}; it needs {', '.join(_NEEDED)}.")
    found: dict[Key, Judged] = {}
    for record in records:
        if isinstance(record, Problem):
            raise UserError(record.sentence)
        where = f"{file} {record.place}"
        cells = {name: as_written(record.data[name]).strip() for name in _NEEDED}
        better = cells["better"].lower()
        if not better:
            continue
        if better not in _CHOICES:
            raise UserError(f"{where}: better {cells['better']!r} is none of {', '.join(_CHOICES)}.")
        if not cells["question"]:
            raise UserError(f"{where}: question is empty: write the test row's question.")
        key = key_of(cells["question"], cells["answer_a"], cells["answer_b"])
        if better != "tie" and key[1] == key[2]:
            raise UserError(f"{where}: better is {better!r}, but answer_a and answer_b are the same: write tie.")
        if key in found:
            raise UserError(f"{where}: this pair is judged in {found[key].place} already: keep one of the two.")
        found[key] = Judged(None if better == "tie" else fold(cells[f"answer_{better}"]), record.place)
    return found


def write_sheet(file: Path, pairs: Iterable[Mapping[str, str]]) -> bool:
    """Write pairs of answers for people to judge, without a hint which system gave which.

    Which answer stands first is chosen by a hash, so that neither system always does. Pairs of the same words are left
    out. A sheet in which somebody has filled in `better` is left as it is.

    Args:
        file: Where to; to be counted it is saved as `judgements.csv` in the task's folder.
        pairs: `question`, `reference`, `answer` and `other` of each.

    Returns:
        Whether it was written.

    Raises:
        UserError: If a sheet is there that cannot be read.
    """
    if read_judgements(file):
        return False
    rows = [_row(pair) for pair in pairs if fold(pair["answer"]) != fold(pair["other"])]
    write_atomic(file, as_csv(rows, COLUMNS))
    return True


def _row(pair: Mapping[str, str]) -> dict[str, str]:
    one, other = sorted((pair["answer"], pair["other"]), key=lambda text: fingerprint([pair["question"], text]))
    told = {"question": pair["question"], "reference": pair["reference"]}
    return told | {"answer_a": one, "answer_b": other, "better": ""}
