"""Immutable versions of a task's model: rows of `registered_model`, added when something that decides answers differs.

What does not belong here: loading a version (`releases`), and which version answers (`aliases`, `promotion`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform import decoding, encoder, engine, engine_base, pooling, prompting, retrieval
from ev_platform.errors import UserError
from ev_platform.identity import code_version, fingerprint
from ev_platform.records import RegisteredModel, to_frame
from ev_platform.registry.aliases import read_aliases
from ev_platform.registry.digests import digest_of
from ev_platform.storage import Store, now
from ev_platform.tasks import Task
from ev_platform.tasks.types import TaskType, get_task_type
from ev_platform.training.base import chat_template, sha256_weights

# The verdicts that ship a tuned model, and whether it then answers from passages, as the system that won did.
SHIPPED = {"ship tuned": False, "ship tuned + retrieval": True}
# Columns that decide what a version answers. Code and template are today's, whichever version is loaded.
OWN = ("serving_model_id", "chunks_fingerprint", "serving")
VERY_SAME = (*OWN, "template_fingerprint", "code")


def serving_settings(task: Task, verdict: str, min_score: float | None = None) -> dict[str, Any]:
    """Return what decides an answer beside weights, passages and template; a version keeps it as it was evaluated.

    Args:
        task: The evaluated task.
        verdict: See `evaluation.statistics`. It says whether the model answers from passages; without a system to ship,
            the model is given them if it was trained with them.
        min_score: Cosine of a question and the nearest passage below which it abstains; None: never by score.
    """
    task_type = get_task_type(task.config.type)
    return {
        "task_type": task_type.name,
        "instructions": task.instructions,
        "has_retrieval": SHIPPED.get(verdict, task_type.trains_with_passages),
        "top_k": task.config.retrieval.top_k,
        "candidates": task.config.retrieval.candidates,
        "max_new_tokens": task.config.evaluation.max_new_tokens,
        "min_score": min_score,
        "no_answer": task.config.no_answer,
        "labels": list(task.classes),
    }


def template_fingerprint(model: Path, task_type: TaskType | None = None) -> str:
    """Hash how a prompt is made: the shared template, the chat template saved with a model, the task type's chats.

    Args:
        model: Folder of the model.
        task_type: None for a version that was registered before there were task types.
    """
    parts: list[Any] = [code_version(prompting), chat_template(model)]
    if task_type is not None:
        # What it makes, not how it is written: its other duties have no say in an answer.
        parts += [task_type.prompt("instructions", "question", contexts) for contexts in ([], ["one", "two"])]
    return fingerprint(parts)


def answering_code(task_type: TaskType) -> str:
    """Hash the code between a question and its answer: engines, search, template, the task type."""
    kind = sys.modules[type(task_type).__module__]
    return code_version(decoding, encoder, engine, engine_base, pooling, prompting, retrieval, kind)


def answering_now(task: Task, model: Path, min_score: float | None = None) -> dict[str, str]:
    """Return what decides an answer beside weights and passages, as far as it is known before the evaluation.

    Whether passages are given is not: it follows from the verdict.

    Args:
        task: The task as it is configured.
        model: Folder of the model at hand.
        min_score: See `serving_settings`.

    Returns:
        Columns of `registered_model`; `serving` without `has_retrieval`.
    """
    task_type = get_task_type(task.config.type)
    return {
        "serving": _before_verdict(json.dumps(serving_settings(task, "", min_score))),
        "template_fingerprint": template_fingerprint(model, task_type),
        "code": answering_code(task_type),
    }


def _before_verdict(serving: str) -> str:
    known = {name: value for name, value in json.loads(serving).items() if name != "has_retrieval"}
    return json.dumps(known, sort_keys=True)


def register(
    store: Store,
    task: str,
    *,
    serving_model: pl.DataFrame,
    adapter: pl.DataFrame,
    training_set: tuple[str, str],
    chunks: tuple[str, str],
    serving: dict[str, Any],
    benchmark_fingerprint: str,
    template: str,
    verdict: str,
    reason: str,
    scores: dict[str, Any],
    git_commit: str | None = None,
) -> pl.DataFrame:
    """Add a version to the `registered_model` table, unless the newest one is the same in all that decides answers.

    It becomes nobody's champion by that: see `promotion`.

    Args:
        store: Where tables live.
        task: Partition.
        serving_model: The `serving_model` table.
        adapter: The `adapter` table.
        training_set: (version, fingerprint) of the rows it was trained on.
        chunks: (version, fingerprint) of the passages it answers from.
        serving: See `serving_settings`.
        benchmark_fingerprint: Of the rows it was evaluated on.
        template: See `template_fingerprint`.
        verdict: See `evaluation.statistics`.
        reason: One sentence with the figures behind the verdict.
        scores: Point estimates by system.
        git_commit: Of the checkout that evaluated it.

    Returns:
        All versions, oldest first.

    Raises:
        UserError: If the served weights are not those that the table `serving_model` tells of.
    """
    versions = store.read("registered_model", task)
    newest = versions.tail(1).to_dicts()[0] if versions.height else None
    recipe = adapter.item(0, "recipe")
    made_of = {
        "serving_model_id": serving_model.item(0, "artifact_id"),
        # Other validation rows or another recipe may train the same bytes: what it was made from differs all the same.
        "adapter_id": adapter.item(0, "artifact_id"),
        "chunks_fingerprint": chunks[1],
        "serving": json.dumps(serving, sort_keys=True),
        "template_fingerprint": template,
        "benchmark_fingerprint": benchmark_fingerprint,
        "verdict": verdict,
        "code": answering_code(get_task_type(serving.get("task_type", "open_book_qa"))),
    }
    if newest is None or any(newest[name] != value for name, value in made_of.items()):
        number = (newest["number"] if newest else 0) + 1
        row = RegisteredModel(
            model_version=f"{task}@{number}",
            number=number,
            registered_at=now(),
            training_set_version=training_set[0],
            training_set_fingerprint=training_set[1],
            chunks_version=chunks[0],
            recipe=recipe,
            **made_of,
            reason=reason,
            scores=json.dumps(scores, sort_keys=True),
            base_model=serving_model.item(0, "base_model"),
            recipe_fingerprint=fingerprint(json.loads(recipe)),
            weights_sha256=_digest_as_made(store, serving_model),
            git_commit=git_commit,
        )
        versions = pl.concat([versions, to_frame("registered_model", [row])])
    return versions


def _digest_as_made(store: Store, serving_model: pl.DataFrame) -> str:
    made, folder = serving_model.item(0, "sha256"), store.local(serving_model.item(0, "path"))
    if not folder.is_dir() or sha256_weights(folder)[0] != made:
        raise UserError(
            f"The weights in {folder} are gone or have been altered since they were made: run the stage training again."
        )
    return digest_of(folder, made)


def resolve(store: Store, task: str, name: str | None = None) -> dict[str, Any]:
    """Return the registered row that an alias or a version names; by default the champion.

    Raises:
        UserError: If nothing is registered under that name.
    """
    wanted = name or "champion"
    aliases = read_aliases(store, task)
    versions = store.read("registered_model", task)
    found = versions.filter(pl.col("model_version") == aliases.get(wanted, wanted))
    if found.is_empty():
        known = [*aliases, *versions["model_version"].to_list()]
        raise UserError(
            f"Task {task} has no model {wanted!r}: "
            + (f"choose one of {', '.join(known)}." if known else f"run `ev-platform run --task {task}` first.")
        )
    return found.to_dicts()[0]


def reference_of(
    store: Store,
    task: str,
    *,
    serving_model_id: str,
    chunks_fingerprint: str,
    benchmark_fingerprint: str,
    answering: Mapping[str, str] | None = None,
) -> str | None:
    """Return the version that a model is to be compared with: the champion whose place it would take.

    While it is champion, it goes on being compared with the one whose place it took, so that an unchanged run compares
    with what it compared with before.

    Args:
        store: Where tables live.
        task: Partition.
        serving_model_id: Artifact of the model at hand.
        chunks_fingerprint: Of the passages it answers from.
        benchmark_fingerprint: Of the rows it is evaluated on.
        answering: See `answering_now`; with it, the same weights under other settings, another template or other code
            are another model, which has to show that it is not worse.

    Returns:
        Such as `ev_charging@3`; None where no other model has answered yet.
    """
    wanted = {"serving_model_id": serving_model_id, "chunks_fingerprint": chunks_fingerprint, **(answering or {})}
    same = [
        row
        for row in store.read("registered_model", task).to_dicts()
        if wanted.items() <= (row | {"serving": _before_verdict(row["serving"])}).items()
    ]
    evaluated = [row for row in same if row["benchmark_fingerprint"] == benchmark_fingerprint]
    if answering and evaluated:  # then its verdict is known, and with that whether it is given passages
        same = [row for row in same if row["serving"] == evaluated[-1]["serving"]]
    known = {row["model_version"] for row in same}
    names = known & {row["model_version"] for row in evaluated}
    champion = read_aliases(store, task).get("champion")
    if champion in names:
        taken = store.read("promotions", task).filter(
            pl.col("champion_after").is_in(names)
            & ~pl.col("champion_before").is_in(names).fill_null(value=False)
            & (pl.col("decision") != "rolled_back")
        )
        champion = taken.item(-1, "champion_before") if taken.height else None
    return None if champion in known else champion


def versions_like(store: Store, task: str, version: str | None, *columns: str) -> set[str]:
    """Return the versions that have the same values in some columns of `registered_model`, the version itself too."""
    versions = store.read("registered_model", task)
    it = versions.filter(pl.col("model_version") == version)
    return set(versions.join(it, on=columns, how="semi", nulls_equal=True)["model_version"])
