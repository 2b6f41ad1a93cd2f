"""What the rows of a task say about each other: lengths, labels, repeats, contradictions, leakage into the test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ev_platform.dataset.overlap import MAX_QUESTION_OVERLAP, word_trigrams, words
from ev_platform.tasks.rows import TaskRow
from ev_platform.tasks.types import TaskType

# Answers are labels where each stands for this many rows on average; free answers hardly ever come back.
_ROWS_PER_LABEL = 5
_MAX_IMBALANCE = 10
_KINDS = ("exact", "normalised", "near")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a person should know about a folder.

    Attributes:
        kind: A name for machines, such as `contradiction`.
        stops: Whether a run fails with it.
        message: One sentence for people.
        file: Name of the file, where one is meant.
        row: The row in it.
        column: The column in it.
    """

    kind: str
    stops: bool
    message: str
    file: str | None = None
    row: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many words the texts of one kind have."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class Label:
    """One answer of a classification task.

    Attributes:
        label: As the rows write it.
        n_train: Rows of `train`.
        n_test: Rows of `test`.
        is_described: Whether `classes_description` knows it; None where there is no such description.
    """

    label: str
    n_train: int
    n_test: int
    is_described: bool | None


@dataclass(frozen=True, slots=True)
class Leak:
    """A question of `test` that stands in `train` too.

    Attributes:
        kind: `exact`; `normalised`, equal but for case, blanks and punctuation; or `near`, by shared word 3-grams.
        overlap: Share of the shorter question's word 3-grams, 0 to 1.
        test: File and row.
        train: File and row.
        test_question: The one.
        train_question: The other.
    """

    kind: str
    overlap: float
    test: str
    train: str
    test_question: str
    train_question: str


def lengths(texts: Iterable[str]) -> Lengths | None:
    """Return how long texts are in words, None where there are none."""
    counts = [len(text.split()) for text in texts]
    if not counts:
        return None
    p50, p95, longest = np.percentile(counts, [50, 95, 100], method="inverted_cdf")
    return Lengths(int(p50), int(p95), int(longest))


def find_flaws(rows: Sequence[TaskRow], task_type: TaskType, classes: Mapping[str, str]) -> Iterator[Finding]:
    """Yield rows that cannot be examples of their task's type: labels that are no class, answers that are no span."""
    for row in rows:
        flaw = task_type.flaw(asdict(row), row.context, classes)
        if flaw is not None:
            reason, _, detail = flaw.partition(": ")
            yield Finding(reason, False, f"{row.where}: {detail}.", *_split_place(row.where), "answer")


def find_labels(rows: Sequence[TaskRow], classes: Mapping[str, str], *, is_certain: bool) -> list[Label]:
    """Return the labels of a classification task, by name; nothing where answers are free text.

    Args:
        rows: Of both splits.
        classes: Label to its description; empty where the task has none.
        is_certain: Whether answers are labels because of the task's type; else it is guessed.
    """
    counts = {split: Counter(row.answer for row in rows if row.split == split) for split in ("train", "test")}
    used = {row.answer for row in rows if row.is_answerable}
    if not is_certain and not classes and len(used) * _ROWS_PER_LABEL > len(rows):
        return []
    return [
        Label(label, counts["train"][label], counts["test"][label], label in classes if classes else None)
        for label in sorted(used | classes.keys())
    ]


def judge_labels(labels: Sequence[Label]) -> Iterator[Finding]:
    """Yield descriptions and labels without rows, and an uneven balance."""
    for label in labels:
        for split, n in (("train", label.n_train), ("test", label.n_test)):
            if not n:
                what = "class" if label.is_described else "label"
                said = f"The {what} {label.label!r} has no row in {split}."
                yield Finding("label_without_rows", False, said)
    in_train = [label for label in labels if label.n_train]
    if in_train:
        most, least = max(in_train, key=lambda x: x.n_train), min(in_train, key=lambda x: x.n_train)
        if most.n_train >= _MAX_IMBALANCE * least.n_train:
            said = f"{most.label!r} has {_rows(most.n_train)} in train, {least.label!r} has {_rows(least.n_train)}."
            yield Finding("imbalance", False, said)


