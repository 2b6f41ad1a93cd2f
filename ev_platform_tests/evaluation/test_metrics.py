"""Scores against the reference implementations, to the last digit."""

import os
import random
import re
import string
import subprocess
import sys
from collections import Counter

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from ev_platform.evaluation.metrics import (
    OTHER,
    ROW_SCORES,
    confusion,
    corpus_bleu,
    macro_f1,
    per_class,
    score_answers,
    score_labels,
    score_rows,
)

PAIRS = [
    # prediction, reference
    ("30 minutes", "30 minutes"),
    ("Thirty minutes.", "30 minutes"),
    ("The 32 A socket", "a 32 A socket!"),
    ("", ""),
    ("", "50 kW"),
    ("50 kW", ""),
    ("the", "a"),
    ("The", ""),
    ("   ", "\n\t"),
    ("...", "!?"),
    ("An apple a day", "apple day"),
    ("theatre", "the atre"),
    ("IC-CPD", "ICCPD"),
    ("It's the driver's cable", "its the drivers cable"),
    ("CCS2", "CCS 2"),
    ("up to 350 kW, in 15 min", "up to 350 kW in 15 minutes"),
    ("no no no yes", "no yes"),
    ("no yes", "no no no yes"),
    ("Wallbox für Zuhause", "Wallbox fur Zuhause"),
    ("Größe: 11 kW", "größe 11 kw"),
    ("STRASSE", "straße"),
    ("İstanbul", "istanbul"),
    ("充電 スタンド", "充電 スタンド"),
    ("зарядная станция", "Зарядная станция"),
    ("“smart” charging — ISO 15118", "smart charging ISO 15118"),
    ("£0.35/kWh", "0.35 per kWh"),
    ("🔌 Type 2", "Type 2"),
    ("non\u00a0breaking space", "non breaking space"),
    ("e\u0301quipement", "\u00e9quipement"),
    ("line one\nline two", "line one line two"),
    ("running stations", "run station"),
    ("B A", "A B"),
    ("the cat sat on the mat beside the charger", "the charger sat beside the cat on the mat"),
    ("A residual current device in the building", "a residual current device in the building"),
    ("<b>bold</b> & more", "bold and more"),
    ("a a a", "the the"),
    ("IEC 61851-1:2017", "IEC 61851-1"),
    ("x" * 500, "x" * 500),
]
PREDICTIONS = [prediction for prediction, _ in PAIRS]
REFERENCES = [reference for _, reference in PAIRS]


