"""Closed-book question answering: the model answers from what training taught it; retrieval is the rival to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ev_platform.prompting import Messages, build_messages


class ClosedBookQA:
    """Questions answered from memory."""

    name = "closed_book_qa"
    has_corpus = True
    has_classes = False
    trains_with_passages = False
    allows_unanswerable = False
    answer_rule = "The answer is a phrase or one short sentence that is complete and understood on its own."
    primary_metric = "token_f1"
    heads: tuple[str, ...] = ("causal",)

    def instructions(self, description: str, classes: Mapping[str, str]) -> str:
        """Return the task in words."""
        return description

    def prompt(self, instructions: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question; passages are there for the systems with retrieval only."""
        return build_messages(instructions, question, contexts)

    def flaw(self, example: Mapping[str, Any], passage: str | None, classes: Mapping[str, str]) -> str | None:
        """Return that a question is unanswerable: without a passage in the prompt, a model would learn to say no."""
        return None if example["is_answerable"] else "unanswerable: a question asked without passages needs an answer"

    def fits(self, *, has_descriptions: bool, has_spans: bool) -> bool:
        """Return False: no file says that passages are not wanted."""
        return False

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages.

        `base` and `tuned` are asked the bare question. `base_rag` is the RAG baseline; where a row brings its own
        context, that stands in the prompts of the two with retrieval instead of what retrieval would bring.
        """
        return (
            ("base", "base", False),
            ("tuned", "tuned", False),
            ("base_rag", "base", True),
            ("tuned_rag", "tuned", True),
        )
