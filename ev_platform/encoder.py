"""The engine of encoder heads: one of the task's labels for a text, or a span of a passage.

Whatever is longer than the model's `max_length` is read in windows, in training, evaluation and serving alike, so that
nothing is cut unseen. The choice of a span and of "no answer" follows Devlin et al. 2019 (section 4.3).

What does not belong here: training the heads (`training.heads`), and models that write text (`engine`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ev_platform.decoding import Completion
from ev_platform.engine_base import check_window
from ev_platform.errors import UserError
from ev_platform.pooling import classifier_class
from ev_platform.prompting import Messages, split_input
from ev_platform.training.base import architecture_of, hide_loading_bars

HEADS = ("ForQuestionAnswering", "ForSequenceClassification")  # ends of the architectures' names
_MAX_TOKENS = 16_384  # of a prompt: it is read window by window, and others are waiting
_WINDOWS_AT_ONCE = 32
_NOT_TEXT = -1
# A fast tokenizer holds whether it truncates: of two threads, one would switch that off for the other, or both fail.
# Threads that serve tokenise beside each other, and each text takes milliseconds at most.
_TOKENISING = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How a head reads; stands as `reading` in its config.json.

    Attributes:
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens that two neighbouring windows share.
        max_answer_tokens: Longest span.
        no_answer: Said where the passages do not hold the answer.
        null_threshold: A question is not answered if "no answer" scores so much higher than the best span; None: the
            model has not been trained on unanswerable questions and always names a span.
    """

    max_length: int
    stride: int = 0
    max_answer_tokens: int = 0
    no_answer: str = ""
    null_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What the model reads at once.

    Attributes:
        inputs: Lists of numbers by the names of the model's arguments.
        starts: Where each token begins in the passages, in characters; -1 for what is none of their tokens.
        ends: Where it ends.
    """

    inputs: dict[str, list[int]]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True, slots=True)
class Span:
    """The best span of all windows of a passage.

    Attributes:
        text: As it stands in the passage; empty where there was nothing to choose from.
        score: Sum of the logits of its start and its end.
        null_score: The same of "no answer"; of the window that holds it for the least likely.
    """

    text: str
    score: float
    null_score: float


def read_windows(tokenizer: Any, text: str, reading: Reading) -> list[Window]:
    """Tokenise a user message: (question, passages), or the text alone where there are no passages.

    Raises:
        UserError: If a question with passages takes more than half of a window.
    """
    passages, question = split_input(text)
    if passages and is_too_long(tokenizer, question, reading):
        raise UserError(
            f"The question takes more than half of the {reading.max_length} tokens that the model reads at once, which "
            "leaves too little to its passages: shorten the question."
        )
    encoded = _tokenise(
        tokenizer,
        [question],
        [passages] if passages else None,
        truncation="only_second" if passages else "only_first",
        max_length=reading.max_length,
        stride=reading.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for index, offsets in enumerate(encoded["offset_mapping"]):
        is_passage = [part == 1 for part in encoded.sequence_ids(index)]
        windows.append(
            Window(
                inputs={name: encoded[name][index] for name in tokenizer.model_input_names},
                starts=[s if inside else _NOT_TEXT for (s, _), inside in zip(offsets, is_passage, strict=True)],
                ends=[e if inside else _NOT_TEXT for (_, e), inside in zip(offsets, is_passage, strict=True)],
            )
        )
    return windows


def is_too_long(tokenizer: Any, question: str, reading: Reading) -> bool:
    """Return whether a question takes more than half of a window, so that little is left to its passages."""
    return len(_tokenise(tokenizer, question, verbose=False)["input_ids"]) > reading.max_length // 2


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return how many tokens a user message has for an encoder, special tokens included, each counted once."""
    passages, question = split_input(text)
    return len(_tokenise(tokenizer, question, passages or None, verbose=False)["input_ids"])


