"""Answers to prompts, the same in evaluation and in serving.

`CTranslate2Engine` runs the int8 export on the CPU (about 3.5 times transformers' tokens per second there);
`TransformersEngine` runs any model directory that CTranslate2 cannot convert. Both render prompts with the chat
template that is saved in the model's own folder.

What does not belong here: what engines have in common (`engine_base`), encoders, which write no text (`encoder`), the
text of an answer under way (`decoding`), and who waits for which batch (`serving.batching`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from ev_platform.decoding import Draft
from ev_platform.engine_base import Engine, Likelihood, WriterBase, check_texts, read_window
from ev_platform.prompting import Messages
from ev_platform.training.base import architecture_of

# With less than this to read for a token, two threads wait for each other longer than they share work: the bundled
# model (0.14 GB) writes half as many tokens a second again with one (`make bench`).
_SMALL_BYTES = 500_000_000
_MOST_THREADS = 4  # of one generation; CTranslate2's own default
_MOST_PREFIXES = 4  # each keeps its state in memory for good; a model is served with one


def load_generator(folder: Path, **threads: int) -> Any:
    """Load a CTranslate2 export on the best device there is.

    Args:
        folder: Holds `model.bin`.
        threads: `inter_threads` and `intra_threads`, as CTranslate2 calls them.
    """
    import ctranslate2

    load = partial(ctranslate2.Generator, str(folder), device="auto", **threads)
    # It sets OpenMP's number of threads for the thread that calls it: torch would go on there with one of two cores.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(load).result()


class CTranslate2Engine(WriterBase):
    """Runs a CTranslate2 export.

    What a chat begins with, up to the end of its system message, is read once and remembered.

    Args:
        folder: Holds the export and the tokenizer.
        threads: CPU threads of one generation; by default one for a small model, else up to four.
    """

    def __init__(self, folder: Path, threads: int | None = None):
        import ctranslate2

        super().__init__(folder)
        self.window: int = read_window(folder)
        n_cores = _count_cores()
        if threads is None:
            is_small = (folder / "model.bin").stat().st_size < _SMALL_BYTES
            threads = 1 if is_small else min(_MOST_THREADS, n_cores)
        # A GPU is full with one batch.
        self.n_workers = 1 if ctranslate2.get_cuda_device_count() else max(1, n_cores // threads)
        self._generator = load_generator(folder, inter_threads=self.n_workers, intra_threads=threads)
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
        check_texts(encoded, self.window)
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


class TransformersEngine(WriterBase):
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
        check_texts(encoded, self.window)
        likelihoods = []
        for ids in encoded:
            tokens = torch.tensor([ids], device=self._device)
            with torch.inference_mode():
                logits = self._model(tokens).logits[0, :-1].float()
            nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
            likelihoods.append(Likelihood(float(nll), len(ids) - 1))
        return likelihoods


def load_engine(folder: Path) -> Engine:
    """Load what lies in a serving folder: a CTranslate2 export (`model.bin`), an encoder's head, or a causal model."""
    from ev_platform.encoder import HEADS, EncoderEngine

    if (folder / "model.bin").exists():
        return CTranslate2Engine(folder)
    if (architecture_of(folder) or "").endswith(HEADS):
        return EncoderEngine(folder)
    return TransformersEngine(folder)
