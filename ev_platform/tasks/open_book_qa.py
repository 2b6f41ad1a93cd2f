"""Open-book question answering: the prompt holds retrieved passages, the answer is short free text."""

from __future__ import annotations

from collections.abc import Sequence

from ev_platform.prompting import Messages, build_messages


class OpenBookQA:
    """Questions answered from passages."""

    name = "open_book_qa"

    def prompt(self, description: str, question: str, contexts: Sequence[str]) -> Messages:
        """Return the chat that asks a question over passages."""
        return build_messages(description, question, contexts)

    def systems(self) -> tuple[tuple[str, str, bool], ...]:
        """Return the evaluated systems: name, which model answers, whether retrieval supplies passages."""
        return (
            ("base", "base", False),
            ("tuned", "tuned", False),
            ("base_rag", "base", True),
            ("tuned_rag", "tuned", True),
        )
