"""From the tokens that an engine writes, one by one, to the text that may be shown.

What belongs here: what is asked for one answer (`Prompt`), and the answer while it is being written (`Draft`): its
text so far, where it ends, what of it can no longer change. What does not: the models that write (`engine`), and which
prompts are written together (`serving.batching`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for the first bytes of a character


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer.

    Attributes:
        text: Without special tokens, stripped.
        n_prompt_tokens: Length of the prompt.
        n_completion_tokens: Generated tokens, the end token not counted.
        latency_ms: From the begin of the call that made it until it was complete. Where a call has more prompts than
            run at once, that includes the wait for its turn.
        finish_reason: `stop` at the end token or at a stop text, `length` at the limit, `cancelled`.
        first_token_ms: From the call's begin to its first token; None where answers come whole.
    """

    text: str
    n_prompt_tokens: int
    n_completion_tokens: int
    latency_ms: float
    finish_reason: str
    first_token_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked for one answer. The calls come in whatever thread generates, and must be short.

    Attributes:
        text: Rendered.
        max_new_tokens: Longest answer.
        stop: Texts that end the answer; neither they nor what follows them is part of it.
        on_text: Called with each new piece; the pieces joined are the answer's text.
        on_end: Called with the answer as soon as it is complete, while others of its batch may go on.
        is_cancelled: Asked at every token whether to end it there.
    """

    text: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    on_text: Callable[[str], None] | None = None
    on_end: Callable[[Completion], None] | None = None
    is_cancelled: Callable[[], bool] | None = None


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first place where a stop text begins, and whether there is one."""
    places = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Draft:
    """An answer while it is being written.

    Args:
        prompt: What was asked.
        n_prompt_tokens: Its length.
        tokenizer: Of transformers.
        end_id: Token that ends an answer.
        started: `time.perf_counter()` at the begin of the call.

    Attributes:
        completion: Once it is complete; None before.
    """

    def __init__(self, prompt: Prompt, n_prompt_tokens: int, tokenizer: Any, end_id: int, started: float):
        self.completion: Completion | None = None
        self._prompt = prompt
        self._n_prompt_tokens = n_prompt_tokens
        self._tokenizer = tokenizer
        self._end_id = end_id
        self._started = started
        self._first_token_ms: float | None = None
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token_id: int) -> bool:
        """Take the next token; return whether the answer is complete."""
        if self.completion is not None:
            return True
        if self._first_token_ms is None:
            self._first_token_ms = (time.perf_counter() - self._started) * 1000
        prompt = self._prompt
        if prompt.is_cancelled is not None and prompt.is_cancelled():
            self.end("cancelled")
        elif token_id == self._end_id:
            self.end("stop")
        else:
            self._ids.append(token_id)
            is_cut = False
            if prompt.stop or prompt.on_text:
                text = self._text()
                is_cut = cut_at(text, prompt.stop)[1]
                if not is_cut:
                    self._show(self._settled(text))
            if is_cut or len(self._ids) == prompt.max_new_tokens:
                self.end("stop" if is_cut else "length")
        return self.completion is not None

    def end(self, reason: str) -> Completion:
        """Complete the answer as it is."""
        text = cut_at(self._text(), self._prompt.stop)[0].strip()
        latency_ms = (time.perf_counter() - self._started) * 1000
        self.completion = Completion(
            text, self._n_prompt_tokens, len(self._ids), latency_ms, reason, self._first_token_ms
        )
        if reason != "cancelled":
            self._show(text)
        if self._prompt.on_end is not None:
            self._prompt.on_end(self.completion)
        return self.completion

    def _text(self) -> str:
        # Whole each time, because a token's text depends on those around it. `clean_up_tokenization_spaces` would
        # change what has been shown already.
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _settled(self, text: str) -> str:
        """Return what no later token can change or take back."""
        text = text.rstrip(_UNFINISHED)
        held = max((_n_begun(text, one) for one in self._prompt.stop), default=0)
        return text[: len(text) - held].strip()

    def _show(self, settled: str) -> None:
        if self._prompt.on_text is not None and len(settled) > len(self._shown):
            piece, self._shown = settled[len(self._shown) :], settled
            self._prompt.on_text(piece)


def _n_begun(text: str, stop: str) -> int:
    """Return how many of a text's last characters may be the begin of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
