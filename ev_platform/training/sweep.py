"""Hyper-parameter search: a bounded grid over a task's recipe, in which the lowest validation loss wins.

A grid of a few recipes can be gone through whole, in an order that a person can foretell, and every trial is a recipe
of its own that can be trained again; a library that models the loss needs some tens of trials before it does better
than drawing lots. Test rows take no part: nothing here is given them.

What does not belong here: training (`train`), and what a recipe may hold (`recipes`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import operator
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.identity import short_id
from ev_platform.records import SweepTrial
from ev_platform.tasks import Task
from ev_platform.training.loop import Job, Result
from ev_platform.training.recipes import Recipe, load_recipe
from ev_platform.training.recipes.fit import check_recipe
from ev_platform.training.recipes.reading import KEYS, merge, nearest_key, parse

_FIXED = {
    "base_model": "another base model is another task's choice: compare two runs",
    "head": "losses of two heads cannot be compared",
    "max_length": "it decides which validation rows are read, so losses could not be compared",
    "spans.stride": "it decides how validation rows are cut, so losses could not be compared",
    "spans.max_answer_tokens": "it takes no part in the loss",
    "seed": "the best of several seeds is luck",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe to try.

    Attributes:
        number: From 1 on, in the order of the grid.
        overrides: Dotted key of the recipe to its value.
        recipe: With these values.
    """

    number: int
    overrides: dict[str, Any]
    recipe: Recipe


def plan_trials(task: Task) -> list[Trial]:
    """Return the recipes that a task's sweep tries, in the order of its grid; empty where it has none.

    Raises:
        UserError: If one of them does not suit, or there will be no validation rows to choose by.
    """
    config = task.config.sweep
    if config is None:
        return []
    file = task.folder / "config.yaml"
    where = f"{file}: sweep"
    if task.config.dataset.validation_fraction == 0:
        raise UserError(f"{where}: the validation set chooses, and dataset.validation_fraction is 0: raise it.")
    for key in config.grid:
        if key in _FIXED:
            raise UserError(f"{where}: {key} cannot be tried, since {_FIXED[key]}; remove it.")
        if key in ("lora", "spans"):
            first = min(one for one in KEYS if one.startswith(f"{key}."))
            raise UserError(f"{where}: {key} holds several keys: name one of them, such as {first}.")
        if key not in KEYS:
            raise UserError(f"{where}: there is no key {key}{nearest_key(key)}.")
    recipe = load_recipe(task)
    size = math.prod(len(values) for values in config.grid.values())
    # Sampling, not secrets.
    drawn = set(random.Random(recipe.seed).sample(range(size), min(size, config.max_trials)))  # noqa: S311
    combinations = (values for n, values in enumerate(itertools.product(*config.grid.values())) if n in drawn)
    trials: list[Trial] = []
    for number, values in enumerate(combinations, start=1):
        overrides = dict(zip(config.grid, values, strict=True))
        told = f"{where}, trial {number} ({_shown(overrides)})"
        changed = override(recipe, overrides, told)
        check_recipe(changed, task, told, told)
        twin = next((trial for trial in trials if trial.recipe == changed), None)
        if twin is not None:
            raise UserError(
                f"{told} is the same as trial {twin.number} ({_shown(twin.overrides)}): remove one of them."
            )
        # As the recipe reads them: YAML takes 1e-3 for a text.
        data = changed.model_dump(mode="json")
        read = {key: functools.reduce(operator.getitem, key.split("."), data) for key in overrides}
        trials.append(Trial(number, read, changed))
    return trials


def override(recipe: Recipe, overrides: Mapping[str, Any], where: str) -> Recipe:
    """Return a recipe with some values replaced.

    Args:
        recipe: The recipe.
        overrides: Dotted key to value.
        where: Begins the sentence of an error.

    Raises:
        UserError: If they do not go together.
    """
    data = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        group, _, name = key.rpartition(".")
        data = merge(data, {group: {name: value}} if group else {name: value})
    return parse(data, where)


