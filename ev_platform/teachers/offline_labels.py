"""Labels without a language model: logistic regression over sentence embeddings of the task's own rows.

What does not belong here: which labels are kept (`dataset.validate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ev_platform.errors import UserError
from ev_platform.retrieval import embed_once
from ev_platform.teachers import Label, Shot

# The strengths of regularisation that cross-validation chooses from, and what is used where rows are too few for it.
# On three public folders of 12 rows a class or less, log loss was least at 100 to 1000, and the mean confidence there
# was within 0.07 of the accuracy.
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_DEFAULT_STRENGTH = 100.0
_MIN_ROWS_PER_CLASS = 3
# So many held-out rows tell two strengths apart. One fold of 10,003 rows in 77 classes has twice as many, and its four
# fits take 10 to 30 seconds.
_ENOUGH_HELD_OUT = 1000
_BATCH = 256


class LabelModel:
    """A classifier of texts.

    Args:
        classes: Label to its description; a description counts as one more row of its class.
        rows: Labelled texts; those of unknown labels take no part.

    Raises:
        UserError: If there are fewer than two classes.
    """

    def __init__(self, classes: Mapping[str, str], rows: Sequence[Shot]):
        from sklearn.linear_model import LogisticRegression

        if len(classes) < 2:
            raise UserError(
                "job_description.json: classes_description names fewer than two classes; describe them all."
            )
        known = {row.question: row.answer for row in rows if row.answer in classes}
        described = {f"{label.replace('_', ' ')}: {text}": label for label, text in classes.items()}
        labels = np.array([*known.values(), *described.values()])
        vectors = embed_once([*known, *described])
        is_row = np.arange(len(labels)) < len(known)
        strength = _choose_strength(vectors, labels, is_row)
        self._model: Any = LogisticRegression(C=strength, max_iter=5000).fit(vectors, labels)

    def predict(self, texts: Sequence[str]) -> Iterator[Label]:
        """Yield the likeliest label of each text and its probability."""
        for start in range(0, len(texts), _BATCH):
            for chances in self._model.predict_proba(embed_once(texts[start : start + _BATCH])):
                best = int(chances.argmax())
                yield Label(str(self._model.classes_[best]), float(chances[best]))


def _choose_strength(vectors: np.ndarray, labels: np.ndarray, is_row: np.ndarray) -> float:
    """Return the strength with the least log loss on held-out rows, so that a confidence is close to the truth."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    counts = Counter(labels[is_row].tolist())
    fewest = min(counts.get(label, 0) for label in set(labels.tolist()))
    if fewest < _MIN_ROWS_PER_CLASS:
        return _DEFAULT_STRENGTH
    rows = np.flatnonzero(is_row)
    folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=0)
    losses = dict.fromkeys(_STRENGTHS, 0.0)
    n_held_out = 0
    for trained, held_out in folds.split(vectors[rows], labels[rows]):
        fit = np.concatenate([rows[trained], np.flatnonzero(~is_row)])
        for strength in _STRENGTHS:
            model: Any = LogisticRegression(C=strength, max_iter=5000).fit(vectors[fit], labels[fit])
            chances = model.predict_proba(vectors[rows[held_out]])
            truth = np.searchsorted(model.classes_, labels[rows[held_out]])
            losses[strength] -= float(np.log(np.maximum(chances[np.arange(len(truth)), truth], 1e-12)).sum())
        n_held_out += len(held_out)
        if n_held_out >= _ENOUGH_HELD_OUT:
            break
    return min(_STRENGTHS, key=lambda strength: losses[strength])
