"""Scores of answers against references: exact match, token F1, ROUGE-L, METEOR, BLEU, computed through `evaluate`.

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
_AROUND_LABELS = " .,;:!?'\"`"  # not all punctuation: C, C++ and C# are three labels
_WORD = re.compile(r"\w+")
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


def meteor(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return METEOR of each prediction against its one reference, 0 to 1, without the synonym stage.

    Banerjee and Lavie (2005), by nltk: the harmonic mean of unigram precision P and recall R with recall weighted
    nine times, 10PR / (R + 9P), less a penalty of 0.5 (chunks / matches)^3. Words match exactly, then by their Porter
    stems; the third stage needs WordNet, whose data a machine without a network does not have, so no word counts as
    another's synonym and the figure is at most that of the full METEOR. Words are lower-case runs of letters and
    digits; punctuation does not count. By its formula a perfect answer of n words scores 1 - 0.5 / n^3: 0.5 for one
    word, 0.94 for two.

    Raises:
        ValueError: If the lengths differ.
    """
    return [float(score) for score in _compute({"meteor": _meteor}, predictions, references).get("meteor", [])]


def score_answers(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Score each prediction as `score_rows` does, by whichever of its accepted answers gives the most (SQuAD's rule).

    Args:
        predictions: n answers.
        answers: n lists of everything that counts as right, none of them empty.

    Returns:
        n rows of `exact_match`, `token_f1` and `rouge_l`, each from 0 to 1 and each the best by itself.

    Raises:
        ValueError: If the lengths differ, or a list is empty.
    """
    if not all(answers):
        raise ValueError("a row accepts no answer")
    pairs = [(n, p, r) for n, (p, accepted) in enumerate(zip(predictions, answers, strict=True)) for r in accepted]
    scores = score_rows([p for _, p, _ in pairs], [r for _, _, r in pairs])
    rows = pl.Series("row", [n for n, _, _ in pairs], dtype=pl.Int64)
    return scores.with_columns(rows).group_by("row").max().sort("row").drop("row")


def score_labels(predictions: Sequence[str], labels: Sequence[str]) -> pl.DataFrame:
    """Score predicted labels: `exact_match` compares whole labels, the other columns are those of `score_rows`.

    Case, white space, and the quotes and marks of a sentence around a label do not count. SQuAD's normalisation would
    make one label of "C" and "C++", and leave nothing of "A".

    Args:
        predictions: n answers.
        labels: n correct labels.

    Returns:
        n rows of `exact_match`, `token_f1` and `rouge_l`, each from 0 to 1.

    Raises:
        ValueError: If the lengths differ.
    """
    matches = [float(plain_label(p) == plain_label(r)) for p, r in zip(predictions, labels, strict=True)]
    return score_rows(predictions, labels).with_columns(pl.Series("exact_match", matches, dtype=pl.Float64))


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
    from sklearn.metrics import f1_score

    if not labels:
        raise ValueError("F1 of no rows is undefined")
    right, given = [plain_label(label) for label in labels], [plain_label(text) for text in predictions]
    return float(f1_score(right, given, labels=sorted(set(right)), average="macro", zero_division=0))  # type: ignore[call-arg]


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


class _NoSynonyms:
    """Stands for WordNet in nltk's METEOR: it knows no synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _meteor(predictions: list[str], references: list[str]) -> list[float]:
    from nltk.translate.meteor_score import single_meteor_score

    wordnet: Any = _NoSynonyms()
    pairs = ((_WORD.findall(p), _WORD.findall(r)) for p, r in zip(predictions, references, strict=True))
    return [float(single_meteor_score(reference, hypothesis, wordnet=wordnet)) for hypothesis, reference in pairs]


def _bleu(predictions: list[str], references: list[str]) -> float:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="13a", effective_order=True).corpus_score(predictions, [references]).score