def run_trials(
    trials: Sequence[Trial],
    job: Job,
    folder: Path,
    identity: Mapping[str, str],
    train: Callable[[Job], Result],
) -> list[SweepTrial]:
    """Train every trial and choose the one with the lowest validation loss, the first of equals.

    A killed sweep goes on where it stopped: the loss of a finished trial is stored, an unfinished one has checkpoints.

    Args:
        trials: What `plan_trials` returned; at least one.
        job: What they have in common; its recipe, out, checkpoints and log are replaced for each.
        folder: For results and checkpoints, of this and other sweeps.
        identity: Fingerprints of all that decides a trial's loss beside its recipe: base weights, rows, code.
        train: Runs a job.

    Raises:
        UserError: If there are no validation rows, no trial ends with a loss, or the disk is full.
    """
    if job.validation.is_empty():
        raise UserError(
            "The sweep chooses by validation loss, and there are no validation rows: raise dataset.validation_fraction "
            "in config.yaml, add training rows, or remove sweep."
        )
    rows = []
    # A failed trial keeps its checkpoints until the end, so that a resumed sweep comes to its failure quickly.
    scratch: list[Path] = []
    for trial in tqdm(trials, desc="sweep", unit="trial", disable=None):
        name = short_id("trl", dict(identity), trial.recipe.model_dump(mode="json"), job.labels, job.no_answer)
        scratch.append(folder / f"{name}.checkpoints")
        row = _run_trial(trial, job, folder / f"{name}.json", scratch[-1], train)
        rows.append(row)
        if job.log is not None and row.validation_loss is not None:
            job.log({"trial_validation_loss": row.validation_loss}, trial.number)
    finished = [row for row in rows if row.validation_loss is not None]
    if not finished:
        raise UserError(
            f"None of the {len(rows)} trials of the sweep ended with a validation loss; the first: {rows[0].reason}"
        )
    for path in scratch:
        shutil.rmtree(path, ignore_errors=True)
    best = min(finished, key=lambda row: row.validation_loss or 0.0)
    return [dataclasses.replace(row, is_chosen=row is best) for row in rows]


def chosen_recipe(recipe: Recipe, sweep_trials: pl.DataFrame) -> Recipe:
    """Return the recipe that a sweep chose.

    Args:
        recipe: The task's.
        sweep_trials: The table; the task's own recipe stays where it is empty.
    """
    chosen = sweep_trials.filter("is_chosen")
    if chosen.is_empty():
        return recipe
    return override(recipe, json.loads(chosen.item(0, "overrides")), "the chosen trial of the sweep")


def _run_trial(trial: Trial, job: Job, result: Path, checkpoints: Path, train: Callable[[Job], Result]) -> SweepTrial:
    def failed(reason: str) -> SweepTrial:
        return SweepTrial(trial.number, overrides, None, None, None, "failed", reason, False)

    overrides = json.dumps(trial.overrides)
    if not result.exists():
        out = result.with_suffix(".out")
        shutil.rmtree(out, ignore_errors=True)  # of a killed process
        out.mkdir(parents=True)
        try:
            figures, _ = train(
                dataclasses.replace(job, recipe=trial.recipe, out=out, checkpoints=checkpoints, log=None)
            )
        except UserError as error:
            # With the disk full no other trial can do better, and one that fits would win for its size.
            if str(error).startswith("The disk is full"):
                raise
            return failed(str(error))
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if figures["validation_loss"] is None:
            return failed("No validation row could be read with this recipe.")
        kept = {name: figures[name] for name in ("validation_loss", "n_steps", "train_seconds")}
        write_atomic(result, json.dumps(kept).encode())
        shutil.rmtree(checkpoints, ignore_errors=True)
    kept = json.loads(result.read_text())
    return SweepTrial(trial.number, overrides, **kept, status="finished", reason=None, is_chosen=False)


def _shown(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in overrides.items())
