"""Answers to prompts, the same in evaluation and in serving.

`CTranslate2Engine` runs the int8 export on the CPU (about 3.5 times transformers' tokens per second there);
`TransformersEngine` runs any model directory that CTranslate2 cannot convert. Both render prompts with the chat
template that is saved in the model's own folder.

What does not belong here: encoders, which write no text (`encoder`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.training.base import architecture_of


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer.

    Attributes:
        text: Without special tokens, stripped.
        n_prompt_tokens: Length of the prompt.
        n_completion_tokens: Generated tokens, the end token not counted.
        latency_ms: Wall time of the call that made it, divided by the prompts in the call.
        finish_reason: `stop` at the end token, `length` at the limit.
        first_token_ms: From the call's begin to its first token, where the call was timed and tokens come one by one.
    """

    text: str
    n_prompt_tokens: int
    n_completion_tokens: int
    latency_ms: float
    finish_reason: str
    first_token_ms: float | None = None


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
        """Complete rendered prompts; temperature 0 is greedy and repeats exactly.

        Sampling repeats with its seed on transformers only: CTranslate2 seeds its workers once, when they start.
        """
        ...


@runtime_checkable
class Writer(Engine, Protocol):
    """An engine whose model writes text token by token, so that it can be timed and asked how likely a text is."""

    def generate_timed(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Complete rendered prompts greedily like `generate`, and say when each one's first token came.

        It is slower by a call into Python for every token, which others who hold the interpreter may delay.
        """
        ...

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands, without a chat around it.

        Raises:
            UserError: If a text has fewer than two tokens or more than `window`.
        """
        ...


class _Base(ABC):
    window: int

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.end_id: int = self._tokenizer.eos_token_id

    def render(self, messages: Messages) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def count_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def generate_timed(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Completion]:
        """Complete rendered prompts greedily, and say when each one's first token came."""
        return self._generate(prompts, max_new_tokens, 0.0, is_timed=True)

    @abstractmethod
    def _generate(
        self, prompts: Sequence[str], max_new_tokens: int, temperature: float, *, is_timed: bool
    ) -> list[Completion]: ...

    def _encode_prompts(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        encoded = [self._encode(prompt) for prompt in prompts]
        check_window(max(map(len, encoded), default=0), max_new_tokens, self.window)
        return encoded

    def _encode(self, text: str) -> list[int]:
        # The rendered template already holds every special token.
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _completion(
        self, prompt_ids: list[int], ids: list[int], latency_ms: float, first_token_ms: float | None = None
    ) -> Completion:
        is_ended = self.end_id in ids
        answer = ids[: ids.index(self.end_id)] if is_ended else ids
        text = self._tokenizer.decode(answer, skip_special_tokens=True).strip()
        reason = "stop" if is_ended else "length"
        return Completion(text, len(prompt_ids), len(answer), latency_ms, reason, first_token_ms)


# With less than this to read for a token, two threads wait for each other longer than they share work: the bundled
# model (0.14 GB) writes half as many tokens a second again with one (`make bench`).
_SMALL_BYTES = 500_000_000


class CTranslate2Engine(_Base):
    """Runs a CTranslate2 export.

    Args:
        folder: Holds the export and the tokenizer.
        threads: CPU threads of one generation; by default one for a small model, else as many as CTranslate2 chooses.
    """

    def __init__(self, folder: Path, threads: int | None = None):
        import ctranslate2

        super().__init__(folder)
        self.window: int = _read_window(folder)
        if threads is None:
            threads = 1 if (folder / "model.bin").stat().st_size < _SMALL_BYTES else 0
        self._generator = ctranslate2.Generator(str(folder), device="auto", intra_threads=threads)

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Complete rendered prompts in one batch."""
        import ctranslate2

        if temperature > 0:
            ctranslate2.set_random_seed(seed)
        return self._generate(prompts, max_new_tokens, temperature, is_timed=False)

    def _generate(
        self, prompts: Sequence[str], max_new_tokens: int, temperature: float, *, is_timed: bool
    ) -> list[Completion]:
        encoded = self._encode_prompts(prompts, max_new_tokens)
        first_ms: dict[int, float] = {}
        started = time.perf_counter()

        def note(step: Any) -> bool:
            first_ms.setdefault(step.batch_id, (time.perf_counter() - started) * 1000)
            return False

        results = self._generator.generate_batch(
            [self._tokenizer.convert_ids_to_tokens(ids) for ids in encoded],
            max_length=max_new_tokens,
            sampling_topk=0 if temperature > 0 else 1,
            sampling_temperature=temperature if temperature > 0 else 1.0,
            include_prompt_in_result=False,
            return_end_token=True,
            end_token=[self.end_id],
            callback=note if is_timed else None,
        )
        latency_ms = (time.perf_counter() - started) * 1000 / max(1, len(prompts))
        return [
            self._completion(ids, list(result.sequences_ids[0]), latency_ms, first_ms.get(index))
            for index, (ids, result) in enumerate(zip(encoded, results, strict=True))
        ]

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands, all in one batch."""
        encoded = [self._encode(text) for text in texts]
        _check_texts(encoded, self.window)
        results = self._generator.score_batch(
            [self._tokenizer.convert_ids_to_tokens(ids) for ids in encoded], max_input_length=0
        )
        return [Likelihood(-sum(r.log_probs) / len(r.log_probs), len(r.log_probs)) for r in results]


class TransformersEngine(_Base):
    """Runs a transformers causal language model directory."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM

        super().__init__(folder)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model = model.to(self._device).eval()
        self.window: int = self._model.config.max_position_embeddings

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Complete rendered prompts one after the other."""
        import torch

        torch.manual_seed(seed)
        return self._generate(prompts, max_new_tokens, temperature, is_timed=False)

    def _generate(
        self, prompts: Sequence[str], max_new_tokens: int, temperature: float, *, is_timed: bool
    ) -> list[Completion]:
        import torch

        encoded = self._encode_prompts(prompts, max_new_tokens)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        completions = []
        called = time.perf_counter()
        for ids in encoded:
            clock = _Clock() if is_timed else None
            started = time.perf_counter()
            with torch.inference_mode():
                output = self._model.generate(
                    torch.tensor([ids], device=self._device),
                    attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=self._device),
                    max_new_tokens=max_new_tokens,
                    eos_token_id=self.end_id,
                    pad_token_id=self.end_id,
                    streamer=clock,
                    **sampling,
                )
            latency_ms = (time.perf_counter() - started) * 1000
            first_ms = (clock.put_at[1] - called) * 1000 if clock else None
            completions.append(self._completion(ids, output[0, len(ids) :].tolist(), latency_ms, first_ms))
        return completions

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands, one after the other."""
        import torch

        encoded = [self._encode(text) for text in texts]
        _check_texts(encoded, self.window)
        likelihoods = []
        for ids in encoded:
            tokens = torch.tensor([ids], device=self._device)
            with torch.inference_mode():
                logits = self._model(tokens).logits[0, :-1].float()
            nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
            likelihoods.append(Likelihood(float(nll), len(ids) - 1))
        return likelihoods


class _Clock:
    """A streamer of transformers that notes when it was given the prompt and then each token."""

    def __init__(self) -> None:
        self.put_at: list[float] = []

    def put(self, value: Any) -> None:
        self.put_at.append(time.perf_counter())

    def end(self) -> None:
        pass


def _check_texts(encoded: Sequence[Sequence[int]], window: int) -> None:
    for ids in encoded:
        if not 2 <= len(ids) <= window:
            raise UserError(
                f"A text of {len(ids)} tokens cannot be scored: it must have at least 2, and at most the {window} of "
                "the model's window."
            )


def _read_window(folder: Path) -> int:
    # Written by the export, because CTranslate2's own config.json does not hold it.
    return int((folder / "window.txt").read_text())


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


def load_engine(folder: Path) -> Engine:
    """Load what lies in a serving folder: a CTranslate2 export (`model.bin`), an encoder's head, or a causal model."""
    from ev_platform.encoder import HEADS, EncoderEngine

    if (folder / "model.bin").exists():
        return CTranslate2Engine(folder)
    if (architecture_of(folder) or "").endswith(HEADS):
        return EncoderEngine(folder)
    return TransformersEngine(folder)
