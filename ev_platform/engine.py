"""Answers to prompts, the same in evaluation and in serving.

`CTranslate2Engine` runs the int8 export on the CPU (about 3.5 times transformers' tokens per second there);
`TransformersEngine` runs any model directory that CTranslate2 cannot convert. Both render prompts with the chat
template that is saved in the model's own folder.

What does not belong here: encoders, which write no text (`encoder`), the text of an answer under way (`decoding`), and
who waits for which batch (`serving.batching`).
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from math import ceil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ev_platform.decoding import Completion, Draft, Prompt
from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.training.base import architecture_of


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
# Each keeps its state in memory for good; a model is served with one.
_MOST_PREFIXES = 4


class _Base(ABC):
    window: int
    n_workers: int

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.end_id: int = self._tokenizer.eos_token_id

    def render(self, messages: Messages) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def count_tokens(self, text: str) -> int:
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


# With less than this to read for a token, two threads wait for each other longer than they share work: the bundled
# model (0.14 GB) writes half as many tokens a second again with one (`make bench`).
_SMALL_BYTES = 500_000_000
_MOST_THREADS = 4  # of one generation; CTranslate2's own default


class CTranslate2Engine(_Base):
    """Runs a CTranslate2 export.

    What a chat begins with, up to the end of its system message, is read once and remembered.

    Args:
        folder: Holds the export and the tokenizer.
        threads: CPU threads of one generation; by default one for a small model, else up to four.
    """

    def __init__(self, folder: Path, threads: int | None = None):
        import ctranslate2

        super().__init__(folder)
        self.window: int = _read_window(folder)
        n_cores = _count_cores()
        if threads is None:
            is_small = (folder / "model.bin").stat().st_size < _SMALL_BYTES
            threads = 1 if is_small else min(_MOST_THREADS, n_cores)
        # A GPU is full with one batch.
        self.n_workers = 1 if ctranslate2.get_cuda_device_count() else max(1, n_cores // threads)
        self._generator = ctranslate2.Generator(
            str(folder), device="auto", inter_threads=self.n_workers, intra_threads=threads
        )
        self._prefixes: dict[str, list[int]] = {}

    def render(self, messages: Messages) -> str:
        """Return the prompt text of a chat, ending where the answer begins."""
        if messages and messages[0]["role"] == "system":
            self._remember(messages[0])
        return super().render(messages)

    def _remember(self, system: dict[str, str]) -> None:
        """Note the tokens that every chat with this system message begins with."""
        if system["content"] in self._prefixes or len(self._prefixes) == _MOST_PREFIXES:
            return
        one, other = (super(CTranslate2Engine, self).render([system, {"role": "user", "content": c}]) for c in "1x")
        shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
        # The last two tokens may be others where another word follows.
        self._prefixes[system["content"]] = self._encode(shared)[:-2]

    def _write(
        self, encoded: Sequence[list[int]], drafts: Sequence[Draft], max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        import ctranslate2

        if temperature > 0:
            ctranslate2.set_random_seed(seed)
        prefix = self._prefix(encoded)
        faults: list[BaseException] = []

        def add(step: Any) -> bool:
            # An exception that leaves a callback ends the process.
            try:
                return bool(faults) or drafts[step.batch_id].add(step.token_id)
            except BaseException as error:
                faults.append(error)
                return True

        self._generator.generate_batch(
            [self._tokenizer.convert_ids_to_tokens(ids[len(prefix) :]) for ids in encoded],
            static_prompt=self._tokenizer.convert_ids_to_tokens(prefix) or None,
            max_length=max_new_tokens,
            sampling_topk=0 if temperature > 0 else 1,
            sampling_temperature=temperature if temperature > 0 else 1.0,
            include_prompt_in_result=False,
            return_end_token=True,
            end_token=[self.end_id],
            callback=add,
        )
        if faults:
            raise faults.pop()  # left in the list, it and this frame would keep each other, and the weights, alive

    def _prefix(self, encoded: Sequence[list[int]]) -> list[int]:
        """Return the remembered tokens that all prompts begin with, of which each has more."""
        for prefix in list(self._prefixes.values()):
            n = len(prefix)
            if all(len(ids) > n and ids[:n] == prefix for ids in encoded):
                return prefix
        return []

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands, all in one batch."""
        encoded = [self._encode(text) for text in texts]
        _check_texts(encoded, self.window)
        results = self._generator.score_batch(
            [self._tokenizer.convert_ids_to_tokens(ids) for ids in encoded], max_input_length=0
        )
        return [Likelihood(-sum(r.log_probs) / len(r.log_probs), len(r.log_probs)) for r in results]


def _count_cores() -> int:
    """Return the cores of this process: those it was promised (Ray says it so), or those it may run on."""
    promised = os.environ.get("OMP_NUM_THREADS", "")
    if promised.isdecimal() and int(promised):
        return int(promised)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TransformersEngine(_Base):
    """Runs a transformers causal language model directory."""

    n_workers = 1

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM

        super().__init__(folder)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model = model.to(self._device).eval()
        self.window: int = self._model.config.max_position_embeddings

    def _write(
        self, encoded: Sequence[list[int]], drafts: Sequence[Draft], max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        import torch

        # Sampled together, an answer would depend on its company, and so it would where numbers are coarse.
        is_alone = temperature > 0 or self._model.dtype != torch.float32
        for part in [[n] for n in range(len(drafts))] if is_alone else [range(len(drafts))]:
            self._write_part([encoded[n] for n in part], [drafts[n] for n in part], max_new_tokens, temperature, seed)

    def _write_part(
        self, encoded: list[list[int]], drafts: list[Draft], max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        import torch

        torch.manual_seed(seed)
        tokens = torch.tensor(encoded, device=self._device)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

        def add(ids: Any, _: Any, **__: Any) -> Any:
            newest = ids[:, -1].tolist()
            is_over = [draft.add(token) for draft, token in zip(drafts, newest, strict=True)]
            return torch.tensor(is_over, device=ids.device)

        with torch.inference_mode():
            self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_new_tokens,
                eos_token_id=self.end_id,
                pad_token_id=self.end_id,
                stopping_criteria=[add],
                **sampling,
            )

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
