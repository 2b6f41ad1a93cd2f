"""Classification: a text in, one of a few labels out. Unlabelled texts are labelled; there is no corpus."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ev_platform.prompting import Messages, build_messages


class Classification:
    """Texts and their labels."""

    name = "classification"
    has_corpus = False
    has_classes = True
    trains_with_passages = False
    allows_unanswerable = False
    answer_rule = "The answer is the name of one of the classes and nothing else."
    primary_metric = "exact_match"
    heads: tuple[str, ...] = ("causal", "classification")

    def instructions(self, description: str, classes: Mapping[str, str]) -> str:
        """Return the task in words, then the classes, one a line, with what each means where that is said."""
        lines = [f"- {label}: {meaning}" if meaning else f"- {label}" for label, meaning in classes.items()]
        return "\n".join([description, "Answer with one of these labels and nothing else:", *lines])

    def prompt(self, instructions: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that shows a text."""
        return build_messages(instructions, question, contexts)

    def flaw(self, example: Mapping[str, Any], passage: str | None, classes: Mapping[str, str]) -> str | None:
        """Return that the label is not a class, with the class whose name is nearest."""
        answer = example["answer"]
        if not classes or answer in classes:
            return None
        by_case = {label.casefold(): label for label in classes}
        (nearest,) = difflib.get_close_matches(answer.casefold(), by_case, n=1, cutoff=0.0)
        return f"unknown_label: {answer!r} is not a class; the nearest is {by_case[nearest]!r}"

    def fits(self, *, has_descriptions: bool, has_spans: bool) -> bool:
        """Return whether the job description says what labels mean."""
        return has_descriptions

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages.

        None retrieves: there is no corpus. A row's own context has no place in the prompt.
        """
        return (("base", "base", False), ("tuned", "tuned", False))
