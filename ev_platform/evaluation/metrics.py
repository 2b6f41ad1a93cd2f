"""Scores of answers against references: exact match, token F1, ROUGE-L, BLEU, computed through `evaluate`.

The scoring functions run inside local `evaluate.Metric` classes, because `evaluate.load` would fetch a script from a
model hub. The figures are those of the reference implementations, so they compare with published ones.

What does not belong here: intervals and verdicts (`statistics`), and which rows are scored (`evaluation`).
"""

from __future__ import annotations

import re
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

Scorer = Callable[[list[str], list[str]], Any]

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def score_rows(predictions: Sequence[str], references: Sequence[str]) -> pl.DataFrame:
    """Score each prediction against its one reference.

    Exact match and token F1 follow SQuAD 1.1 (Rajpurkar et al., 2016), literally: an answer that is empty after
    normalisation matches an empty one exactly, and its F1 is 0. ROUGE-L (Lin, 2004) is rouge_score's F-measure
    without stemming, the default of that package and of `evaluate`'s own ROUGE. It reads a to z and 0 to 9 only: a
    text in another script scores 0.

    Args:
        predictions: n answers.
        references: n correct answers.

    Returns:
        n rows of `exact_match`, `token_f1` and `rouge_l`, each from 0 to 1.

    Raises:
        ValueError: If the lengths differ.
    """
    scorers = {"exact_match": _exact_match, "token_f1": _token_f1, "rouge_l": _rouge_l}
    scores = _compute(scorers, predictions, references)
    return pl.DataFrame(scores, schema=dict.fromkeys(scorers, pl.Float64))


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the corpus BLEU of predictions, 0 to 100.

    sacrebleu's (Post, 2018) with tokenizer 13a and exponential smoothing. Its effective order is on: where no
    prediction of the whole corpus has four tokens, BLEU takes the longest n-grams there are instead of being 0 for
    perfect answers. In every other corpus it equals sacrebleu's default.

    Raises:
        ValueError: If the lengths differ or there are no rows.
    """
    if not predictions:
        raise ValueError("BLEU of no rows is undefined")
    return float(_compute({"bleu": _bleu}, predictions, references)["bleu"])


def _compute(scorers: Mapping[str, Scorer], predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
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


def _normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation, then the English articles, then surplus white space (SQuAD 1.1)."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _exact_match(predictions: list[str], references: list[str]) -> list[float]:
    return [float(_normalise(p) == _normalise(r)) for p, r in zip(predictions, references, strict=True)]


def _token_f1(predictions: list[str], references: list[str]) -> list[float]:
    return [
        _pair_f1(_normalise(p).split(), _normalise(r).split()) for p, r in zip(predictions, references, strict=True)
    ]


def _pair_f1(predicted: list[str], expected: list[str]) -> float:
    n_common = sum((Counter(predicted) & Counter(expected)).values())
    if n_common == 0:
        return 0.0
    precision, recall = n_common / len(predicted), n_common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _rouge_l(predictions: list[str], references: list[str]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(predictions, references, strict=True)
    return [float(scorer.score(target=r, prediction=p)["rougeL"].fmeasure) for p, r in pairs]


def _bleu(predictions: list[str], references: list[str]) -> float:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="13a", effective_order=True).corpus_score(predictions, [references]).score
