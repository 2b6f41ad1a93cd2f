"""Gathering what the gate judges by: leaks looked for anew, the weights' descent, a replay through the endpoint.

What does not belong here: margins and sentences (`gate`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from ev_platform.dataset.overlap import find_overlaps
from ev_platform.errors import UserError
from ev_platform.evaluation.retention import lost, summary
from ev_platform.registry.aliases import read_aliases
from ev_platform.registry.digests import ALL
from ev_platform.registry.gate import Evidence, Replayed, asked_in_vain, shipped_system
from ev_platform.registry.releases import checked_settings, load_release
from ev_platform.registry.strangers import ask_strangers
from ev_platform.registry.takedown import tainted_versions
from ev_platform.registry.versions import versions_like
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.splitting import spread_evenly
from ev_platform.tasks.types import get_task_type

# Ten answers of the bundled model take ten seconds. Another template, tokenizer, prompt or set of passages changes
# nearly every answer, so that ten show it; what changes one answer in a hundred is not looked for here.
SAMPLE = 10


def collect(
    store: Store,
    task: Task,
    champion: str | None,
    *,
    version: Mapping[str, Any],
    tables: Mapping[str, pl.DataFrame],
) -> Evidence:
    """Gather the evidence about a version that has just been evaluated.

    Args:
        store: Where everything lies.
        task: Whose model.
        champion: The version it is compared with.
        version: Its row of `registered_model`.
        tables: `eval_report`, `predictions`, `benchmark`, `general_answers`, and those of the weights: `adapter`,
            `merged_model`, `serving_model`, `base_serving_model`.
    """
    trained_on = store.read("training_set", task.name, version["training_set_version"])
    chunks = store.read("chunks", task.name, version["chunks_version"])
    metrics, figures = tables["eval_report"], json.loads(tables["serving_model"].item(0, "metrics"))
    same_weights = versions_like(store, task.name, version["model_version"], "serving_model_id")
    system, _ = shipped_system(version, get_task_type(task.config.type), set(metrics["system"]))
    return Evidence(
        version=version,
        champion=champion,
        is_champions_own=read_aliases(store, task.name).get("champion") in same_weights,
        metrics=metrics,
        general=summary(tables["general_answers"]),
        lost=lost(tables["general_answers"]),
        leaks=find_overlaps(trained_on, tables["benchmark"], chunks, task.config.dataset),
        n_training_rows=trained_on.height,
        flaw=descent_flaw(version, *(tables[name] for name in _WEIGHTS)),
        token_agreement=figures.get("token_agreement"),
        strangers=ask_strangers(store, task, version["model_version"], champion),
        replayed=replay_sample(
            store, task, version, tables["benchmark"], tables["predictions"].filter(pl.col("system") == system)
        ),
        taint=tainted_versions(store, task.name).get(version["model_version"]),
    )


def may_tell_more(store: Store, task: Task) -> bool:
    """Return whether the stored checks hold one that was asked in vain, and that may be answered now."""
    stored = store.read("promotion_gate", task.name)
    vain = asked_in_vain(stored)
    if vain.keys() != {"abstention"}:
        return bool(vain)
    try:
        load_release(store, task, stored.item(0, "champion"), needs_corpus=False)
    except Exception:  # whatever it is: what cannot be loaded is not asked
        return False
    return True


_WEIGHTS = ("adapter", "merged_model", "serving_model", "base_serving_model")


def descent_flaw(
    version: Mapping[str, Any],
    adapter: pl.DataFrame,
    merged_model: pl.DataFrame,
    serving_model: pl.DataFrame,
    base_serving_model: pl.DataFrame,
) -> str | None:
    """Return why the served weights are not those of the version's adapter, in a sentence; None where they are.

    Every artifact says the digest of what it was made from, so that the chain from training rows to served weights can
    be followed link by link.

    Args:
        version: Row of `registered_model`.
        adapter: The table of that name.
        merged_model: The table of that name.
        serving_model: The table of that name.
        base_serving_model: The table of that name.
    """
    name = version["model_version"]
    served, trained = serving_model.row(0, named=True), adapter.row(0, named=True)
    registered = version["weights_sha256"] or ALL
    if registered.startswith(ALL):  # of all files: whoever loads them compares it, and the artifact's id covers weights
        registered = served["sha256"]
    links = [
        (
            "the served weights are not those that were evaluated",
            (served["artifact_id"], served["sha256"]),
            (version["serving_model_id"], registered),
        ),
        ("its adapter is another one than it names", trained["artifact_id"], version["adapter_id"]),
        (
            "its adapter was trained on other rows than it names",
            _inputs(adapter).get("training_set"),
            version["training_set_fingerprint"],
        ),
        (
            "the merged model was made from another adapter (a stale one)",
            _inputs(merged_model).get("adapter"),
            trained["sha256"],
        ),
        (
            "the served weights were made from another merged model",
            _inputs(serving_model).get("model"),
            merged_model.item(0, "sha256"),
        ),
    ]
    for flaw, found, wanted in links:
        if found != wanted:
            return f"{name} is not what it says it is: {flaw}; run the stage training again."
    if served["sha256"] == base_serving_model.item(0, "sha256"):
        return f"{name} is not what it says it is: the served weights are the base model's, the adapter is not in them."
    return None


def _inputs(table: pl.DataFrame) -> dict[str, str]:
    return json.loads(table.item(0, "inputs"))


def replay_sample(
    store: Store, task: Task, version: Mapping[str, Any], benchmark: pl.DataFrame, answered: pl.DataFrame
) -> Replayed:
    """Ask the endpoint a sample of the test questions, and compare with what the evaluation got.

    The sample is frozen: `SAMPLE` rows spread evenly over those of the benchmark that bring no passage of their own,
    since whoever asks an endpoint brings none, and that it accepts. Where no row is left, only weights and template are
    compared with what was registered.

    Args:
        store: Where the version lies.
        task: Whose model.
        version: Row of `registered_model`.
        benchmark: The `benchmark` table.
        answered: Rows of `predictions` of the system that the version answers as.
    """
    asked = benchmark.filter(pl.col("context").is_null()).select("example_id")
    rows = asked.join(answered, on="example_id", how="inner", maintain_order="left")
    accepted = rows.filter(pl.Series([_is_accepted(question) for question in rows["question"]], dtype=pl.Boolean))
    n_left_out, rows = rows.height - accepted.height, accepted
    rows = rows[spread_evenly(range(rows.height), SAMPLE)]
    try:
        if rows.is_empty():
            checked_settings(store, task.name, version)
            return Replayed(0, 0, n_left_out=n_left_out)
        release = load_release(store, task, version["model_version"])
        from ev_platform.serving.replay import replay

        answers = replay(release, rows["question"].to_list(), release.max_new_tokens)
    except UserError as error:
        return Replayed(rows.height, 0, error=str(error))
    except ModuleNotFoundError as error:
        return Replayed(rows.height, 0, error=f"The endpoint cannot be asked: {error.name} is missing (extra `serve`).")
    differing = [
        f"{question!r} was answered {given!r} in place of {expected!r}"
        for question, expected, given in zip(rows["question"], rows["prediction"], answers, strict=True)
        if expected != given
    ]
    return Replayed(rows.height, rows.height - len(differing), next(iter(differing), None), n_left_out=n_left_out)


def _is_accepted(question: str) -> bool:
    """Return whether the endpoint takes a question, which a test row may be too long for."""
    from pydantic import ValidationError

    from ev_platform.serving.schemas import Message

    try:
        Message(role="user", content=question)
    except ValidationError:
        return False
    return True
