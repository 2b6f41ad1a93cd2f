"""What the report says of predictions and scores, as JSON values: systems, labels, best and worst answers, errors.

What does not belong here: what other tables add (`surroundings`), and how it looks (`report`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ev_platform.evaluation.statistics import FLOORS, MAIN, SYSTEMS, Verdict, minimum_detectable_effect
from ev_platform.evaluation.summary import column_of, order_systems

N_ANSWERS = 6  # best, as many worst, and as many regressions
WRONG = 0.5  # an answer that scores less is counted as an error
CLASS_F1, CONFUSION = "f1/", "confusion/"

# What a question asks for, by its first asking word; questions in other languages have none.
_ASKED = re.compile(
    r"\b(?:how (?:many|much|long|often|far|soon|fast|large|high|old)|how|who|whom|whose|when|where|why|which|what)\b",
    re.IGNORECASE,
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was evaluated.

    Attributes:
        task: Name of the task.
        description: The task in words.
        task_type: Name of its type.
        metric: That decides, as `eval_report` calls it.
        verdict: What to ship, and why.
        addresses: URL of each chunk by chunk_id; chunks that are missing here are named by their id.
        documents: URL of each document by document_id.
    """

    task: str
    description: str
    task_type: str
    metric: str
    verdict: Verdict
    addresses: Mapping[str, str]
    documents: Mapping[str, str]


def describe_evaluation(
    subject: Subject, metrics: pl.DataFrame, predictions: pl.DataFrame, benchmark: pl.DataFrame
) -> Row:
    """Return everything that the page tells of an evaluation, as JSON values.

    Args:
        subject: What was evaluated.
        metrics: The `eval_report` table.
        predictions: The `predictions` table it was made from.
        benchmark: The rows that were answered; may be empty, and what is counted by their columns is then left out.
    """
    systems = order_systems(predictions["system"])
    favourite = _favourite(systems, subject.verdict.verdict)
    rows = metrics.to_dicts()
    plain = [row for row in rows if not row["metric"].startswith((CLASS_F1, CONFUSION))]
    answers = _by_example(predictions)
    compared = [favourite, *(name for name in _rivals(favourite) if name in systems and name != favourite)]
    about = {row["example_id"]: row for row in benchmark.iter_rows(named=True)}
    told = _Told(subject, systems, favourite, answers, about)
    best, worst = told.best_and_worst()
    return {
        "task": subject.task,
        "description": subject.description,
        "task_type": subject.task_type,
        "metric": subject.metric,
        "verdict": subject.verdict.verdict,
        "reason": subject.verdict.reason,
        "n_rows": len(answers),
        "systems": systems,
        "favourite": favourite,
        "scores": [row for row in plain if row["compared_to"] is None],
        "differences": [row for row in plain if row["compared_to"] is not None],
        "least_difference": _least_difference(told, compared),
        "labels": _labels(rows, systems),
        "confusion": _confusion(rows, favourite),
        "best": best,
        "worst": worst,
        "regressions": told.regressions(),
        "errors": told.errors(compared),
    }


def label_of(system: str) -> str:
    """Return a system's name for people."""
    return SYSTEMS.get(system, system)


def _favourite(systems: Sequence[str], verdict: str) -> str:
    """Return the system that the page looks at: the one to ship, else the last that may ever be shipped."""
    may_ship = [name for name in systems if name in MAIN]
    shipped = [name for name in may_ship if verdict == f"ship {label_of(name)}"]
    return (shipped or may_ship or list(systems))[-1]


def _rivals(favourite: str) -> tuple[str, ...]:
    """Return what the favourite is held against: the champion, and the base on equal terms or without passages."""
    return "champion", "base_rag" if favourite == "tuned_rag" else "base", "base"


def _by_example(predictions: pl.DataFrame) -> dict[str, dict[str, Row]]:
    answers: dict[str, dict[str, Row]] = {}
    for row in predictions.iter_rows(named=True):
        answers.setdefault(row["example_id"], {})[row["system"]] = row
    return answers


