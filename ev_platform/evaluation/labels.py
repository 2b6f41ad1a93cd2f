"""Scores of labels: how they are compared, F1, precision and recall of each class, and which is taken for which.

What does not belong here: scores that count words (`metrics`), and intervals (`statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ev_platform.evaluation.local_metric import compute

OTHER = "(other)"  # in a confusion matrix: an answer that is none of the labels that occur
SCORES = ("precision", "recall", "f1")

_AROUND_LABELS = " .,;:!?'\"`"  # not all punctuation: C, C++ and C# are three labels


def plain_label(text: str) -> str:
    """Return a label as it is compared: in lower case, without blanks, quotes and marks of a sentence around it."""
    plain = " ".join(text.casefold().split())
    return plain.strip(_AROUND_LABELS) or plain  # a label may be nothing but marks


def macro_f1(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Return the mean F1 over the labels that occur among the correct ones, each counting alike, 0 to 1.

    scikit-learn's. An answer that is none of them is a miss of its own label and counts against no other.

    Raises:
        ValueError: If the lengths differ or there are no rows.
    """
    if not labels:
        raise ValueError("F1 of no rows is undefined")
    return float(compute({"macro_f1": _macro_f1}, *_plain(predictions, labels))["macro_f1"])


def per_class(predictions: Sequence[str], labels: Sequence[str], score: str = "f1") -> dict[str, float]:
    """Return one of `SCORES` of each label that occurs among the correct ones, 0 to 1.

    scikit-learn's. The precision of a label that was never answered, and an F1 where both others are 0, are 0.

    Args:
        predictions: n answers.
        labels: n correct labels.
        score: `f1`, `precision` or `recall`.

    Returns:
        By label, as it is first written among the correct ones, in alphabetical order without regard to case.

    Raises:
        ValueError: If the lengths differ.
    """
    if not labels and not predictions:
        return {}
    figures = compute({"classes": _classes}, *_plain(predictions, labels))["classes"]
    names = _names(labels)
    return {names[plain]: float(figure) for plain, figure in zip(sorted(names), figures[score], strict=True)}


def confusion(predictions: Sequence[str], labels: Sequence[str]) -> dict[tuple[str, str], int]:
    """Return how often each (correct, answered) pair of labels occurs; pairs that do not occur are left out.

    scikit-learn's confusion matrix. Answers that are none of the labels that occur among the correct ones count as
    `OTHER`.

    Raises:
        ValueError: If the lengths differ.
    """
    if not labels and not predictions:
        return {}
    names = _names(labels)
    matrix = compute({"confusion": _confusion}, *_plain(predictions, labels))["confusion"]
    columns = [*(names[plain] for plain in sorted(names)), OTHER]
    return {
        (right, given): int(count)
        for right, row in zip(columns, matrix, strict=True)
        for given, count in zip(columns, row, strict=True)
        if count
    }


def _plain(predictions: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    return [plain_label(text) for text in predictions], [plain_label(label) for label in labels]


def _names(labels: Sequence[str]) -> dict[str, str]:
    # The first spelling of a label is its name.
    return {plain_label(label): label for label in reversed(labels)}


def _macro_f1(predictions: list[str], references: list[str]) -> float:
    from sklearn.metrics import f1_score

    known = sorted(set(references))
    return float(f1_score(references, predictions, labels=known, average="macro", zero_division=0))  # type: ignore[call-arg]


def _classes(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    from sklearn.metrics import precision_recall_fscore_support

    known: Any = sorted(set(references))
    figures: Any = precision_recall_fscore_support(references, predictions, labels=known, zero_division=0)  # type: ignore[call-arg]
    return {name: figure.tolist() for name, figure in zip(SCORES, figures, strict=False)}


def _confusion(predictions: list[str], references: list[str]) -> list[list[int]]:
    from sklearn.metrics import confusion_matrix

    known = set(references)
    other = "OTHER"  # no label's name: plain labels are in lower case
    given = [text if text in known else other for text in predictions]
    return confusion_matrix(references, given, labels=[*sorted(known), other]).tolist()
