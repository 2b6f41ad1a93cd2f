"""Scores of answers against references: exact match, token F1, ROUGE, chrF, METEOR and BLEU.

The figures are those of the reference implementations, so they compare with published ones. The scores of labels
(`labels`), the groundedness of an answer (`groundedness`) and whether it declines (`abstention`) are named here too,
so that what scores an answer is found in one place.

What does not belong here: intervals and verdicts (`statistics`), and which rows are scored (`evaluation`).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import polars as pl

from ev_platform.evaluation.abstention import is_abstention
from ev_platform.evaluation.groundedness import MIN_GROUNDED, groundedness
from ev_platform.evaluation.labels import OTHER, confusion, macro_f1, per_class, plain_label
from ev_platform.evaluation.local_metric import Scorer, compute

__all__ = [
    "MIN_GROUNDED",
    "OTHER",
    "ROW_SCORES",
    "confusion",
    "corpus_bleu",
    "groundedness",
    "is_abstention",
    "libraries",
    "macro_f1",
    "per_class",
    "plain_label",
    "score_answers",
    "score_labels",
    "score_rows",
]

_PUNCTUATION = frozenset(string.punctuation)
_WORD = re.compile(r"\w+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LIBRARIES = ("evaluate", "nltk", "rouge-score", "sacrebleu", "scikit-learn")


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that compute scores; scores of other versions may not compare."""
    return {name: version(name) for name in _LIBRARIES}


def score_rows(
    predictions: Sequence[str], references: Sequence[str], only: Sequence[str] | None = None
) -> pl.DataFrame:
    """Score each prediction against its one reference.

    - `exact_match` and `token_f1`, 0 to 1, follow SQuAD 1.1 (Rajpurkar et al., 2016), literally: an answer that is
      empty after normalisation matches an empty one exactly, and its F1 is 0.
    - `rouge_l`, `rouge_1` and `rouge_2`, 0 to 1 (Lin, 2004), are rouge_score's F-measures without stemming, the default
      of that package and of `evaluate`'s own ROUGE. They read a to z and 0 to 9 only: another script scores 0.
    - `chrf`, 0 to 100 (Popović, 2015), is sacrebleu's chrF2 of the one sentence: characters in runs of 1 to 6.
    - `meteor`, 0 to 1 (Banerjee and Lavie, 2005), by nltk: the harmonic mean of unigram precision P and recall R with
      recall weighted nine times, 10PR / (R + 9P), less a penalty of 0.5 (chunks / matches)^3. Words match exactly, then
      by their Porter stems; the third stage needs WordNet, whose data a machine without a network does not have, so no
      word counts as another's synonym and the figure is at most that of the full METEOR. Words are lower-case runs of
      letters and digits; punctuation does not count. By its formula a perfect answer of n words scores 1 - 0.5 / n^3:
      0.5 for one word, 0.94 for two.

    Args:
        predictions: n answers.
        references: n correct answers.
        only: The scores that are wanted, of `ROW_SCORES`; None: all.

    Returns:
        n rows of the scores, in the order of `ROW_SCORES`.

    Raises:
        ValueError: If the lengths differ.
    """
    wanted = [name for name in ROW_SCORES if only is None or name in only]
    scorers = {names[0]: scorer for names, scorer in _ROW_SCORERS.items() if set(names) & set(wanted)}
    found = compute(scorers, predictions, references)
    scores = {name: values for columns in found.values() for name, values in columns.items() if name in wanted}
    return pl.DataFrame(scores, schema=dict.fromkeys(wanted, pl.Float64))


def score_answers(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], only: Sequence[str] | None = None
) -> pl.DataFrame:
    """Score each prediction as `score_rows` does, by whichever of its accepted answers gives the most (SQuAD's rule).

    Args:
        predictions: n answers.
        answers: n lists of everything that counts as right, none of them empty.
        only: The scores that are wanted, of `ROW_SCORES`; None: all.

    Returns:
        n rows of the scores, each the best by itself.

    Raises:
        ValueError: If the lengths differ, or a list is empty.
    """
    if not all(answers):
        raise ValueError("a row accepts no answer")
    pairs = [(n, p, r) for n, (p, accepted) in enumerate(zip(predictions, answers, strict=True)) for r in accepted]
    scores = score_rows([p for _, p, _ in pairs], [r for _, _, r in pairs], only)
    rows = pl.Series("row", [n for n, _, _ in pairs], dtype=pl.Int64)
    return scores.with_columns(rows).group_by("row").max().sort("row").drop("row")


def score_labels(predictions: Sequence[str], labels: Sequence[str], only: Sequence[str] | None = None) -> pl.DataFrame:
    """Score predicted labels: `exact_match` compares whole labels, the other columns are those of `score_rows`.

    Case, white space, and the quotes and marks of a sentence around a label do not count. SQuAD's normalisation would
    make one label of "C" and "C++", and leave nothing of "A".

    Args:
        predictions: n answers.
        labels: n correct labels.
        only: The scores that are wanted, `exact_match` among them; None: all of `ROW_SCORES`.

    Returns:
        n rows of the scores.

    Raises:
        ValueError: If the lengths differ.
    """
    matches = [float(plain_label(p) == plain_label(r)) for p, r in zip(predictions, labels, strict=True)]
    scores = score_rows(predictions, labels, only)
    return scores.with_columns(pl.Series("exact_match", matches, dtype=pl.Float64))


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
    return float(compute({"bleu": _bleu}, predictions, references)["bleu"])


def _squad(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    pairs = [(_normalise(p), _normalise(r)) for p, r in zip(predictions, references, strict=True)]
    return {
        "exact_match": [float(p == r) for p, r in pairs],
        "token_f1": [_pair_f1(p.split(), r.split()) for p, r in pairs],
    }


def _normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation, then the English articles, then surplus white space (SQuAD 1.1)."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _pair_f1(predicted: list[str], expected: list[str]) -> float:
    n_common = sum((Counter(predicted) & Counter(expected)).values())
    if n_common == 0:
        return 0.0
    precision, recall = n_common / len(predicted), n_common / len(expected)
    return 2 * precision * recall / (precision + recall)


def _rouge(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
    scorer = RougeScorer(list(names.values()), use_stemmer=False)
    scores = [scorer.score(target=r, prediction=p) for p, r in zip(predictions, references, strict=True)]
    return {name: [float(score[theirs].fmeasure) for score in scores] for name, theirs in names.items()}


def _chrf(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    pairs = zip(predictions, references, strict=True)
    return {"chrf": [float(chrf.sentence_score(p, [r]).score) for p, r in pairs]}


class _NoSynonyms:
    """Stands for WordNet in nltk's METEOR: it knows no synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _meteor(predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    from nltk.translate.meteor_score import single_meteor_score

    wordnet: Any = _NoSynonyms()
    pairs = ((_WORD.findall(p), _WORD.findall(r)) for p, r in zip(predictions, references, strict=True))
    return {"meteor": [float(single_meteor_score(right, given, wordnet=wordnet)) for given, right in pairs]}


def _bleu(predictions: list[str], references: list[str]) -> float:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="13a", effective_order=True).corpus_score(predictions, [references]).score


_ROW_SCORERS: dict[tuple[str, ...], Scorer] = {
    ("exact_match", "token_f1"): _squad,
    ("rouge_l", "rouge_1", "rouge_2"): _rouge,
    ("chrf",): _chrf,
    ("meteor",): _meteor,
}
ROW_SCORES = tuple(name for names in _ROW_SCORERS for name in names)
