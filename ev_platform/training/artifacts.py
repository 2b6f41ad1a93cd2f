"""The stage's steps as stored artifacts: each makes a weight directory and the one-row table that describes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.identity import fingerprint, short_id
from ev_platform.records import ModelArtifact, TrainingStep, schema_of, to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.training.base import base_model_identity, sha256_weights, write_base_model
from ev_platform.training.export import export_serving_model, merge_adapter
from ev_platform.training.exports import parity_figures, write_export
from ev_platform.training.loop import Job, Log, Result
from ev_platform.training.recipes import Recipe, check_base
from ev_platform.training.sweep import Trial, run_trials
from ev_platform.training.train import train


@dataclass(frozen=True, slots=True)
class Answers:
    """What a head must know of the task beside the rows.

    Attributes:
        labels: Its classes, in order; empty where it has none.
        no_answer: What is answered where a passage does not hold the answer.
    """

    labels: tuple[str, ...]
    no_answer: str


def _store_artifact(
    store: Store,
    kind: str,
    recipe: Recipe,
    inputs: dict[str, str],
    write: Callable[[Path], dict[str, Any]],
    table: str | None = None,
) -> pl.DataFrame:
    with store.artifact(kind, lambda: artifact_id) as folder:
        metrics = write(folder)
        sha256, n_bytes = sha256_weights(folder)
        # The id covers the bytes too: the same inputs under another version of a library are another artifact.
        artifact_id = short_id(kind.split("_", maxsplit=1)[0], kind, inputs, sha256)
    target = store.artifact_path(kind, artifact_id)
    row = ModelArtifact(
        artifact_id=artifact_id,
        kind=kind,
        path=str(target.relative_to(store.root)),
        base_model=recipe.base_model,
        recipe=recipe.model_dump_json(),
        inputs=json.dumps(inputs, sort_keys=True),
        sha256=sha256,
        n_bytes=n_bytes,
        metrics=json.dumps(metrics, sort_keys=True),
    )
    return to_frame(table or kind, [row])


def _weights_of(table: pl.DataFrame) -> str:
    return table.item(0, "sha256")


def _path_of(store: Store, table: pl.DataFrame) -> Path:
    return store.local(table.item(0, "path"))


def build_base_model(store: Store, recipe: Recipe) -> pl.DataFrame:
    """Bring the base model into the store; returns the `base_model` table."""

    def write(folder: Path) -> dict[str, Any]:
        write_base_model(recipe.base_model, folder)
        check_base(recipe, folder)
        return {}

    return _store_artifact(store, "base_model", recipe, base_model_identity(recipe.base_model), write)


def build_sweep(
    store: Store,
    trials: Sequence[Trial],
    answers: Answers,
    base_model: pl.DataFrame,
    training_set: pl.DataFrame,
    validation_set: pl.DataFrame,
    fingerprints: dict[str, str],
    train: Callable[[Job], Result] = train,
) -> dict[str, pl.DataFrame]:
    """Try the recipes of a sweep; returns the table `sweep_trials`, empty where there are none.

    Args:
        store: Where finished trials are kept.
        trials: What `plan_trials` returned.
        answers: Of the task.
        base_model: The `base_model` table.
        training_set: The `training_set` table.
        validation_set: The `validation_set` table; it chooses.
        fingerprints: Of the two tables, and of the code that trains, by name.
        train: Runs a job.
    """
    if not trials:
        return {"sweep_trials": to_frame("sweep_trials", [])}
    folder = store.root / "sweeps"
    base, recipe = _path_of(store, base_model), trials[0].recipe
    job = Job(base, training_set, validation_set, recipe, answers.labels, answers.no_answer, folder, folder)
    identity = {"base_model": _weights_of(base_model), **fingerprints}
    return {"sweep_trials": to_frame("sweep_trials", run_trials(trials, job, folder, identity, train))}


def build_adapter(
    store: Store,
    recipe: Recipe,
    answers: Answers,
    base_model: pl.DataFrame,
    training_set: pl.DataFrame,
    validation_set: pl.DataFrame,
    fingerprints: dict[str, str],
    code: str,
    log: Log | None = None,
    train: Callable[[Job], Result] = train,
) -> dict[str, pl.DataFrame]:
    """Train, going on where a killed run of the same inputs stopped; returns the tables `adapter` and `training_log`.

    Args:
        store: Where artifacts and checkpoints lie.
        recipe: How to train.
        answers: Of the task.
        base_model: The `base_model` table.
        training_set: The `training_set` table.
        validation_set: The `validation_set` table.
        fingerprints: Of the two tables, by name.
        code: Of the code that trains; another one does not go on with what this one began.
        log: Called with (metrics, step) for a tracker.
        train: Runs the job.
    """
    inputs = {
        "base_model": _weights_of(base_model),
        **fingerprints,
        "recipe": fingerprint(recipe.model_dump(mode="json")),
    }
    checkpoints = store.root / "checkpoints" / short_id("run", inputs, code, answers.labels, answers.no_answer)
    steps: list[TrainingStep] = []

    def write(folder: Path) -> dict[str, Any]:
        base = _path_of(store, base_model)
        job = Job(
            base, training_set, validation_set, recipe, answers.labels, answers.no_answer, folder, checkpoints, log
        )
        metrics, logged = train(job)
        steps.extend(logged)
        return metrics

    adapter = _store_artifact(store, "adapter", recipe, inputs, write)
    shutil.rmtree(checkpoints, ignore_errors=True)
    log_table = to_frame("training_log", steps) if steps else pl.DataFrame(schema=schema_of("training_log"))
    named = log_table.with_columns(pl.lit(adapter.item(0, "artifact_id")).alias("adapter_id"))
    return {"adapter": adapter, "training_log": named}


def build_merged_model(store: Store, recipe: Recipe, base_model: pl.DataFrame, adapter: pl.DataFrame) -> pl.DataFrame:
    """Merge the adapter into the base weights; returns the `merged_model` table."""

    def write(folder: Path) -> dict[str, Any]:
        merge_adapter(_path_of(store, base_model), _path_of(store, adapter), folder)
        return {}

    inputs = {"base_model": _weights_of(base_model), "adapter": _weights_of(adapter)}
    return _store_artifact(store, "merged_model", recipe, inputs, write)


def build_serving_model(
    store: Store, recipe: Recipe, answers: Answers, kind: str, model: pl.DataFrame, shown: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Export a model directory for the engine; returns the table `kind` (`serving_model` or `base_serving_model`).

    Args:
        store: Where artifacts lie.
        recipe: Of the model.
        answers: Of the task.
        kind: Table and artifact.
        model: The table of the model directory.
        shown: A `validation_set` table; the export is asked its questions, and how often it goes on as the model itself
            does goes into the metrics.
    """

    def write(folder: Path) -> dict[str, Any]:
        source = _path_of(store, model)
        metrics: dict[str, Any] = {
            "format": export_serving_model(source, folder, recipe, answers.labels, answers.no_answer)
        }
        if shown is not None:
            metrics |= parity_figures(source, folder, shown)
        return metrics

    inputs = {"model": _weights_of(model), "head": fingerprint(head_identity(recipe, answers))}
    return _store_artifact(store, kind, recipe, inputs, write)


def head_identity(recipe: Recipe, answers: Answers) -> dict[str, Any]:
    """Return what an export depends on beside the weights: nothing, where they hold their own head."""
    if recipe.head == "causal":
        return {}
    return {
        "head": recipe.head,
        "seed": recipe.seed,
        "spans": recipe.spans.model_dump(mode="json"),
        "max_length": recipe.max_length,
        "labels": list(answers.labels),
        "no_answer": answers.no_answer,
    }


def build_exports(store: Store, task: Task, recipe: Recipe, formats: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Write the newest model in other forms; returns the table `exports`, a row for each form."""
    inputs = {"merged_model": _weights_of(store.read("merged_model", task.name))}
    rows = [
        _store_artifact(
            store, name, recipe, inputs, lambda out, name=name: write_export(store, task, name, out), "exports"
        )
        for name in formats
    ]
    return {"exports": pl.concat([to_frame("exports", []), *rows])}
