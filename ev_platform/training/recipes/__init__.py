"""Training recipes: YAML files a person can read, loaded into a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ev_platform.errors import UserError
from ev_platform.tasks import Task, read_model

FOLDER = Path(__file__).parent


class Lora(BaseModel):
    """Low-rank adaptation (Hu et al. 2021).

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: On the adapter's input.
        target_modules: `all-linear`, or names of layers.
        last_layers: Adapt only this many of the topmost blocks; needs `target_modules` by name. No gradient flows
            below them, which saves up to half of the backward pass.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...]
    last_layers: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _names_for_layers(self) -> Lora:
        if self.last_layers is not None and self.target_modules == "all-linear":
            raise ValueError("last_layers needs target_modules as a list of names, not all-linear")
        return self


class Recipe(BaseModel):
    """How an adapter is trained.

    Attributes:
        base_model: `bundled:smollm2-135m-instruct`, a model directory, or `owner/name` on the model hub.
        method: `lora`, or `qlora` (base weights in 4-bit NF4 with double quantisation; Dettmers et al. 2023).
        lora: The adapter.
        learning_rate: Peak.
        scheduler: Shape after the warm-up.
        warmup_ratio: Share of the steps.
        epochs: Passes over the training set.
        max_steps: Ends earlier; None for all epochs.
        batch_size: Rows a step.
        max_length: Rows with more tokens are left out and counted.
        seed: Of initial weights, order and dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str = Field(min_length=1)
    method: Literal["lora", "qlora"]
    lora: Lora
    learning_rate: float = Field(gt=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: float = Field(ge=0, lt=1)
    epochs: float = Field(gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(ge=1)
    max_length: int = Field(ge=32)
    seed: int


def load_recipe(task: Task) -> Recipe:
    """Return the recipe that a task names, with the task's base model where it sets one.

    Raises:
        UserError: If there is no such recipe, or it does not fit.
    """
    name = task.config.recipe
    own = task.folder / name
    file = own if own.suffix == ".yaml" and own.exists() else FOLDER / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.yaml")))
        raise UserError(f"{task.folder / 'config.yaml'}: there is no recipe {name!r}; choose one of {known}.")
    recipe = read_model(Recipe, file)
    return recipe.model_copy(update={"base_model": task.config.base_model}) if task.config.base_model else recipe