@dataclass(frozen=True)
class _Told:
    """The answers of an evaluation, by row and system, and what is told of them."""

    subject: Subject
    systems: Sequence[str]
    favourite: str
    answers: Mapping[str, Mapping[str, Row]]
    about: Mapping[str, Row]

    def score(self, example_id: str, system: str) -> float:
        return self.answers[example_id][system][column_of(self.subject.metric)]

    def best_and_worst(self) -> tuple[list[Row], list[Row]]:
        """Return the best and the worst answers of the favourite.

        They are ordered by the metric that decides; among equals, the best have the largest gain over the simplest
        system that may ship, the worst the largest loss.
        """
        base = next((name for name in self.systems if name in MAIN), self.systems[0])

        def place(example_id: str) -> tuple[float, float, str]:
            own = self.score(example_id, self.favourite)
            return -own, self.score(example_id, base) - own, example_id

        ranked = sorted(self.answers, key=place)
        n_best = min(N_ANSWERS, len(ranked) // 2)
        n_worst = min(N_ANSWERS, len(ranked) - n_best)
        best = [self.card(e) for e in ranked[:n_best]]
        return best, [self.card(e) for e in reversed(ranked[len(ranked) - n_worst :])]

    def regressions(self) -> Row | None:
        """Return where the favourite lost most to the champion, and how often it won, lost and did neither."""
        if "champion" not in self.systems or self.favourite == "champion":
            return None
        gains = {e: self.score(e, self.favourite) - self.score(e, "champion") for e in self.answers}
        lost = sorted((e for e in gains if gains[e] < 0), key=lambda e: (gains[e], e))
        n_won = sum(gain > 0 for gain in gains.values())
        return {
            "n_better": n_won,
            "n_worse": len(lost),
            "n_equal": len(gains) - n_won - len(lost),
            "answers": [self.card(e) for e in lost[:N_ANSWERS]],
        }

    def card(self, example_id: str) -> Row:
        """Return one question with everybody's answers; trivial baselines write none that are worth reading."""
        rows = self.answers[example_id]
        row, about = rows[self.favourite], self.about.get(example_id, {})
        ids, gold = row["context_chunk_ids"], row["gold_chunk_id"]
        others = [name for name in self.systems if name not in FLOORS and name != self.favourite]
        shown = [self.favourite, *sorted(others, key=lambda name: name != "champion")]
        missed = [gold] if gold is not None and ids and gold not in ids else []
        return {
            "example_id": example_id,
            "question": row["question"],
            "reference": row["reference"],
            "kind": about.get("kind"),
            "document": self.subject.documents.get(about.get("document_id") or ""),
            "answers": [
                {"system": name, "text": rows[name]["prediction"], "score": self.score(example_id, name)}
                for name in shown
            ],
            "passages": _addresses(ids, self.subject.addresses, gold),
            "missed": _addresses(missed, self.subject.addresses, None),
        }

    def errors(self, systems: Sequence[str]) -> dict[str, list[Row]]:
        """Return rows, errors and mean scores by what a question is about; without what all rows have in common."""
        found = {
            "kind": self.group(systems, lambda e: self.about.get(e, {}).get("kind")),
            "asked": [] if self.is_labels else self.group(systems, self.asked),
            "source": self.group(systems, self.document),
            "answerable": self.group(systems, self.answerable),
        }
        return {name: groups for name, groups in found.items() if len(groups) > 1}

    @property
    def is_labels(self) -> bool:
        return self.subject.metric == "accuracy"

    def asked(self, example_id: str) -> str:
        found = _ASKED.search(self.answers[example_id][self.favourite]["question"])
        return " ".join(found[0].lower().split()) if found else "other"

    def document(self, example_id: str) -> str | None:
        document = self.about.get(example_id, {}).get("document_id")
        return self.subject.documents.get(document, document) if document else None

    def answerable(self, example_id: str) -> str | None:
        known = self.answers[example_id][self.favourite]["is_answerable"]
        known = self.about.get(example_id, {}).get("is_answerable") if known is None else known
        return None if known is None else "has an answer" if known else "has no answer"

    def group(self, systems: Sequence[str], name_of: Callable[[str], str | None]) -> list[Row]:
        """Return one line for each group, most errors of the favourite first."""
        groups: dict[str, list[str]] = {}
        for example_id in self.answers:
            if (name := name_of(example_id)) is not None:
                groups.setdefault(name, []).append(example_id)
        lines = [
            {
                "name": name,
                "n_rows": len(ids),
                "n_wrong": sum(self.score(e, self.favourite) < WRONG for e in ids),
                "means": {system: float(np.mean([self.score(e, system) for e in ids])) for system in systems},
            }
            for name, ids in groups.items()
        ]
        return sorted(lines, key=lambda line: (-line["n_wrong"], line["means"][self.favourite], line["name"]))


def _least_difference(told: _Told, compared: Sequence[str]) -> Row | None:
    """Return which difference of the deciding metric these rows could show, by how much the answers differ."""
    if len(compared) < 2 or len(told.answers) < 2:
        return None
    other = compared[-1]
    gaps = [told.score(e, told.favourite) - told.score(e, other) for e in told.answers]
    spread = float(np.std(gaps, ddof=1))
    value = minimum_detectable_effect(len(gaps), spread)
    return {"system": told.favourite, "compared_to": other, "n_rows": len(gaps), "sd": spread, "value": float(value)}


def _labels(rows: Sequence[Row], systems: Sequence[str]) -> list[Row]:
    """Return F1 by label and system, and how many rows have the label."""
    counts: dict[str, int] = {}
    known = _known_labels(rows)
    first = next((row["system"] for row in rows if row["metric"].startswith(CONFUSION)), None)
    for row in rows:
        if row["metric"].startswith(CONFUSION) and row["system"] == first:
            right, _ = _split(row["metric"], known)
            counts[right] = counts.get(right, 0) + int(row["value"])
    by_label: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"].startswith(CLASS_F1) and row["compared_to"] is None:
            by_label.setdefault(row["metric"][len(CLASS_F1) :], {})[row["system"]] = row["value"]
    return [
        {"label": label, "n_rows": counts.get(label), "f1": {name: f1[name] for name in systems if name in f1}}
        for label, f1 in by_label.items()
    ]


def _confusion(rows: Sequence[Row], system: str) -> list[Row]:
    known = _known_labels(rows)
    pairs = [row for row in rows if row["metric"].startswith(CONFUSION) and row["system"] == system]
    return [
        dict(zip(("right", "given"), _split(row["metric"], known), strict=True)) | {"n": int(row["value"])}
        for row in pairs
    ]


def _known_labels(rows: Sequence[Row]) -> list[str]:
    # A label may hold the slash that sets the parts of a name apart: the longest one that fits is meant.
    found = {row["metric"][len(CLASS_F1) :] for row in rows if row["metric"].startswith(CLASS_F1)}
    return sorted(found, key=len, reverse=True)


def _split(metric: str, known: Sequence[str]) -> tuple[str, str]:
    pair = metric[len(CONFUSION) :]
    right = next((label for label in known if pair.startswith(f"{label}/")), pair.partition("/")[0])
    return right, pair[len(right) + 1 :]


def _addresses(chunk_ids: Sequence[str], addresses: Mapping[str, str], gold: str | None) -> list[Row]:
    """Return where passages come from, each address once."""
    found: dict[str, Row] = {}
    for chunk_id in chunk_ids:
        address = addresses.get(chunk_id, chunk_id)
        line = found.setdefault(address, {"address": address, "is_gold": False})
        line["is_gold"] = line["is_gold"] or chunk_id == gold
    return list(found.values())
