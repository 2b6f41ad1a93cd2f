"""Registered versions of a closed-book task with tiny weights, and its aliases moved as a promotion moves them."""

import json
from pathlib import Path

import polars as pl

from ev_platform import registry
from ev_platform.files import write_atomic
from ev_platform.records import RegisteredModel, to_frame
from ev_platform.storage import Store, now
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model

TASK = "tiny"


def write_task(tasks_dir: Path) -> Path:
    """Write the folder of the task; returns the folder of task folders."""
    folder = tasks_dir / TASK
    folder.mkdir(parents=True)
    (folder / "job_description.json").write_text(json.dumps({"task_description": "Answer in a word."}))
    (folder / "config.yaml").write_text("type: closed_book_qa\n")
    return tasks_dir


def register(store: Store, scratch: Path, number: int, model: Path | None = None) -> None:
    """Register a version; without a model given, its tiny weights depend on its number."""
    model_id = f"model_{number}"
    model = model or write_tiny_model(scratch / model_id, seed=number)
    with store.artifact("serving_model", lambda: model_id) as out:
        export_serving_model(model, out, tiny_recipe(), (), "")
    folder = store.artifact_path("serving_model", model_id)
    chunks = store.current("chunks", TASK) or store.publish("chunks", TASK, to_frame("chunks", []))
    task_type = get_task_type("closed_book_qa")
    serving = {"task_type": "closed_book_qa", "instructions": "Answer in a word.", "has_retrieval": False}
    fields = dict.fromkeys(RegisteredModel.__dataclass_fields__, "") | {
        "model_version": f"{TASK}@{number}",
        "number": number,
        "registered_at": now(),
        "serving_model_id": model_id,
        "chunks_version": chunks.version,
        "chunks_fingerprint": chunks.fingerprint,
        "serving": json.dumps(serving | {"top_k": 1, "candidates": 1, "max_new_tokens": 8}),
        "template_fingerprint": registry.template_fingerprint(folder, task_type),
        "scores": "{}",
        "weights_sha256": sha256_weights(folder)[0],
    }
    row = to_frame("registered_model", [RegisteredModel(**fields)])
    store.publish("registered_model", TASK, pl.concat([store.read("registered_model", TASK), row]))


def point(data_root: Path, task: str, **aliases: str) -> None:
    """Write the aliases of a task, in the file and in the way the registry does."""
    write_atomic(data_root / "registry" / f"{task}.json", json.dumps(aliases).encode())
