"""Whether an export says what the model it was made from says.

What does not belong here: making exports (`export`, `packages`), and what to think of a rate (the asset checks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ev_platform.engine import load_engine
from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.training.base import hide_loading_bars, is_encoder, load_tokenizer

# Answer tokens of a reference that are compared beside the first.
N_FOLLOWING = 8
# No bound for an encoder's span: how long that may be, the head says itself.
_NO_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two forms of one model say the same.

    Attributes:
        n: Prompts.
        rate: Share of them whose answers begin with the same token; of an encoder, whose answers are the same.
        n_tokens: Compared tokens, where prompts bring references; else as `n`.
        token_rate: Share of them that are the same, each after the reference's tokens before it.
    """

    n: int
    rate: float
    n_tokens: int
    token_rate: float


def agreement(merged: Path, exported: Path, prompts: Sequence[Messages]) -> Agreement:
    """Ask a model and its export the same, each through its own tokenizer and chat template.

    The model computes in float32; the export as it is loaded for serving. An int8 export differs where two tokens are
    nearly as likely as each other. Prompts must not be test rows: what is exported would be chosen by them.

    Args:
        merged: Model directory.
        exported: CTranslate2 export, folder with a `*.gguf`, or model directory.
        prompts: Chats; an assistant's message at the end is the reference, whose tokens are compared too.

    Raises:
        UserError: If there are no prompts.
    """
    if not prompts:
        raise UserError("An export is compared on prompts of the validation or training set, but both are empty.")
    if is_encoder(merged):
        same = [[a == b] for a, b in zip(_answers(merged, prompts), _answers(exported, prompts), strict=True)]
    else:
        wanted, got = _top_tokens(merged, prompts, is_reference=True), _top_tokens(exported, prompts)
        same = [_compare(a, b) for a, b in zip(wanted, got, strict=True)]
    tokens = [is_same for row in same for is_same in row]
    return Agreement(len(same), sum(row[0] for row in same) / len(same), len(tokens), sum(tokens) / len(tokens))


def _answers(folder: Path, prompts: Sequence[Messages]) -> list[str]:
    engine = load_engine(folder)
    asked = [messages[:-1] if messages[-1]["role"] == "assistant" else messages for messages in prompts]
    return [
        it.text for it in engine.generate([engine.render(messages) for messages in asked], max_new_tokens=_NO_LIMIT)
    ]


Top = tuple[list[int], list[int]]  # ids of the prompt with its reference, most likely ids from the answer's start on


def _compare(wanted: Top, got: Top) -> list[bool]:
    if wanted[0] != got[0]:
        # Another tokenizer or template: positions mean nothing any more.
        return [False] * len(wanted[1])
    return [a == b for a, b in zip(wanted[1], got[1], strict=True)]


def _top_tokens(folder: Path, prompts: Sequence[Messages], *, is_reference: bool = False) -> list[Top]:
    tokenizer, compute = _load(folder, is_reference=is_reference)
    tops = []
    for messages in prompts:
        has_answer = messages[-1]["role"] == "assistant"
        asked = messages[:-1] if has_answer else messages
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"] if has_answer else []
        answer = answer[:N_FOLLOWING]
        tops.append((ids + answer, compute(ids + answer, 1 + len(answer))))
    return tops


Compute = Callable[[list[int], int], list[int]]


def _load(folder: Path, *, is_reference: bool) -> tuple[Any, Compute]:
    """Return the tokenizer of a folder, and what gives the most likely ids at the last n positions of ids."""
    hide_loading_bars()
    files = sorted(folder.glob("*.gguf"))
    if files:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name), _transformers(folder, files[0].name)
    if (folder / "model.bin").exists():
        tokenizer = load_tokenizer(folder)
        return tokenizer, _ctranslate2(folder, tokenizer)
    return load_tokenizer(folder), _transformers(folder, dtype="float32" if is_reference else "auto")


def _transformers(folder: Path, gguf_file: str | None = None, dtype: str = "float32") -> Compute:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype)
    model = model.to(device).eval()

    def compute(ids: list[int], n: int) -> list[int]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=device), logits_to_keep=n).logits
        return logits[0, -n:].argmax(dim=-1).tolist()

    return compute


def _ctranslate2(folder: Path, tokenizer: Any) -> Compute:
    import ctranslate2
    import numpy as np

    from ev_platform.engine import load_generator

    generator = load_generator(folder)

    def compute(ids: list[int], n: int) -> list[int]:
        logits = generator.forward_batch([tokenizer.convert_ids_to_tokens(ids)])
        on_cpu = logits.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
        return np.array(on_cpu)[0, -n:].argmax(axis=-1).tolist()

    return compute
