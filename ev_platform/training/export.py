"""From adapter to what is served: merged weights, and their CTranslate2 export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ev_platform.training.base import hide_loading_bars, load_tokenizer

# What the engine needs beside the weights.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Add an adapter to its base model's weights and save the sum, with the tokenizer it was trained with.

    Args:
        base: Model directory; it is read in full precision, also where training had quantised it.
        adapter: PEFT directory.
        out: Empty folder.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    hide_loading_bars()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)
    load_tokenizer(adapter).save_pretrained(out)


def export_serving_model(model: Path, out: Path) -> str:
    """Write what the engine loads: a CTranslate2 int8 export, or the model itself where its architecture has none.

    Args:
        model: Model directory.
        out: Empty folder.

    Returns:
        `ctranslate2-int8` or `transformers`.
    """
    from ctranslate2.converters import TransformersConverter

    hide_loading_bars()
    config = json.loads((model / "config.json").read_text())
    try:
        # The folder is the context manager's, already there: the converter may replace it.
        TransformersConverter(str(model)).convert(str(out), quantization="int8", force=True)
    except ValueError as error:
        if "No conversion is registered" not in str(error):
            raise
        shutil.copytree(model, out, dirs_exist_ok=True)
        return "transformers"
    for name in _TOKENIZER_FILES:
        if (model / name).exists():
            shutil.copy2(model / name, out / name)
    (out / "window.txt").write_text(str(config["max_position_embeddings"]))
    return "ctranslate2-int8"
