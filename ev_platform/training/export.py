"""From adapter to what is served: merged weights, and their CTranslate2 export or the encoder's head as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ev_platform.encoder import HEADS
from ev_platform.errors import UserError
from ev_platform.pooling import classifier_class
from ev_platform.training.base import architecture_of, hide_loading_bars, load_tokenizer
from ev_platform.training.heads import reading_of, with_head
from ev_platform.training.packages import write_ctranslate2
from ev_platform.training.recipes import Recipe


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Add an adapter to its base model's weights and save the sum, with the tokenizer it was trained with.

    Args:
        base: Model directory; it is read in full precision, also where training had quantised it.
        adapter: PEFT directory; where all weights were trained, the model directory itself, which is copied.
        out: Empty folder.
    """
    import torch
    from peft import PeftModel
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForQuestionAnswering,
        logging,
    )

    file = adapter / "adapter_config.json"
    if not file.exists():
        shutil.copytree(adapter, out, dirs_exist_ok=True)
        return
    hide_loading_bars()
    task_type = json.loads(file.read_text())["task_type"]
    # The config of an encoder's head holds its labels and how it reads, which the base's does not.
    config: Any = AutoConfig.from_pretrained(base if task_type == "CAUSAL_LM" else adapter)
    kinds: dict[str, Any] = {
        "SEQ_CLS": classifier_class(config.model_type),
        "QUESTION_ANS": AutoModelForQuestionAnswering,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the head's weights are missing from the base: the adapter brings them
    try:
        kind = kinds.get(task_type, AutoModelForCausalLM)
        model: Any = kind.from_pretrained(base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    finally:
        logging.set_verbosity(verbosity)
    merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)
    load_tokenizer(adapter).save_pretrained(out)


def export_serving_model(model: Path, out: Path, recipe: Recipe, labels: tuple[str, ...], no_answer: str) -> str:
    """Write what the engine loads.

    That is a CTranslate2 int8 export; the model itself where its architecture has none, as encoders' heads. An encoder
    without a head, which is a base model before training, gets the one that training begins with.

    Args:
        model: Model directory.
        out: Empty folder.
        recipe: Says which head, how it reads, and the seed of its first weights.
        labels: Classes of the task; empty where it has none.
        no_answer: What the task answers to a question that its passage does not answer.

    Returns:
        `ctranslate2-int8` or `transformers`.
    """
    hide_loading_bars()
    if recipe.head != "causal":
        if _has_reading(model):
            shutil.copytree(model, out, dirs_exist_ok=True)
        else:
            untrained, _ = with_head(model, recipe, labels, reading_of(recipe, no_answer))
            untrained.save_pretrained(out)
            load_tokenizer(model).save_pretrained(out)
        return "transformers"
    try:
        write_ctranslate2(model, out)
    except UserError:  # its architecture has no converter
        shutil.copytree(model, out, dirs_exist_ok=True)
        return "transformers"
    return "ctranslate2-int8"


def _has_reading(model: Path) -> bool:
    # A base model from the hub may have a head of its own: it is not ours, and its labels are others.
    is_head = (architecture_of(model) or "").endswith(HEADS)
    return is_head and "reading" in json.loads((model / "config.json").read_text())