# The rules of the official SQuAD 1.1 evaluation script (evaluate-v1.1.py), as published.
def squad_normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def squad_f1(prediction, ground_truth):
    prediction_tokens = squad_normalize_answer(prediction).split()
    ground_truth_tokens = squad_normalize_answer(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def test_score_rows_varied_strings_equals_squad_and_rouge_score():
    scores = score_rows(PREDICTIONS, REFERENCES)
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    assert scores["exact_match"].to_list() == [
        float(squad_normalize_answer(p) == squad_normalize_answer(r)) for p, r in PAIRS
    ]
    assert scores["token_f1"].to_list() == [squad_f1(p, r) for p, r in PAIRS]
    for ours, theirs in (("rouge_l", "rougeL"), ("rouge_1", "rouge1"), ("rouge_2", "rouge2")):
        assert scores[ours].to_list() == [rouge.score(r, p)[theirs].fmeasure for p, r in PAIRS]
    assert scores["chrf"].to_list() == [sacrebleu.sentence_chrf(p, [r]).score for p, r in PAIRS]


def test_chrf_of_a_worked_example_equals_the_paper_s_formula():
    # "abc" and "abd": 2 of 3 characters and 1 of 2 pairs in common, no triple; F with recall counting twice (beta 2)
    # of the mean precision and recall over the three orders that there are.
    mean = (2 / 3 + 1 / 2 + 0) / 3
    assert score_rows(["abc"], ["abd"], only=("chrf",))["chrf"].item() == pytest.approx(100 * mean)
    # The first half of a text: precision 1, recall (3/6 + 2/5 + 1/4)/3 over the orders of the shorter one.
    precision, recall = 1.0, (3 / 6 + 2 / 5 + 1 / 4) / 3
    expected = 5 * precision * recall / (4 * precision + recall)
    assert score_rows(["abc"], ["abcdef"], only=("chrf",))["chrf"].item() == pytest.approx(100 * expected)


def test_scores_that_are_wanted_come_alone_and_as_with_the_others():
    everything = score_rows(PREDICTIONS, REFERENCES)
    assert everything.columns == list(ROW_SCORES)
    for wanted in (["meteor"], ["rouge_2", "exact_match"], ["chrf", "rouge_l", "token_f1"]):
        only = score_rows(PREDICTIONS, REFERENCES, only=wanted)
        assert only.equals(everything.select(name for name in ROW_SCORES if name in wanted))


def test_score_rows_known_answers_give_figures_worked_out_by_hand():
    scores = score_rows(["the 32 A socket", "no no yes", "", "B C"], ["32 socket", "no yes", "", "C B"])
    assert scores["exact_match"].to_list() == [1.0, 0.0, 1.0, 0.0]
    # "no no yes" has 2 words in common: precision 2/3, recall 1. Two empty answers share no word.
    assert scores["token_f1"].to_list() == pytest.approx([1.0, 0.8, 0.0, 1.0])
    assert scores["rouge_l"].to_list() == pytest.approx([2 / 3, 0.8, 0.0, 0.5])


def test_score_rows_no_rows_gives_the_empty_frame():
    assert score_rows([], []).schema == score_rows(["a"], ["a"]).schema
    assert len(score_rows([], [])) == 0


def test_score_rows_unequal_lengths_raises_with_both():
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        score_rows(["a", "b"], ["a"])


def test_score_answers_takes_the_accepted_answer_that_gives_the_most():
    accepted = [["Saint Bernadette", "Bernadette Soubirous in 1858"], ["11 kW"], ["no", "yes"]]
    scores = score_answers(["Bernadette Soubirous", "22 kW", "yes"], accepted)
    assert scores["exact_match"].to_list() == [0.0, 0.0, 1.0]
    assert scores["token_f1"].to_list() == pytest.approx([2 / 3, 0.5, 1.0])  # 2 of 2 and 2 of 4 words, the second one
    alone = score_rows(["Bernadette Soubirous"], ["Saint Bernadette"])
    assert alone["token_f1"].item() == pytest.approx(0.5)


def test_score_answers_many_rows_stay_in_their_order():
    words = [f"word{n}" for n in range(300)]
    scores = score_answers(words, [["other", word] if n % 3 else ["other"] for n, word in enumerate(words)])
    assert scores["exact_match"].to_list() == [float(n % 3 > 0) for n in range(300)]
    assert scores.columns == score_rows([], []).columns


def test_score_answers_no_rows_gives_the_empty_frame():
    assert score_answers([], []).equals(score_rows([], []))


def test_score_answers_row_without_an_accepted_answer_raises():
    with pytest.raises(ValueError, match="accepts no answer"):
        score_answers(["a"], [[]])


def test_score_labels_compares_whole_labels_and_not_words():
    cases = [
        ("Card_Arrival.", "card_arrival", 1.0),
        (' "refund"\n', "refund", 1.0),
        ("C++", "C", 0.0),
        ("C#", "C++", 0.0),
        ("the", "A", 0.0),  # without its articles both would be empty
        ("", "A", 0.0),
        ("a", "A", 1.0),
        ("card arrival", "card_arrival", 0.0),
        ("refund because the card", "refund", 0.0),
        ("!", "?", 0.0),  # without marks both would be empty
        ("?", "?", 1.0),
        ("", "?", 0.0),
    ]
    scores = score_labels([p for p, _, _ in cases], [r for _, r, _ in cases])
    assert scores["exact_match"].to_list() == [expected for _, _, expected in cases]


def test_macro_f1_counts_each_label_alike_and_foreign_answers_against_their_own_label_only():
    labels = ["a", "a", "a", "b"]
    # a: precision 1, recall 2/3, so 0.8; b: found. The foreign answer is a label that nobody asked about.
    assert macro_f1(["a", "A.", "no idea", "b"], labels) == pytest.approx((0.8 + 1) / 2)
    assert macro_f1(["a", "a", "a", "a"], labels) == pytest.approx((6 / 7 + 0) / 2)
    assert macro_f1(["x", "y", "z", "?"], labels) == 0.0


def test_scores_of_classes_equal_scikit_learn_and_are_named_as_first_written():
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    rng = random.Random(7)
    names = ["Card Fee", "refund", "C++", "C", "lost_card", "never answered"]
    labels = [rng.choice(names) for _ in range(200)]
    given = [rng.choice([label, label.upper(), f"{label}.", rng.choice(names[:5]), "none of them"]) for label in labels]
    known = sorted({label.lower() for label in labels})
    plain = [text.lower().strip(".") for text in given], [label.lower() for label in labels]
    figures = precision_recall_fscore_support(plain[1], plain[0], labels=known, zero_division=0)
    for score, expected in zip(("precision", "recall", "f1"), figures, strict=False):
        ours = per_class(given, labels, score)
        assert [name.lower() for name in ours] == known
        assert list(ours.values()) == expected.tolist()
    assert set(per_class(given, labels)) == set(names)
    assert macro_f1(given, labels) == f1_score(plain[1], plain[0], labels=known, average="macro", zero_division=0)
    counts = confusion(given, labels)
    matrix = confusion_matrix(plain[1], plain[0], labels=[*known, "none of them"])
    assert sum(counts.values()) == 200 and all(counts.values())
    spelt = {name.lower(): name for name in names} | {"none of them": OTHER}
    for i, right in enumerate(known):
        for j, answered in enumerate([*known, "none of them"]):
            assert counts.get((spelt[right], spelt[answered]), 0) == matrix[i, j]


def test_confusion_and_classes_of_no_rows_are_empty_and_unequal_lengths_are_refused():
    assert (confusion([], []), per_class([], [])) == ({}, {})
    for score in (confusion, per_class):
        with pytest.raises(ValueError, match="2 predictions but 1 references"):
            score(["a", "b"], ["a"])


def test_macro_f1_no_rows_raises():
    with pytest.raises(ValueError, match="no rows"):
        macro_f1([], [])


def test_corpus_bleu_varied_strings_equals_sacrebleu_default():
    assert corpus_bleu(PREDICTIONS, REFERENCES) == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
    for n in (2, 5, 12, 20):
        reversed_rows = PREDICTIONS[::-1][:n], REFERENCES[::-1][:n]
        expected = sacrebleu.corpus_bleu(reversed_rows[0], [reversed_rows[1]]).score
        assert corpus_bleu(*reversed_rows) == expected


def test_corpus_bleu_only_short_answers_counts_the_orders_there_are():
    assert sacrebleu.corpus_bleu(["30 minutes"], [["30 minutes"]]).score == 0
    assert corpus_bleu(["30 minutes"], ["30 minutes"]) == pytest.approx(100)


def test_corpus_bleu_only_empty_predictions_is_zero():
    assert corpus_bleu(["", ""], ["50 kW", "one"]) == 0


def test_corpus_bleu_no_rows_raises():
    with pytest.raises(ValueError, match="no rows"):
        corpus_bleu([], [])


def test_metrics_offline_touch_neither_network_nor_home(tmp_path):
    script = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError(f"network: {args}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from ev_platform.evaluation.metrics import corpus_bleu, score_rows
print(score_rows(["50 kW"], ["50 kW"]).row(0), corpus_bleu(["50 kW now"], ["50 kW now"]) > 99)
"""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1.0, 1.0, 1.0, 1.0, 1.0, 100.0, 0.9375) True", done.stderr
    assert list(home.rglob("*")) == []
    assert list(temporary.rglob("*")) == []
