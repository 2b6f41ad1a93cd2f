"""SQuAD's figures: what evaluate-v1.1.py and -v2.0.py print for stated rows, and their rules for random ones."""

import collections
import random
import re
import string

import pytest

from ev_platform.evaluation.squad import best_threshold, squad_v1, squad_v2

PREDICTIONS = ["The Eiffel Tower", "", "in 1889 , ", "Gustave", "", "a the", "x", "iron; lattice"]
# Row 7's only answer is one that normalising leaves nothing of, which is not the same as having none.
ANSWERS = [["Eiffel Tower", "the tower"], ["Paris"], ["1889", "in 1889"], ["Gustave Eiffel"], [], [], ["the"], []]
NULL_SCORES = [-3.0, 2.5, -1.0, 0.5, 4.0, 1.0, -0.5, 0.25]


def test_squad_v2_equals_the_official_script():
    assert squad_v2(PREDICTIONS, ANSWERS) == {
        "exact": 50.0,
        "f1": 58.33333333333333,
        "total": 8,
        "HasAns_exact": 40.0,
        "HasAns_f1": 53.33333333333333,
        "HasAns_total": 5,
        "NoAns_exact": 66.66666666666667,
        "NoAns_f1": 66.66666666666667,
        "NoAns_total": 3,
    }


def test_squad_v2_with_null_scores_equals_the_official_script():
    assert squad_v2(PREDICTIONS, ANSWERS, NULL_SCORES, 0.4) == {
        "exact": 50.0,
        "f1": 50.0,
        "total": 8,
        "HasAns_exact": 40.0,
        "HasAns_f1": 40.0,
        "HasAns_total": 5,
        "NoAns_exact": 66.66666666666667,
        "NoAns_f1": 66.66666666666667,
        "NoAns_total": 3,
        "best_exact": 62.5,
        "best_exact_thresh": -1.0,
        "best_f1": 62.5,
        "best_f1_thresh": -1.0,
    }
    assert best_threshold(PREDICTIONS, ANSWERS, NULL_SCORES) == -1.0


def test_squad_v1_equals_the_official_script():
    answers = [accepted or ["lattice work"] for accepted in ANSWERS]
    assert squad_v1(PREDICTIONS, answers) == {"exact_match": 25.0, "f1": 39.58333333333333}


def test_squad_v2_has_figures_of_the_questions_that_there_are():
    assert "NoAns_f1" not in squad_v2(["Rome"], [["Rome"]])
    assert "HasAns_f1" not in squad_v2(["Rome"], [[]])


def test_best_threshold_is_zero_where_no_answer_helps():
    assert best_threshold(["Rome", "Oslo"], [[], ["Bern"]], [3.0, 5.0]) == 0.0


def test_best_threshold_reaches_all_questions_where_all_can_be_answered():
    assert best_threshold(["Rome", "Oslo", "Bern"], [["Rome"], ["Oslo"], ["Bern"]], [3.0, -5.0, 7.0]) == 7.0


def test_figures_of_no_rows_or_of_unequal_lists_are_refused():
    for score in (squad_v1, squad_v2):
        with pytest.raises(ValueError, match="no rows"):
            score([], [])
    with pytest.raises(ValueError, match="2 predictions but 1 null scores"):
        squad_v2(["a", "b"], [["a"], []], [0.5])
    with pytest.raises(ValueError):
        squad_v2(["a", "b"], [["a"]])


# The rules of the official SQuAD 2.0 evaluation script (evaluate-v2.0.py), as published.
def get_tokens(text):
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def compute_exact(a_gold, a_pred):
    return int(get_tokens(a_gold) == get_tokens(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def make_eval_dict(exact, f1, qids):
    return {
        "exact": 100.0 * sum(exact[k] for k in qids) / len(qids),
        "f1": 100.0 * sum(f1[k] for k in qids) / len(qids),
        "total": len(qids),
    }


def test_squad_v2_of_random_rows_equals_the_published_rules():
    rng = random.Random(3)
    words = ["the", "A", "tower", "Tower,", "1889", "iron", "-", "...", "an", "Größe", "of", "steel."]

    def text(least):
        return " ".join(rng.choice(words) for _ in range(rng.randint(least, 4)))

    predictions = [text(0) for _ in range(200)]
    answers = [[text(1) for _ in range(rng.randint(0, 3))] for _ in range(200)]
    exact, f1 = {}, {}
    for row, (prediction, accepted) in enumerate(zip(predictions, answers, strict=True)):
        golds = [answer for answer in accepted if " ".join(get_tokens(answer))] or [""]
        exact[row] = max(compute_exact(gold, prediction) for gold in golds)
        f1[row] = max(compute_f1(gold, prediction) for gold in golds)
    expected = make_eval_dict(exact, f1, range(200))
    for prefix, is_wanted in (("HasAns", True), ("NoAns", False)):
        rows = [row for row in range(200) if bool(answers[row]) == is_wanted]
        expected |= {f"{prefix}_{name}": value for name, value in make_eval_dict(exact, f1, rows).items()}
    assert squad_v2(predictions, answers) == expected