def _tokenise(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    with _TOKENISING:
        return tokenizer(*texts, **options)


def find_spans(model: Any, tokenizer: Any, texts: Sequence[str], reading: Reading) -> list[Span]:
    """Return the best span of each user message's passages.

    Raises:
        UserError: As `read_windows`.
    """
    import torch

    best = [Span("", float("-inf"), float("inf")) for _ in texts]
    for owners, windows, output in _forward(model, tokenizer, texts, reading):
        start, end = output.start_logits.float(), output.end_logits.float()
        is_text = torch.tensor([_pad(window.starts, start.shape[1]) for window in windows]) != _NOT_TEXT
        outside = torch.where(is_text.to(start.device), 0.0, float("-inf"))
        # Of every pair (start, end) the sum, where the end comes neither before the start nor too late after it.
        pairs = (start + outside)[:, :, None] + (end + outside)[:, None, :]
        is_span = torch.ones_like(pairs[0], dtype=torch.bool).triu().tril(reading.max_answer_tokens - 1)
        scores, places = pairs.masked_fill(~is_span, float("-inf")).flatten(1).max(dim=1)
        for row, (owner, window) in enumerate(zip(owners, windows, strict=True)):
            null_at = window.inputs["input_ids"].index(tokenizer.cls_token_id)
            null_score = min(best[owner].null_score, float(start[row, null_at] + end[row, null_at]))
            text, score = best[owner].text, best[owner].score
            if float(scores[row]) > score:
                first, last = divmod(int(places[row]), start.shape[1])
                passages, _ = split_input(texts[owner])
                text, score = passages[window.starts[first] : window.ends[last]].strip(), float(scores[row])
            best[owner] = Span(text, score, null_score)
    return best


def find_labels(model: Any, tokenizer: Any, texts: Sequence[str], reading: Reading) -> list[str]:
    """Return the likeliest label of each user message; a longer text's windows vote by their number of tokens."""
    votes: list[Any] = [0.0] * len(texts)
    for owners, windows, output in _forward(model, tokenizer, texts, reading):
        for owner, window, logits in zip(owners, windows, output.logits.float().cpu(), strict=True):
            votes[owner] = votes[owner] + logits * len(window.inputs["input_ids"])
    return [model.config.id2label[int(vote.argmax())] for vote in votes]


def choose(span: Span, reading: Reading) -> str:
    """Return the answer: the span's text, or the sentence that says that there is none."""
    threshold = reading.null_threshold
    is_null = threshold is not None and span.null_score - span.score > threshold
    return reading.no_answer if is_null or not span.text else span.text


def _forward(
    model: Any, tokenizer: Any, texts: Sequence[str], reading: Reading
) -> Iterator[tuple[list[int], list[Window], Any]]:
    import torch

    read = [(owner, window) for owner, text in enumerate(texts) for window in read_windows(tokenizer, text, reading)]
    read.sort(key=lambda pair: len(pair[1].inputs["input_ids"]))  # little padding
    for first in range(0, len(read), _WINDOWS_AT_ONCE):
        part = read[first : first + _WINDOWS_AT_ONCE]
        batch = tokenizer.pad([window.inputs for _, window in part], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            output = model(**batch)
        yield [owner for owner, _ in part], [window for _, window in part], output


def _pad(places: list[int], n: int) -> list[int]:
    return places + [_NOT_TEXT] * (n - len(places))


class EncoderEngine:
    """Runs a transformers directory with a head for labels or for spans, which `training.heads` trained.

    Its prompts are user messages: an encoder reads no system message. Answers are chosen, not written, so they repeat
    exactly whatever temperature and seed are.
    """

    window = _MAX_TOKENS

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

        hide_loading_bars()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._is_extractive = str(architecture_of(folder)).endswith("ForQuestionAnswering")
        config: Any = AutoConfig.from_pretrained(folder)
        kind = AutoModelForQuestionAnswering if self._is_extractive else classifier_class(config.model_type)
        model: Any = kind.from_pretrained(folder, dtype=torch.float32)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._reading = Reading(**self._model.config.reading)

    def render(self, messages: Messages) -> str:
        """Return the user message of a chat."""
        return next(message["content"] for message in reversed(messages) if message["role"] == "user")

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a user message, special tokens included."""
        return count_tokens(self._tokenizer, text)

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Answer user messages in one batch.

        Args:
            prompts: User messages.
            max_new_tokens: A span is not longer; a label and "no answer" are not cut.
            temperature: Without effect.
            seed: Without effect.

        Raises:
            UserError: If a prompt has more than `window` tokens, or its question leaves no room for its passages.
        """
        started = time.perf_counter()
        counts = [self.count_tokens(prompt) for prompt in prompts]
        check_window(max(counts, default=0), 0, self.window)
        answers = self._spans(prompts, max_new_tokens) if self._is_extractive else self._labels(prompts)
        latency_ms = (time.perf_counter() - started) * 1000  # all of them have waited for the last one
        return [
            Completion(
                text=answer,
                n_prompt_tokens=n_prompt_tokens,
                n_completion_tokens=len(_tokenise(self._tokenizer, answer, add_special_tokens=False)["input_ids"]),
                latency_ms=latency_ms,
                finish_reason="stop",
            )
            for answer, n_prompt_tokens in zip(answers, counts, strict=True)
        ]

    def _labels(self, prompts: Sequence[str]) -> list[str]:
        return find_labels(self._model, self._tokenizer, prompts, self._reading)

    def _spans(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        reading = replace(self._reading, max_answer_tokens=min(self._reading.max_answer_tokens, max_new_tokens))
        # A question without passages has nothing to be answered from.
        has_passages = [bool(split_input(prompt)[0].strip()) for prompt in prompts]
        asked = [prompt for prompt, has in zip(prompts, has_passages, strict=True) if has]
        found = iter(find_spans(self._model, self._tokenizer, asked, reading))
        return [choose(next(found), reading) if has else reading.no_answer for has in has_passages]
