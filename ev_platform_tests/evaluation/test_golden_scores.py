"""Figures of fixed texts, kept in a file: a metric library whose newer version scores otherwise fails here.

To write the file anew, once it is understood why a figure changed: `EV_WRITE_SNAPSHOT=1 python -m pytest FILE`.
"""

import inspect
import json
import os
from pathlib import Path

import pytest

from ev_platform.evaluation.metrics import (
    confusion,
    corpus_bleu,
    libraries,
    macro_f1,
    per_class,
    score_rows,
)

GOLDEN = Path(__file__).with_name("golden_scores.json")
TEXTS = [
    ("30 minutes", "30 minutes"),
    ("Thirty minutes.", "about 30 minutes"),
    ("The charging stations stop at 80 % &amp; below", "A charging station stops below 80 %, as a rule."),
    ("up to 350 kW, in 15 min", "up to 350 kW in 15 minutes, 0.35/kWh"),
    ("the cat sat on the mat beside the charger", "the charger sat beside the cat on the mat"),
    ("Wallbox für Zuhause", "Wallbox fur Zuhause"),
    ("", "50 kW"),
]
LABELS = [
    ("fee", "fee"),
    ("fee", "refund"),
    ("refund", "refund"),
    ("Refund.", "refund"),
    ("lost", "fee"),
    ("?", "lost"),
]


def figures():
    predictions, references = map(list, zip(*TEXTS, strict=True))
    given, right = map(list, zip(*LABELS, strict=True))
    scores = score_rows(predictions, references).to_dict(as_series=False)
    scores["bleu"] = corpus_bleu(predictions, references)
    scores["macro_f1"] = macro_f1(given, right)
    for name in ("f1", "precision", "recall"):
        scores[f"class_{name}"] = per_class(given, right, name)
    scores["confusion"] = {" > ".join(pair): n for pair, n in confusion(given, right).items()}
    return scores


def otherwise():
    """Return the scores that are not those of the golden file."""
    golden, now = json.loads(GOLDEN.read_text()), figures()
    return sorted(name for name in golden["scores"].keys() | now if golden["scores"].get(name) != now.get(name))


def test_fixed_texts_score_as_the_golden_file_has_it():
    if os.environ.get("EV_WRITE_SNAPSHOT"):
        GOLDEN.write_text(json.dumps({"libraries": libraries(), "scores": figures()}, indent=1) + "\n")
    made_with = json.loads(GOLDEN.read_text())["libraries"]
    assert otherwise() == [], f"These score otherwise now; the file was made with {made_with}, here are {libraries()}."


def with_defaults(function, **changes):
    """Return what a function's defaults become with changes, as an upgrade may change them."""
    defaults = [p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    names = [name for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty]
    return tuple(changes.get(name, default) for name, default in zip(names, defaults, strict=True))


@pytest.mark.parametrize("library", ["rouge-score", "chrf of sacrebleu", "bleu of sacrebleu", "nltk", "scikit-learn"])
def test_upgraded_library_that_scores_otherwise_is_caught_by_name(monkeypatch, library):
    if library == "rouge-score":
        monkeypatch.setattr("rouge_score.tokenizers.DefaultTokenizer.tokenize", lambda self, text: text.split())
        expected = ["rouge_1", "rouge_2", "rouge_l"]
    elif library == "chrf of sacrebleu":
        from sacrebleu.metrics import CHRF

        monkeypatch.setattr(CHRF.__init__, "__defaults__", with_defaults(CHRF.__init__, char_order=4))
        expected = ["chrf"]
    elif library == "bleu of sacrebleu":
        monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a.__call__", lambda self, line: line)
        expected = ["bleu"]
    elif library == "nltk":
        from nltk.translate.meteor_score import single_meteor_score

        monkeypatch.setattr(single_meteor_score, "__defaults__", with_defaults(single_meteor_score, alpha=0.8))
        expected = ["meteor"]
    else:
        from sklearn import metrics

        f1_score, matrix = metrics.f1_score, metrics.confusion_matrix
        monkeypatch.setattr(metrics, "f1_score", lambda *args, **kw: f1_score(*args, **kw | {"average": "weighted"}))
        monkeypatch.setattr(metrics, "confusion_matrix", lambda *args, **kw: matrix(*args, **kw).T)
        expected = ["confusion", "macro_f1"]
    assert otherwise() == expected
