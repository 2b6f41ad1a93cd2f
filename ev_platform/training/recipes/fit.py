"""Whether a recipe suits a task, its base model and this installation; nothing heavy is loaded to find out.

What does not belong here: what the keys may hold by themselves (`schema`).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.types import TASK_TYPES, get_task_type
from ev_platform.training.recipes.base_models import BaseModel, look_at, look_into
from ev_platform.training.recipes.schema import Recipe


def check_recipe(recipe: Recipe, task: Task, where: str, model_where: str) -> None:
    """Check a recipe against what is known before anything is fetched or loaded.

    Args:
        recipe: The recipe.
        task: Whose model it is to train.
        where: Which file, and key, the recipe comes from; begins the sentence of an error.
        model_where: The same of `base_model`.

    Raises:
        UserError: If it does not suit.
    """
    _check_task(recipe, task, where)
    for key, value in (("method", "qlora"), ("optimizer", "paged_adamw_8bit")):
        if getattr(recipe, key) == value and find_spec("bitsandbytes") is None:
            other = "method: lora" if key == "method" else "optimizer: adamw_torch"
            raise UserError(
                f"{where}: {key} {value} needs bitsandbytes, which is not installed: install the extra `train`, or "
                f"write {other}."
            )
    model = look_at(recipe.base_model, model_where)
    if model is not None:
        _check_model(recipe, model, where)


def check_base(recipe: Recipe, folder: Path) -> None:
    """Check a recipe against a model directory, for one that had to be fetched first.

    Raises:
        UserError: If they do not suit each other.
    """
    where = f"the recipe for {recipe.base_model}"
    _check_model(recipe, look_into(folder, where), where)


def _check_task(recipe: Recipe, task: Task, where: str) -> None:
    task_type = get_task_type(task.config.type)
    if recipe.head not in task_type.heads:
        types = " or ".join(one.name for one in TASK_TYPES.values() if recipe.head in one.heads)
        raise UserError(
            f"{where}: the type {task_type.name} cannot have the head {recipe.head}: take a recipe with the head "
            f"{' or '.join(task_type.heads)}, or set type in config.yaml to {types}."
        )
    if recipe.head == "classification" and _has_no_classes(task):
        raise UserError(
            f"{where}: the head classification needs at least two classes, and {task.name} has fewer: name them in "
            "classes_description of job_description.json, or write rows with their labels."
        )
    if recipe.early_stopping is not None and task.config.dataset.validation_fraction == 0:
        raise UserError(
            f"{where}: early_stopping looks at validation rows, and dataset.validation_fraction in config.yaml is 0: "
            "raise it, or remove early_stopping."
        )


def _has_no_classes(task: Task) -> bool:
    try:
        return len(task.classes) < 2
    except UserError:  # told by whoever reads the rows
        return False


def _check_model(recipe: Recipe, model: BaseModel, where: str) -> None:
    name, lora = recipe.base_model, recipe.lora
    if recipe.head == "causal" and model.is_encoder:
        raise UserError(
            f"{where}: the head causal writes text, and {name} is an encoder, which cannot: set head to extractive or "
            "classification, or base_model to one that writes, such as bundled:smollm2-135m-instruct."
        )
    if recipe.head != "causal" and model.is_encoder is False:
        raise UserError(
            f"{where}: the head {recipe.head} sits on an encoder, and {name} is none: set base_model to one, such as "
            "bundled:all-minilm-l6-v2, or head to causal."
        )
    if model.window is not None and recipe.max_length > model.window:
        raise UserError(
            f"{where}: max_length is {recipe.max_length}, but {name} reads {model.window} tokens at most: lower it."
        )
    if lora is None:
        return
    if lora.last_layers is not None and model.n_layers is not None and lora.last_layers > model.n_layers:
        raise UserError(
            f"{where}: lora.last_layers is {lora.last_layers}, but {name} has {model.n_layers} layers: lower it."
        )
    missing = [one for one in lora.target_modules if model.lacks(one)] if lora.target_modules != "all-linear" else []
    if missing:
        known = ", ".join(sorted({layer.rpartition(".")[2] for layer in model.layers or ()}))
        raise UserError(
            f"{where}: lora.target_modules names {', '.join(missing)}, which {name} does not have: choose among "
            f"{known}, or write all-linear."
        )
