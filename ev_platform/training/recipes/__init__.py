"""Training recipes: YAML files a person can read, loaded into a frozen model.

- `load_recipe` returns a task's recipe, or says in one sentence why it cannot be trained, before anything heavy loads.
- `check_base` says the same of a base model that had to be fetched first.

What does not belong here: training.
"""

from __future__ import annotations

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.training.recipes.fit import check_base, check_recipe
from ev_platform.training.recipes.reading import FOLDER, nearest, read_recipe, shipped
from ev_platform.training.recipes.schema import Head, Lora, Method, Recipe, Spans

__all__ = ["FOLDER", "Head", "Lora", "Method", "Recipe", "Spans", "check_base", "load_recipe"]


def load_recipe(task: Task) -> Recipe:
    """Return the recipe that a task names, with the task's base model where it sets one.

    Raises:
        UserError: If there is no such recipe, or it does not suit the task or its base model.
    """
    config, name = task.folder / "config.yaml", task.config.recipe
    own = task.folder / name
    is_own = own.suffix == ".yaml" and own.is_file()
    if not is_own and name not in shipped():
        beside = [file.name for file in task.folder.glob("*.yaml") if file.stem not in ("config", "sources")]
        hint = nearest(name, [*shipped(), *beside])
        raise UserError(f"{config}: there is no recipe {name!r}{hint}; choose one of {', '.join(shipped())}.")
    base_model = task.config.base_model
    recipe = read_recipe(own if is_own else FOLDER / f"{name}.yaml", {"base_model": base_model} if base_model else {})
    where = str(own) if is_own else f"{config}: recipe {name}"
    check_recipe(recipe, task, where, str(config) if base_model else where)
    return recipe
