"""What an engine is, and what all those have in common that write text: encoding, batches, and who runs beside whom.

What does not belong here: the models that write (`engine`), encoders (`encoder`), and the text of an answer under way
(`decoding`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ev_platform.decoding import Completion, Draft, Prompt
from ev_platform.errors import UserError
from ev_platform.prompting import Messages


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text.

    Attributes:
        nll: Mean negative log-likelihood of a token given those before it, in nats; the first token is given.
        n_tokens: Tokens that the mean is of.
    """

    nll: float
    n_tokens: int


class Engine(Protocol):
    """Renders chats and completes them."""

    window: int

    def render(self, messages: Messages) -> str:
        """Return the prompt text of a chat, ending where the answer begins."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a rendered prompt."""
        ...

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Complete rendered prompts, each as it would be alone; temperature 0 is greedy and repeats exactly.

        Sampling repeats with its seed on transformers only: CTranslate2 seeds its workers once, when they start.
        """
        ...


@runtime_checkable
class Writer(Engine, Protocol):
    """An engine whose model writes text, so that it can be asked how likely a text is."""

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands, without a chat around it.

        Raises:
            UserError: If a text has fewer than two tokens or more than `window`.
        """
        ...


@runtime_checkable
class BatchWriter(Writer, Protocol):
    """An engine that writes batches token by token, so that each answer can be followed and ended by itself.

    Attributes:
        n_workers: Batches that it writes at once; more wait for their turn.
    """

    n_workers: int

    def write(self, batch: Sequence[Prompt], *, temperature: float = 0.0, seed: int = 0) -> list[Completion]:
        """Complete rendered prompts of equal token length in one batch.

        Prompts of other lengths do not belong together: the rest of the longer ones would be read token by token,
        which is slow and gives other answers than they have alone.

        Raises:
            ValueError: If their lengths differ.
            UserError: If prompt and answer exceed the window.
        """
        ...


# Eight prompts at once read and write as fast as sixteen on two cores, but a cache of 16 long prompts takes a gigabyte.
_LARGEST_BATCH = 16


class WriterBase(ABC):
    """What engines have in common that write text token by token; see `BatchWriter`.

    Args:
        folder: Holds the tokenizer.
    """

    window: int
    n_workers: int

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.end_id: int = self._tokenizer.eos_token_id

    def render(self, messages: Messages) -> str:
        """Return the prompt text of a chat, ending where the answer begins."""
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a rendered prompt."""
        return len(self._encode(text))

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Complete rendered prompts, those of equal length in batches, as many batches at once as there are workers."""
        started = time.perf_counter()
        encoded = [self._encode(prompt) for prompt in prompts]
        check_window(max(map(len, encoded), default=0), max_new_tokens, self.window)
        drafts = [self._draft(Prompt(p, max_new_tokens), ids, started) for p, ids in zip(prompts, encoded, strict=True)]
        batches = [
            ([encoded[place] for place in batch], [drafts[place] for place in batch])
            for batch in batches_of([len(ids) for ids in encoded], self.n_workers)
        ]
        if len(batches) == 1 or self.n_workers == 1:
            for batch in batches:
                self._write(*batch, max_new_tokens, temperature, seed)
        else:
            with ThreadPoolExecutor(self.n_workers) as threads:
                running = [threads.submit(self._write, *batch, max_new_tokens, temperature, seed) for batch in batches]
            for one in running:
                one.result()
        return [_complete(draft) for draft in drafts]

    def write(self, batch: Sequence[Prompt], *, temperature: float = 0.0, seed: int = 0) -> list[Completion]:
        """Complete rendered prompts of equal token length in one batch."""
        started = time.perf_counter()
        encoded = [self._encode(prompt.text) for prompt in batch]
        if len(set(map(len, encoded))) > 1:
            raise ValueError("The prompts of a batch must have equally many tokens.")
        longest = max(prompt.max_new_tokens for prompt in batch)
        check_window(len(encoded[0]), longest, self.window)
        drafts = [self._draft(prompt, ids, started) for prompt, ids in zip(batch, encoded, strict=True)]
        self._write(encoded, drafts, longest, temperature, seed)
        return [_complete(draft) for draft in drafts]

    @abstractmethod
    def _write(
        self, encoded: Sequence[list[int]], drafts: Sequence[Draft], max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        """Add tokens to each draft until it is complete."""

    def _draft(self, prompt: Prompt, ids: Sequence[int], started: float) -> Draft:
        return Draft(prompt, len(ids), self._tokenizer, self.end_id, started)

    def _encode(self, text: str) -> list[int]:
        # The rendered template already holds every special token.
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def batches_of(lengths: Sequence[int], n_workers: int) -> list[list[int]]:
    """Spread prompts over batches of equal length, the longest first, so that no worker is left with the long ones.

    Args:
        lengths: Tokens of each prompt.
        n_workers: Batches that run at once; no batch holds more than its share of all prompts.

    Returns:
        Places in `lengths`.
    """
    share = min(_LARGEST_BATCH, ceil(len(lengths) / n_workers))
    equal: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        equal.setdefault(length, []).append(place)
    return [
        places[first : first + share]
        for _, places in sorted(equal.items(), reverse=True)
        for first in range(0, len(places), share)
    ]


def _complete(draft: Draft) -> Completion:
    if draft.completion is None:
        raise RuntimeError("The model stopped before its answer was complete.")
    return draft.completion


def check_window(longest: int, max_new_tokens: int, window: int) -> None:
    """Check that a call's longest prompt leaves room for the answer.

    Raises:
        UserError: If it does not.
    """
    if longest + max_new_tokens > window:
        raise UserError(
            f"A prompt of {longest} tokens and {max_new_tokens} for the answer exceed the model's window of "
            f"{window}: shorten the question or lower retrieval.top_k."
        )


def check_texts(encoded: Sequence[Sequence[int]], window: int) -> None:
    """Check that texts can be scored.

    Raises:
        UserError: If one has fewer than two tokens, or more than the window.
    """
    for ids in encoded:
        if not 2 <= len(ids) <= window:
            raise UserError(
                f"A text of {len(ids)} tokens cannot be scored: it must have at least 2, and at most the {window} of "
                "the model's window."
            )


def read_window(folder: Path) -> int:
    """Return the window of a CTranslate2 export, in tokens."""
    # Written by the export, because CTranslate2's own config.json does not hold it.
    return int((folder / "window.txt").read_text())
