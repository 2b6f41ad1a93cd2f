"""The stage's steps as stored artifacts: each makes a weight directory and the one-row table that describes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.records import ModelArtifact, TrainingStep, schema_of, to_frame
from ev_platform.storage import Store, fingerprint, short_id
from ev_platform.training.base import base_model_identity, sha256_weights, write_base_model
from ev_platform.training.export import export_serving_model, merge_adapter
from ev_platform.training.recipes import Recipe
from ev_platform.training.sft import Log, train_adapter


def _store_artifact(
    store: Store, kind: str, recipe: Recipe, inputs: dict[str, str], write: Callable[[Path], dict[str, Any]]
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
    return to_frame(kind, [row])


def _weights_of(table: pl.DataFrame) -> str:
    return table.item(0, "sha256")


def _path_of(store: Store, table: pl.DataFrame) -> Path:
    return store.root / table.item(0, "path")


def build_base_model(store: Store, recipe: Recipe) -> pl.DataFrame:
    """Bring the base model into the store; returns the `base_model` table."""

    def write(folder: Path) -> dict[str, Any]:
        write_base_model(recipe.base_model, folder)
        return {}

    return _store_artifact(store, "base_model", recipe, base_model_identity(recipe.base_model), write)


def build_adapter(
    store: Store,
    recipe: Recipe,
    base_model: pl.DataFrame,
    training_set: pl.DataFrame,
    validation_set: pl.DataFrame,
    training_fingerprint: str,
    log: Log | None = None,
) -> dict[str, pl.DataFrame]:
    """Train; returns the tables `adapter` and `training_log`."""
    inputs = {
        "base_model": _weights_of(base_model),
        "training_set": training_fingerprint,
        "recipe": fingerprint(recipe.model_dump(mode="json")),
    }
    steps: list[TrainingStep] = []

    def write(folder: Path) -> dict[str, Any]:
        metrics, logged = train_adapter(_path_of(store, base_model), training_set, validation_set, recipe, folder, log)
        steps.extend(logged)
        return metrics

    adapter = _store_artifact(store, "adapter", recipe, inputs, write)
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


def build_serving_model(store: Store, recipe: Recipe, kind: str, model: pl.DataFrame) -> pl.DataFrame:
    """Export a model directory for the engine; returns the table `kind` (`serving_model` or `base_serving_model`)."""

    def write(folder: Path) -> dict[str, Any]:
        return {"format": export_serving_model(_path_of(store, model), folder)}

    return _store_artifact(store, kind, recipe, {"model": _weights_of(model)}, write)
