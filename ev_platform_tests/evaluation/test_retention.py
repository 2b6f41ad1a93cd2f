import math

import pytest
import yaml

from ev_platform.decoding import Completion
from ev_platform.encoder import EncoderEngine
from ev_platform.engine import CTranslate2Engine
from ev_platform.engine_base import Likelihood
from ev_platform.evaluation.retention import ITEMS, SYSTEM, ask_general, is_right, lost, summary
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model

GENERAL = yaml.safe_load(ITEMS.read_text(encoding="utf-8"))


class Fake:
    """Knows the answers to some questions, and finds every text equally likely."""

    window = 2048

    def __init__(self, n_known, nll=3.0):
        self.known = {item["question"]: item["answers"][-1] for item in GENERAL["questions"][:n_known]}
        self.nll = nll
        self.systems = set()

    def render(self, messages):
        self.systems.add(messages[0]["content"])
        return messages[-1]["content"]

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        answers = [f"It is {self.known.get(prompt, 'unknown')}." for prompt in prompts]
        return [Completion(answer, 9, 3, 1.0, "stop") for answer in answers]

    def score(self, texts):
        return [Likelihood(self.nll + number % 2, 10 * (1 + number % 2)) for number, _ in enumerate(texts)]


def test_general_set_has_answers_and_paragraphs_of_the_promised_size():
    assert len(GENERAL["questions"]) == 40 and len(GENERAL["texts"]) == 12
    assert len({item["question"] for item in GENERAL["questions"]}) == 40
    assert all(item["answers"] and all(map(str.strip, item["answers"])) for item in GENERAL["questions"])
    assert all(60 <= len(text.split()) <= 100 for text in GENERAL["texts"])


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("The capital is Paris.", ["Paris"], True),
        ("PARIS", ["Paris"], True),
        ("7 + 6 = 13.", ["13", "thirteen"], True),
        ("130", ["13"], False),
        ("A spider has 18 legs", ["8"], False),
        ("Nice", ["ice"], False),
        ("", ["ice"], False),
        ("10.5", ["10.5"], True),
        ("1045", ["10.5"], False),
    ],
)
def test_answer_is_right_if_an_accepted_one_stands_in_it_as_whole_words(answer, accepted, right):
    assert is_right(answer, accepted) is right


def test_model_that_forgot_scores_below_its_base():
    base, tuned = Fake(30), Fake(10, nll=4.0)
    answers = ask_general({"base": ("b1", base), "tuned": ("t1", tuned)})
    assert answers.group_by("model", "kind", maintain_order=True).len().rows() == [
        (model, kind, n) for model in ("base", "tuned") for kind, n in (("question", 40), ("text", 12))
    ]
    figures = summary(answers)
    assert list(figures) == ["base", "tuned"]
    assert figures["base"]["accuracy"] == 30 / 40 and figures["tuned"]["accuracy"] == 10 / 40
    # Of 12 texts, half have 10 tokens and half have 20, which are less likely by one nat.
    assert figures["base"]["perplexity"] == pytest.approx(math.exp((3 * 10 + 4 * 20) / 30))
    assert figures["tuned"]["perplexity"] == pytest.approx(math.e * figures["base"]["perplexity"])
    assert base.systems == {SYSTEM}
    loss = lost(answers)
    assert loss.value == 20 / 40 and 0.3 < loss.low < loss.value < loss.high < 0.7


def test_items_have_the_same_ids_for_every_model():
    answers = ask_general({"base": ("b1", Fake(3)), "tuned": ("t1", Fake(3))})
    ids = [answers.filter(model=model)["item_id"].to_list() for model in ("base", "tuned")]
    assert ids[0] == ids[1] and len(set(ids[0])) == 52


def test_damaged_model_finds_neutral_texts_less_likely(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engines = {}
    for name in ("base", "tuned"):
        folder = write_tiny_model(tmp_path / name)
        if name == "tuned":
            network = AutoModelForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                network.lm_head.weight.mul_(5)  # a random model that is sure of itself
            network.save_pretrained(folder)
            AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        out = tmp_path / f"{name}_out"
        out.mkdir()
        export_serving_model(folder, out, tiny_recipe(), (), "")
        engines[name] = (name, CTranslate2Engine(out, threads=1))
    answers = ask_general(engines)
    assert answers.equals(ask_general(engines))
    figures = summary(answers)
    assert figures["tuned"]["perplexity"] > 2 * figures["base"]["perplexity"] > 2


def test_encoder_has_no_general_answers():
    encoder = object.__new__(EncoderEngine)  # it is never asked, so that it needs no weights
    answers = ask_general({"base": ("b1", encoder), "tuned": ("t1", encoder)})
    assert answers.is_empty() and summary(answers) == {} and lost(answers) is None
