"""Versions of the task `tiny`, registered as the asset does it, with weight files of a few bytes or real ones."""

import json
import tempfile
from functools import cache
from pathlib import Path

from ev_platform import registry
from ev_platform.records import GateCheck, ModelArtifact, to_frame
from ev_platform.registry.gate import CHECKS
from ev_platform.registry.promotion import decide, settle
from ev_platform.storage import Store
from ev_platform.tasks import get_task
from ev_platform.tasks.types import get_task_type
from ev_platform.training.base import sha256_weights
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model, write_tiny_task, write_tiny_tokenizer

SHIP, HOLD = "ship tuned + retrieval", "inconclusive"
OPEN_BOOK = get_task_type("open_book_qa")
SERVING = {
    "task_type": "open_book_qa",
    "instructions": "Answer briefly.",
    "has_retrieval": True,
    "top_k": 1,
    "candidates": 20,
    "max_new_tokens": 8,
}
RECIPE = {"epochs": 1, "lora": {"r": 8}}


class PlainStore(Store):
    """A store without the DuckDB catalogue, which takes most of the time that publishing a small table takes."""

    def rebuild_catalogue(self):
        """Return where the catalogue would be."""
        return self.catalogue


def write_weights(store, kind, artifact_id, content=None):
    """Write a folder of weights of a few bytes; return it."""
    folder = store.artifact_path(kind, artifact_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes((content or f"{kind} {artifact_id}").encode())
    return folder


@cache
def tokenizer_files():
    """Return the files of a tokenizer, and the fingerprint of the template that comes of them."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
        return files, registry.template_fingerprint(Path(folder), OPEN_BOOK)


def artifact(store, kind, artifact_id, inputs=None, recipe=None, **metrics):
    """Return the one-row table of a folder of weights."""
    folder = store.artifact_path(kind, artifact_id)
    sha256, n_bytes = sha256_weights(folder) if folder.is_dir() else ("0", 1)
    recipe = json.dumps(recipe or RECIPE)
    path = f"artifacts/{kind}/{artifact_id}"
    row = ModelArtifact(
        artifact_id, kind, path, "tiny", recipe, json.dumps(inputs or {}), sha256, n_bytes, json.dumps(metrics)
    )
    return to_frame(kind, [row])


def publish(
    store,
    model_id,
    verdict=SHIP,
    chunks=("c1", "c1"),
    template="p1",
    serving=SERVING,
    training_set=("t1", "f1"),
    recipe=None,
    scores=None,
    adapter=None,
    benchmark="b1",
):
    """Register as the asset does: compute the rows, publish them, name the candidate; return the aliases."""
    if not store.artifact_path("serving_model", model_id).is_dir():
        write_weights(store, "serving_model", model_id)
    rows = registry.register(
        store,
        "tiny",
        serving_model=artifact(store, "serving_model", model_id),
        adapter=artifact(store, "adapter", adapter or f"adapter_of_{model_id}", recipe=recipe),
        training_set=training_set,
        chunks=chunks,
        serving=serving,
        benchmark_fingerprint=benchmark,
        template=template,
        verdict=verdict,
        reason="because",
        scores=scores or {"base/token_f1": 0.1},
    )
    store.publish("registered_model", "tiny", rows)
    return registry.name_candidate(store, "tiny")


def add_version(store, model_id, **options):
    """Register a version with weights of a few bytes and a real tokenizer; return its name."""
    folder = write_weights(store, "serving_model", model_id)
    files, template = tokenizer_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return publish(store, model_id, **{"template": template} | options)["candidate"]


def gate(version, champion=None, failed=()):
    """Return the table `promotion_gate` as it is for a version that fails some checks."""
    rows = [
        GateCheck(version, champion, check, check not in failed, 0.1, 0.2, f"{check} was looked at.")
        for check in CHECKS
    ]
    return to_frame("promotion_gate", rows)


def conclude(store, table):
    """Decide as the asset does, under the lock: publish what is decided, then let the aliases follow."""
    with registry.locked(store, "tiny"):
        decisions, outcome = decide(store, "tiny", table)
        store.publish("promotions", "tiny", decisions)
        settle(store, "tiny")
    return outcome


def task_of_type(tmp_path, name, classes=None):
    """Write a task of another type, and return it."""
    folder = write_tiny_task(tmp_path / "tasks" / "tiny", tmp_path / "model")
    (folder / "config.yaml").write_text(f"type: {name}\nretrieval: {{top_k: 3}}\nevaluation: {{max_new_tokens: 8}}\n")
    job = {"task_description": "Say what the text is about."}
    (folder / "job_description.json").write_text(json.dumps(job | {"classes_description": classes or {}}))
    return get_task("tiny", tmp_path / "tasks")


def exported(store, tmp_path):
    """Export a tiny model as the artifact `m1`; return its folder."""
    model = write_tiny_model(tmp_path / "model")
    with store.artifact("serving_model", lambda: "m1") as folder:
        export_serving_model(model, folder, tiny_recipe(), (), "")
    return store.artifact_path("serving_model", "m1")
