"""Counting in the student's tokens: with its own tokenizer and chat template, or as an encoder reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ev_platform.prompting import Messages, split_input
from ev_platform.training.base import load_tokenizer

_BLOCK = 1000


def text_counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of plain texts."""
    tokenizer = load_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        # The ids of a whole SQuAD at once would take a gigabyte.
        for start in range(0, len(texts), _BLOCK):
            block = list(texts[start : start + _BLOCK])
            encoded = tokenizer(block, add_special_tokens=False, return_attention_mask=False, verbose=False)
            counts += [len(ids) for ids in encoded["input_ids"]]
        return counts

    return count


def chats_counter(folder: Path) -> Callable[[Sequence[tuple[Messages, str]]], list[tuple[int, int]]]:
    """Return a function that counts (tokens of a chat with its answer, tokens of the answer and its end) of many chats.

    Without a chat template, as encoders have none, the first figure is what `encoder` reads: question and passages, or
    the text to label, with the special tokens around them; the answer is not read, and has no end.

    The tokenizer works through many texts at once several times as fast as one by one.
    """
    tokenizer = load_tokenizer(folder)
    count_texts = text_counter(folder)

    def count_read(chats: Sequence[tuple[Messages, str]]) -> list[tuple[int, int]]:
        inputs = [split_input(messages[-1]["content"]) for messages, _ in chats]
        passages = count_texts([passage for passage, _ in inputs])
        questions = count_texts([question for _, question in inputs])
        answers = count_texts([answer for _, answer in chats])
        single, pair = (tokenizer.num_special_tokens_to_add(pair=is_pair) for is_pair in (False, True))
        return [
            (n_passage + n_question + (pair if passage else single), n_answer)
            for (passage, _), n_passage, n_question, n_answer in zip(inputs, passages, questions, answers, strict=True)
        ]

    def count(chats: Sequence[tuple[Messages, str]]) -> list[tuple[int, int]]:
        texts = []
        for messages, answer in chats:
            whole = [*messages, {"role": "assistant", "content": answer}]
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            texts.append(tokenizer.apply_chat_template(whole, tokenize=False))
        counts = count_texts(texts)
        return [(whole, whole - prompt) for prompt, whole in zip(counts[::2], counts[1::2], strict=True)]

    return count if tokenizer.chat_template else count_read


def chat_counter(folder: Path) -> Callable[[Messages, str], tuple[int, int]]:
    """Return a function that counts as `chats_counter` does, one chat a call."""
    count_chats = chats_counter(folder)

    def count(messages: Messages, answer: str) -> tuple[int, int]:
        return count_chats([(messages, answer)])[0]

    return count
