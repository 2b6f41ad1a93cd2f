"""The figures of SQuAD 1.1 and 2.0, in percent, equal to those of the official scripts to the last digit.

What does not belong here: how an answer is normalised and compared with another (`metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ev_platform.evaluation.metrics import score_answers, score_rows

_SCORES = ("exact_match", "token_f1")


def squad_v1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `exact_match` and `f1` as evaluate-v1.1.py does (Rajpurkar et al. 2016).

    Args:
        predictions: n answers.
        answers: n lists of everything that counts as right, none of them empty.

    Raises:
        ValueError: If there are no rows, the lengths differ or a list is empty.
    """
    if not predictions:
        raise ValueError("the scores of no rows are undefined")
    scores = score_answers(predictions, answers, _SCORES)
    return {"exact_match": _percent(scores["exact_match"].to_list()), "f1": _percent(scores["token_f1"].to_list())}


def squad_v2(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    null_scores: Sequence[float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Return the figures of evaluate-v2.0.py (Rajpurkar et al. 2018) by the names it gives them.

    Args:
        predictions: n answers; an empty one says that there is none.
        answers: n lists of everything that counts as right; an empty list for an unanswerable question.
        null_scores: n degrees of belief that there is no answer, on any scale; None: the predictions stand.
        threshold: Above this score a prediction counts as "no answer", whatever it says.

    Returns:
        `exact`, `f1` and `total`; `HasAns_*` and `NoAns_*` of these where there are such questions; with `null_scores`,
        `best_exact` and `best_f1` over all thresholds, and the thresholds.

    Raises:
        ValueError: If there are no rows or the lengths differ.
    """
    if not predictions:
        raise ValueError("the scores of no rows are undefined")
    if null_scores is not None:
        _check_lengths(predictions, null_scores)
    exact, f1 = _raw_scores(predictions, answers)
    has_answer = [bool(accepted) for accepted in answers]
    nulls = [0.0] * len(predictions) if null_scores is None else null_scores
    is_null = [score > threshold for score in nulls]
    figures: dict[str, float] = {}
    for prefix, wanted in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        chosen = [row for row, has in enumerate(has_answer) if has in wanted]
        if not chosen:
            continue
        for name, raw in (("exact", exact), ("f1", f1)):
            scores = [float(not has_answer[row]) if is_null[row] else raw[row] for row in chosen]
            figures[prefix + name] = _percent(scores)
        figures[f"{prefix}total"] = len(chosen)
    if null_scores is not None:
        for name, raw in (("exact", exact), ("f1", f1)):
            best, at = _best_threshold(predictions, has_answer, raw, null_scores)
            figures |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return figures


def best_threshold(predictions: Sequence[str], answers: Sequence[Sequence[str]], null_scores: Sequence[float]) -> float:
    """Return the threshold of `null_scores` with the best F1, as evaluate-v2.0.py finds it.

    It is 0 where no threshold is better than to answer nothing.

    Raises:
        ValueError: If the lengths differ.
    """
    _check_lengths(predictions, null_scores)
    _, f1 = _raw_scores(predictions, answers)
    return _best_threshold(predictions, [bool(accepted) for accepted in answers], f1, null_scores)[1]


def _check_lengths(predictions: Sequence[str], null_scores: Sequence[float]) -> None:
    if len(predictions) != len(null_scores):
        raise ValueError(f"{len(predictions)} predictions but {len(null_scores)} null scores")


def _raw_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    flat = [answer for accepted in answers for answer in accepted]
    # An answer of which normalising leaves nothing does not count; a question without another has the empty one.
    is_empty = dict(zip(flat, score_rows(flat, [""] * len(flat), _SCORES)["exact_match"], strict=True)) if flat else {}
    accepted = [[answer for answer in own if not is_empty[answer]] or [""] for own in answers]
    scores = score_answers(predictions, accepted, _SCORES)
    exact = scores["exact_match"].to_list()
    # 1.1 has an F1 of 0 for two answers of which normalising leaves nothing, 2.0 has 1; otherwise they are the same,
    # and no answer has a lower F1 than its exact match.
    return exact, [max(pair) for pair in zip(exact, scores["token_f1"], strict=True)]


def _best_threshold(
    predictions: Sequence[str], has_answer: Sequence[bool], scores: Sequence[float], null_scores: Sequence[float]
) -> tuple[float, float]:
    # First nothing is answered; then one question after the other is, the surest first.
    now = best = float(sum(not has for has in has_answer))
    threshold = 0.0
    for row in sorted(range(len(null_scores)), key=lambda row: null_scores[row]):
        if has_answer[row]:
            now += scores[row]
        elif predictions[row]:
            now -= 1
        if now > best:
            best, threshold = now, null_scores[row]
    return 100.0 * best / len(scores), threshold


def _percent(scores: list[float]) -> float:
    return 100.0 * sum(scores) / len(scores)