def find_repeats(rows: Sequence[TaskRow]) -> Iterator[Finding]:
    """Yield rows of one split that ask what another one asks: repeated, contradicting, or over another text."""
    asked: dict[tuple[str, str], TaskRow] = {}
    over: dict[tuple[str, str, str], TaskRow] = {}
    for row in rows:
        question, context = normalised(row.question), normalised(row.context or "")
        before = asked.setdefault((row.split, question), row)
        first = over.setdefault((row.split, question, context), row)
        if first is row and row.split == "test":
            first = over.get(("train", question, context), row)  # a repeat of it is a leak, and told as one
        place = _split_place(row.where)
        if first is not row and not _accepted(first) & _accepted(row):
            said = f"{row.where} contradicts {first.where}: {_short(row.question)} is {_short(first.answer)} there "
            yield Finding("contradiction", False, said + f"and {_short(row.answer)} here.", *place)
        elif first is not row and first.split == row.split:
            said = f"{row.where} repeats {first.where}: {_short(row.question)}."
            yield Finding("repeated", False, said, *place)
        elif first is row and before is not row:
            said = f"{row.where} asks what {before.where} asks of another passage: {_short(row.question)}."
            yield Finding("repeated_over_other_context", False, said, *place)


def find_long_answers(rows: Sequence[TaskRow], max_new_tokens: int) -> Iterator[Finding]:
    """Yield rows whose answer no model of the run can give in full: a word is a token or more."""
    for row in rows:
        n_words = len(words(row.answer))
        if n_words > max_new_tokens:
            said = (
                f"{row.where}: the answer has {n_words} words; models stop after {max_new_tokens} tokens: raise "
                "evaluation.max_new_tokens in config.yaml."
            )
            yield Finding("long_answer", False, said, *_split_place(row.where), "answer")


def find_leaks(rows: Sequence[TaskRow]) -> list[Leak]:
    """Return every pair of a test and a train question that are the same, by the measure of `dataset.overlap`.

    Returns:
        Equal questions first, then the near ones; each in the order of the test rows, the nearest training row first.
    """
    train = [row for row in rows if row.split == "train"]
    grams = [word_trigrams(row.question) for row in train]
    plain = [normalised(row.question) for row in train]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            holders[gram].append(number)
    found = []
    for position, row in enumerate(rows):
        if row.split != "test":
            continue
        own, same = word_trigrams(row.question), normalised(row.question)
        shared: Counter[int] = Counter()
        for gram in own:
            shared.update(holders.get(gram, ()))
        for number, n_shared in shared.items():
            overlap = n_shared / min(len(own), len(grams[number]))
            other = train[number]
            if row.question == other.question:
                kind = "exact"
            elif same == plain[number]:
                kind = "normalised"
            elif overlap > MAX_QUESTION_OVERLAP:
                kind = "near"
            else:
                continue
            leak = Leak(kind, round(overlap, 2), row.where, other.where, row.question, other.question)
            found.append((_KINDS.index(kind), position, -overlap, number, leak))
    return [leak for *_, leak in sorted(found, key=lambda x: x[:4])]


def judge_leaks(leaks: Sequence[Leak], rows: Sequence[TaskRow]) -> Iterator[Finding]:
    """Yield how many test rows leak, and how many of their passages stand in the training rows."""
    n_test = sum(row.split == "test" for row in rows)
    nearest = {leak.test: leak.kind for leak in reversed(leaks)}  # the first of a row is its nearest
    n_exact, n_normalised, n_near = (list(nearest.values()).count(kind) for kind in _KINDS)
    if leaks:
        said = (
            f"{n_exact + n_normalised} of {n_test} test questions stand in train too ({n_exact} word for word, "
            f"{n_normalised} but for case and punctuation), {n_near} more share over {MAX_QUESTION_OVERLAP:.0%} of "
            f"their word 3-grams with a training question: "
            f"a run leaves up to {_rows(len({leak.train for leak in leaks}))} of train out, those that ask the same."
        )
        yield Finding("leakage", False, said)
    passages = {normalised(row.context) for row in rows if row.split == "train" and row.context}
    n_shared = sum(row.split == "test" and normalised(row.context or "") in passages for row in rows)
    if n_shared:
        said = f"{n_shared} of {n_test} test rows are asked of a passage that a training row is asked of too."
        yield Finding("shared_passage", False, said)


def normalised(text: str) -> str:
    """Return the words of a text, so that case, blanks and punctuation do not count; the text where it has none."""
    return " ".join(words(text)) or text.strip()


def _accepted(row: TaskRow) -> set[str]:
    return {normalised(answer) for answer in (row.answer, *row.answers)}


def _split_place(where: str) -> tuple[str, str]:
    file, _, place = where.partition(" ")
    return file, place


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 80 else flat[:79] + "…")


def _rows(n: int) -> str:
    return f"{n} row" if n == 1 else f"{n} rows"
