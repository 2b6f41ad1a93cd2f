"""From a YAML file to a recipe: `extends`, and every mistake told in one sentence with its file and key.

What does not belong here: whether the recipe suits a task and its base model (`fit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ev_platform.errors import UserError
from ev_platform.training.recipes.schema import Lora, Recipe, Spans

FOLDER = Path(__file__).parent
KEYS = {
    *Recipe.model_fields,
    *(f"lora.{name}" for name in Lora.model_fields),
    *(f"spans.{name}" for name in Spans.model_fields),
}
# What other trainers call these things.
_ELSEWHERE = {
    "lr": "learning_rate",
    "model": "base_model",
    "model_name_or_path": "base_model",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "max_seq_length": "max_length",
    "packing": "batching: packed",
    "load_in_4bit": "method: qlora",
    "lora_r": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "doc_stride": "spans.stride",
    "early_stopping_patience": "early_stopping",
}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def shipped() -> list[str]:
    """Return the names of the recipes that come with the platform."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` where a known word looks like the given one, else nothing."""
    close = get_close_matches(word, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def nearest_key(path: str) -> str:
    """Return how a sentence on an unknown key goes on: with the key that was meant, where that can be told."""
    level, _, name = path.rpartition(".")
    elsewhere = _ELSEWHERE.get(name) or next((key for key in sorted(KEYS) if key.endswith(f".{name}")), None)
    if elsewhere:
        return f": write {elsewhere}"
    return nearest(path, [key for key in KEYS if key.rpartition(".")[0] == level]) or ": remove it"


def read_recipe(file: Path, changes: Mapping[str, Any]) -> Recipe:
    """Read a recipe, and what it extends.

    Args:
        file: YAML.
        changes: Keys that replace the file's.

    Raises:
        UserError: If the file does not parse or does not fit; names the file and the key.
    """
    own = _read_yaml(file)
    name = own.pop("extends", None)
    if name is not None:
        if name not in shipped():
            known = ", ".join(shipped())
            raise UserError(f"{file}: extends names {name!r}{nearest(str(name), shipped())}; it can be one of {known}.")
        own = merge(_read_yaml(FOLDER / f"{name}.yaml"), own)
    return parse(merge(own, changes), str(file))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys that `changes` has; mappings in it (lora, spans) are merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse(data: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe of some keys and values.

    Raises:
        UserError: If they do not fit; the sentence begins with `where`.
    """
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}.") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data: Any = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if data is None:
        raise UserError(f"{file} is empty: write a recipe, such as `extends: smollm2-135m-cpu` and what differs.")
    if not isinstance(data, dict):
        held = "a list" if isinstance(data, list) else f"only {_show(data)}"
        raise UserError(f"{file} holds {held}: write keys with values, such as `extends: smollm2-135m-cpu`.")
    return data


def _explain(error: ValidationError) -> str:
    errors = error.errors()
    # A key that is written wrong is also missing, which need not be said.
    unknown = [one for one in errors if one["type"] == "extra_forbidden"]
    told = [*unknown, *(one for one in errors if one not in unknown and not (unknown and one["type"] == "missing"))]
    first = told[0]
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            return f"there is no key {where}{nearest_key(where)}{more}"
        case "missing":
            return f"{where} is missing: write it, or take it from a shipped recipe with `extends`{more}"
        case "value_error":
            return f"{where}{' ' if said.startswith('should') else ': '}{said}{more}" if where else f"{said}{more}"
        case "model_type":
            said = "Input should hold keys with values"
        case kind if kind.endswith("_parsing"):
            said = said.partition(",")[0]
    return f"{where} is {_show(first['input'])}, but {said.removeprefix('Input ').removeprefix('String ')}{more}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
