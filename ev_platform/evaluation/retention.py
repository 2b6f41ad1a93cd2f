"""What a model still knows after tuning: everyday questions, and how likely it finds ordinary English.

The items are in general.yaml. A model that has learned its task by heart and forgotten the language scores well on the
benchmark and badly here. What does not belong here: how much may be lost (`registry.gate`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from ev_platform.engine_base import Engine, Writer
from ev_platform.evaluation.statistics import Difference, paired_difference
from ev_platform.identity import short_id
from ev_platform.prompting import Messages
from ev_platform.records import GeneralAnswer, to_frame

ITEMS = Path(__file__).with_name("general.yaml")
SYSTEM = "Answer the question in a few words."
MAX_NEW_TOKENS = 24  # "To add 7 and 6, you simply add them together: 7 + 6 = 13." has 22
RESAMPLES = 2000  # of the interval, as in evaluation
_AT_ONCE = 8  # questions in one call of the engine: three times as fast on a CPU as one by one


def ask_general(engines: Mapping[str, tuple[str, Engine]]) -> pl.DataFrame:
    """Ask every model the general questions, greedily, and score the neutral texts.

    The system message is neutral: it says nothing of the task, so what is measured is the model and not its prompt. An
    answer is right if an accepted one stands in it as whole words, whatever its case.

    Args:
        engines: For `base` and `tuned`: the artifact's id and its engine.

    Returns:
        The table `general_answers`; empty if the models are encoders, which write no text.

    Raises:
        UserError: If the models' window is too short for a question or a text.
    """
    items = yaml.safe_load(ITEMS.read_text(encoding="utf-8"))
    rows: list[GeneralAnswer] = []
    for model, (model_id, engine) in engines.items():
        if isinstance(engine, Writer):
            rows += _ask(model, model_id, engine, items["questions"])
            rows += _read(model, model_id, engine, items["texts"])
    return to_frame("general_answers", rows)


def summary(answers: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return of each model of `general_answers` its `accuracy` (0 to 1) and its `perplexity`, of the texts' tokens."""
    figures = {}
    for (model,), rows in answers.group_by("model", maintain_order=True):
        questions, texts = (rows.filter(pl.col("kind") == kind) for kind in ("question", "text"))
        nll = np.average(texts["score"], weights=texts["n_tokens"])
        figures[str(model)] = {
            "accuracy": float(np.mean(questions["score"].to_numpy())),
            "perplexity": math.exp(nll),
        }
    return figures


def lost(answers: pl.DataFrame) -> Difference | None:
    """Return the share of general questions that base answers and tuned does not, less those it has learned.

    Paired by question, with its interval, which is wide: so few questions show what is lost for good and little more.

    Returns:
        None for an empty table.
    """
    right = {
        model: rows.sort("item_id")["score"].to_numpy()
        for (model,), rows in answers.filter(pl.col("kind") == "question").group_by("model")
    }
    if not {"base", "tuned"} <= right.keys():
        return None
    return paired_difference(right["base"], right["tuned"], resamples=RESAMPLES, seed=0)


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Return whether an accepted answer stands in an answer as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(good)}(?!\w)", answer, re.IGNORECASE) for good in accepted)


def _ask(model: str, model_id: str, engine: Engine, questions: Sequence[Mapping]) -> list[GeneralAnswer]:
    rows = []
    for start in range(0, len(questions), _AT_ONCE):
        part = questions[start : start + _AT_ONCE]
        prompts = [engine.render(_chat(item["question"])) for item in part]
        for item, completion in zip(part, engine.generate(prompts, max_new_tokens=MAX_NEW_TOKENS), strict=True):
            rows.append(
                GeneralAnswer(
                    model=model,
                    model_id=model_id,
                    item_id=short_id("gen", item["question"]),
                    kind="question",
                    text=item["question"],
                    reference=" | ".join(item["answers"]),
                    answer=completion.text,
                    score=float(is_right(completion.text, item["answers"])),
                    n_tokens=completion.n_completion_tokens,
                )
            )
    return rows


def _read(model: str, model_id: str, engine: Writer, texts: Sequence[str]) -> list[GeneralAnswer]:
    return [
        GeneralAnswer(
            model=model,
            model_id=model_id,
            item_id=short_id("gen", text),
            kind="text",
            text=text,
            reference=None,
            answer=None,
            score=round(likelihood.nll, 4),  # beyond that it hangs on the machine
            n_tokens=likelihood.n_tokens,
        )
        for text, likelihood in zip(texts, engine.score(texts), strict=True)
    ]


def _chat(question: str) -> Messages:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
