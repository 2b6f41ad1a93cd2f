"""Runs scoring functions inside a local `evaluate.Metric`: `evaluate.load` would fetch a script from a model hub.

What does not belong here: the scoring functions themselves (`metrics`, `labels`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Scorer = Callable[[list[str], list[str]], Any]


def compute(scorers: Mapping[str, Scorer], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return what each scorer gives for n predictions and their n references; an empty dict where n is 0.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    import datasets
    import evaluate

    class LocalMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            features = datasets.Features({"predictions": text, "references": text})
            return evaluate.MetricInfo(description=", ".join(scorers), citation="", features=features)

        def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, Any]:
            return {name: scorer(predictions, references) for name, scorer in scorers.items()}

    # The rows stay in memory, but the class makes its cache folder all the same: it goes with the block.
    with tempfile.TemporaryDirectory() as folder:
        metric = LocalMetric(keep_in_memory=True, cache_dir=folder, seed=0)
        return metric.compute(predictions=list(predictions), references=list(references)) or {}
