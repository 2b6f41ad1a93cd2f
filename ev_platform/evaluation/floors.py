"""Systems that need no language model: a score at or below theirs has learnt nothing of the task.

What does not belong here: systems that somebody would ship (`systems`).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from ev_platform.evaluation.answering import Answer, Row, Search
from ev_platform.retrieval import embed, embed_once
from ev_platform.tasks.splitting import spread_evenly

# Of 77 classes that is 26 rows each; to embed more takes longer than what the probe is compared with.
PROBE_ROWS = 2_000
_NOT_PROSE = re.compile(r"^\s*[#|].*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")


class Majority:
    """Answers every text with the commonest label of the training rows; of several, the first by name."""

    name = model_id = "majority"
    takes_turns = False

    def __init__(self, training_set: pl.DataFrame):
        counts = Counter(training_set["answer"].to_list())
        self._label = min(counts, key=lambda label: (-counts[label], label))

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Return the same label for each row."""
        return [Answer(self._label, latency_ms=0.0) for _ in batch]


class LinearProbe:
    """Labels a text by a logistic regression on its sentence embedding, fitted to the training rows.

    Of more than `PROBE_ROWS` of them, so many spread evenly are taken.
    """

    name = model_id = "linear_probe"
    takes_turns = False

    def __init__(self, training_set: pl.DataFrame):
        from sklearn.linear_model import LogisticRegression

        rows = spread_evenly(training_set.select("question", "answer").rows(), PROBE_ROWS)
        texts, labels = zip(*rows, strict=True)
        # The vectors have length 1: with scikit-learn's C of 1, few rows give hardly more than the commonest label.
        self._model: Any = LogisticRegression(C=10, max_iter=1000).fit(embed_once(texts), labels)

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Return the likeliest label of each row."""
        if not batch:
            return []
        started = time.perf_counter()
        labels = self._model.predict(embed([row["question"] for row in batch]))
        latency_ms = round((time.perf_counter() - started) * 1000 / max(1, len(batch)), 3)
        return [Answer(str(label), latency_ms=latency_ms) for label in labels]


class FirstSentence:
    """Answers with the first sentence of the best passage, whatever the question."""

    name = model_id = "first_sentence"
    takes_turns = False

    def __init__(self, search: Search):
        self._search = search

    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """Return a sentence for each row; an empty answer where there is no passage."""
        given = [self._search(row)[:1] for row in batch]
        return [
            Answer(first_sentence(passages[0].text) if passages else "", passages, latency_ms=0.0) for passages in given
        ]


def first_sentence(text: str) -> str:
    """Return the first sentence of a Markdown passage, headings and tables left out where there is anything else."""
    words = " ".join(_NOT_PROSE.sub("", text).split()) or " ".join(text.split())
    return _SENTENCE_END.split(words, maxsplit=1)[0]
