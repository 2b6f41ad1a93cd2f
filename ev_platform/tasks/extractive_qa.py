"""Extractive question answering: the answer is a span of the passage (SQuAD 1.1), or there is none (SQuAD 2.0).

Rajpurkar et al. 2016 and 2018. Rows usually bring their passage; a row that does not is asked over retrieved ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ev_platform.prompting import Messages, build_messages


class ExtractiveQA:
    """Questions answered in a passage's own words."""

    name = "extractive_qa"
    has_corpus = True
    has_classes = False
    trains_with_passages = True
    allows_unanswerable = True
    answer_rule = "The answer is the shortest span of its passage that answers, copied letter by letter."
    primary_metric = "token_f1"
    heads: tuple[str, ...] = ("causal", "extractive")

    def instructions(self, description: str, classes: Mapping[str, str]) -> str:
        """Return the task in words."""
        return description

    def prompt(self, instructions: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question over passages."""
        return build_messages(instructions, question, contexts)

    def flaw(self, example: Mapping[str, Any], passage: str | None, classes: Mapping[str, str]) -> str | None:
        """Return that the answer is no span of its passage; a line break counts as a blank."""
        if not example["is_answerable"] or passage is None:
            return None
        answer, start = example["answer"], example["answer_start"]
        if start is not None and example["context"] is not None and passage == example["context"]:
            if passage[start : start + len(answer)] == answer:
                return None
            return f"not_a_span: answer_start {start} does not point at {_short(answer)}"
        have, wanted = " ".join(passage.split()), " ".join(answer.split())
        if wanted in have:
            return None
        found = re.search(re.escape(wanted), have, re.IGNORECASE)
        stands = f"stands in the passage as {_short(found[0])}" if found else "does not stand in the passage"
        return f"not_a_span: {_short(answer)} {stands}"

    def fits(self, *, has_descriptions: bool, has_spans: bool) -> bool:
        """Return whether rows say where their answers begin."""
        return has_spans

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages.

        `base` and `tuned` are asked the bare question. Where a row brings its own context, the two with retrieval get
        that one passage and nothing else: the span must stand in it.
        """
        return (
            ("base", "base", False),
            ("tuned", "tuned", False),
            ("base_rag", "base", True),
            ("tuned_rag", "tuned", True),
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
