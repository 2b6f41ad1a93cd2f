"""Open-book question answering: the prompt holds retrieved passages, the answer is short free text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ev_platform.prompting import Messages, build_messages


class OpenBookQA:
    """Questions answered from passages."""

    name = "open_book_qa"
    has_corpus = True
    has_classes = False
    trains_with_passages = True
    allows_unanswerable = True
    answer_rule = "The answer is a phrase or one short sentence, in the terms and units of its passage."
    primary_metric = "token_f1"
    heads: tuple[str, ...] = ("causal",)

    def instructions(self, description: str, classes: Mapping[str, str]) -> str:
        """Return the task in words."""
        return description

    def prompt(self, instructions: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question over passages."""
        return build_messages(instructions, question, contexts)

    def flaw(self, example: Mapping[str, Any], passage: str | None, classes: Mapping[str, str]) -> str | None:
        """Return nothing: any answer in words will do."""
        return None

    def fits(self, *, has_descriptions: bool, has_spans: bool) -> bool:
        """Return False: it is what a folder is taken for that shows no other type."""
        return False

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages.

        `base` and `tuned` are asked the bare question. Where a row brings its own context, the two with retrieval get
        that instead of what retrieval would bring.
        """
        return (
            ("base", "base", False),
            ("tuned", "tuned", False),
            ("base_rag", "base", True),
            ("tuned_rag", "tuned", True),
        )
