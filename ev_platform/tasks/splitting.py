"""Choosing among rows: which of a file that brings no split are test rows, and which are taken where all are too many.

What does not belong here: what training rows are held out for validation (`dataset.splits`), and which of them meet a
test row all the same (`dataset.overlap`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ev_platform.identity import fingerprint

if TYPE_CHECKING:
    from ev_platform.tasks.rows import TaskRow

Item = TypeVar("Item")


def choose_test_rows(rows: Sequence[TaskRow], fraction: float, seed: int) -> list[bool]:
    """Return for each row whether it is a test row.

    Rows of one document stay together: those of one source, else of one context, else of one question, whatever the
    order of its words.

    Args:
        rows: All rows of the file.
        fraction: Share of the rows that become test rows.
        seed: As in `choose_groups`.
    """
    groups = _groups(rows)
    chosen = choose_groups(groups, fraction, seed)
    return [group in chosen for group in groups]


def choose_groups(groups: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Return whole groups that hold about a fraction of the rows between them.

    They are taken in the order of a hash, so a group that comes later moves few others. One that would lead further
    from the wanted number than to leave it out is passed over.

    Args:
        groups: The group of each row.
        fraction: Share of the rows.
        seed: Of the hash.
    """
    sizes = Counter(groups)
    wanted, n_rows = fraction * len(groups), 0
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda group: fingerprint([seed, group])):
        if abs(n_rows + sizes[group] - wanted) < abs(n_rows - wanted):
            chosen.add(group)
            n_rows += sizes[group]
    return chosen


def spread_evenly(rows: Sequence[Item], n: int) -> list[Item]:
    """Return at most n rows at equal distances over all of them, the first among them."""
    if len(rows) <= n:
        return list(rows)
    return [rows[i * len(rows) // n] for i in range(n)]


def _groups(rows: Sequence[TaskRow]) -> list[str]:
    """Return the document of each row, by a name that the row's own text makes."""
    groups = []
    for row in rows:
        if row.source:
            # A page of a PDF and a section of a page belong to their document.
            groups.append("source " + row.source.partition("#")[0].rstrip("/"))
        elif row.context:
            groups.append("context " + " ".join(_words(row.context)))
        else:
            # Likeness that is looser would chain questions that differ in a number into one document.
            groups.append("question " + " ".join(sorted(set(_words(row.question)))))
    return groups


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
