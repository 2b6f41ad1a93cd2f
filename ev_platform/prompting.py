"""The one prompt template, shared by training, evaluation and serving.

A model is trained on, evaluated with and served through `build_messages`; its fingerprint is stored with every model
version, so that a template changed later cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

Messages = list[dict[str, str]]


_QUESTION = "Question: "


def passage_text(heading_path: str, text: str) -> str:
    """Return a chunk as a model and an index read it: its headings, then its text."""
    return f"{heading_path}\n{text}" if heading_path else text


def build_messages(description: str, question: str, contexts: Sequence[str]) -> Messages:
    """Build the chat of one question.

    Args:
        description: The task in words; becomes the system message.
        question: The user's question.
        contexts: Passages to answer from, best first; empty for closed-book answers.

    Returns:
        A system and a user message; training appends the answer as the assistant's.
    """
    context = "".join(f"{passage}\n\n" for passage in contexts)
    return [
        {"role": "system", "content": description},
        {"role": "user", "content": f"{context}{_QUESTION}{question}"},
    ]


def split_input(text: str) -> tuple[str, str]:
    """Return (passages, question) of a user message that `build_messages` made; an encoder reads them as two texts."""
    passages, mark, question = text.rpartition(f"\n\n{_QUESTION}")
    return (passages, question) if mark else ("", text.removeprefix(_QUESTION))
