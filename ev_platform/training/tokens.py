"""Counting in the student's tokens, with its own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ev_platform.prompting import Messages
from ev_platform.training.base import load_tokenizer


def text_counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of plain texts."""
    tokenizer = load_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count


def chat_counter(folder: Path) -> Callable[[Messages, str], tuple[int, int]]:
    """Return a function that counts (tokens of a chat with its answer, tokens of the answer and its end)."""
    tokenizer = load_tokenizer(folder)
    count_texts = text_counter(folder)

    def count(messages: Messages, answer: str) -> tuple[int, int]:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        n_prompt, n_whole = count_texts([prompt, whole])
        return n_whole, n_whole - n_prompt

    return count
