"""What can be known of a base model without loading it: from its config.json and the headers of its weight files.

What does not belong here: fetching and loading it (`training.base`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError
from ev_platform.training.recipes.reading import nearest

_WRITERS = ("ForCausalLM", "LMHeadModel")
_ENCODER_HEADS = ("Model", "ForMaskedLM", "ForPreTraining", "ForQuestionAnswering", "ForSequenceClassification")
_ENCODER_TYPES = ("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta")
# Their positions are counted from the padding token's id on, which is 1: two of them hold no token.
_TWO_POSITIONS_LESS = ("camembert", "mpnet", "roberta", "xlm-roberta")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BaseModel:
    """What a recipe can be held against; None where it is not known.

    Attributes:
        is_encoder: Whether it reads only (BERT and the like) and takes a head, or writes text.
        n_layers: Blocks.
        window: Longest sequence, in tokens.
        layers: Names of the layers with a weight matrix, some with the path that leads to them.
    """

    is_encoder: bool | None
    n_layers: int | None
    window: int | None
    layers: frozenset[str] | None

    def lacks(self, name: str) -> bool:
        """Return whether no layer is called so, or ends so (`q_proj`, `self_attn.q_proj`), as PEFT matches names."""
        return self.layers is not None and not any(own == name or own.endswith(f".{name}") for own in self.layers)


BUNDLED = {
    "bundled:smollm2-135m-instruct": BaseModel(False, 30, 8192, frozenset(_LLAMA)),
    "bundled:all-minilm-l6-v2": BaseModel(True, 6, 512, frozenset({"query", "key", "value", "dense"})),
}


def look_at(name: str, where: str) -> BaseModel | None:
    """Return what is known of a base model; None for one that lies on the model hub.

    Args:
        name: See `Recipe.base_model`.
        where: Which file names it; begins the sentence of an error.

    Raises:
        UserError: If there is no such model, or a folder holds none.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    if name.startswith("bundled:"):
        hint = nearest(name, BUNDLED)
        raise UserError(f"{where}: base_model {name} is not bundled{hint}; choose one of {', '.join(BUNDLED)}.")
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # too long, or the home of nobody
        raise UserError(f"{where}: base_model {name[:60]!r} cannot be a path: name a model folder.") from error
    if is_folder:
        return look_into(folder, where)
    if is_file:
        raise UserError(f"{where}: base_model {name} is a file: name the folder with config.json and *.safetensors.")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return None
    raise UserError(
        f"{where}: base_model {name!r} does not exist{nearest(f'bundled:{name}', BUNDLED)}: name a model folder, "
        f"owner/name on the model hub, or one of {', '.join(BUNDLED)}."
    )


def look_into(folder: Path, where: str) -> BaseModel:
    """Return what is known of a model directory.

    Raises:
        UserError: If it lacks config.json or weights, or they cannot be read.
    """
    said = f"{where}: base_model {folder}"
    file, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    if not file.is_file() or not weights:
        lacks = "config.json" if not file.is_file() else "weights (*.safetensors)"
        raise UserError(f"{said} holds no {lacks}: name a model folder.")
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{said} has a config.json that is no JSON object: fetch it again.") from error
    try:
        names = frozenset(name for weight in weights for name in _matrices(weight))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{said} has weights that are cut off, or no safetensors: fetch them again.") from error
    return _from_config(config, names)


def _from_config(config: Mapping[str, Any], names: frozenset[str]) -> BaseModel:
    kind = config.get("model_type")
    architecture = (config.get("architectures") or [""])[0]
    is_encoder = None
    if architecture.endswith(_WRITERS):
        is_encoder = False
    elif architecture.endswith(_ENCODER_HEADS) or kind in _ENCODER_TYPES:
        is_encoder = True
    window = config.get("max_position_embeddings") or config.get("n_positions")
    if window is not None and kind in _TWO_POSITIONS_LESS:
        window -= 2
    return BaseModel(is_encoder, config.get("num_hidden_layers") or config.get("n_layer"), window, names)


def _matrices(file: Path) -> list[str]:
    """Return the layers with a weight matrix, embeddings left out, from the header of a safetensors file.

    Raises:
        ValueError: If the file is none, or ends before its header says.
    """
    n_bytes = file.stat().st_size
    with file.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if n_header > n_bytes:
            raise ValueError(file)
        header = json.loads(stream.read(n_header))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if 8 + n_header + max(entry["data_offsets"][1] for entry in tensors.values()) > n_bytes:
        raise ValueError(file)
    matrices = [name for name, entry in tensors.items() if len(entry["shape"]) > 1 and "embed" not in name]
    return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]
