"""Immutable model versions, aliases that point at them, and everything that is needed to answer with one.

A version is a row of the table `registered_model`; it names the very weights, training rows and passages it stands
for. Aliases (`champion`, `candidate`, `previous`) are a small file beside it, replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform import prompting
from ev_platform.engine import Engine, load_engine
from ev_platform.errors import UserError
from ev_platform.records import RegisteredModel, to_frame
from ev_platform.retrieval import Retriever
from ev_platform.storage import Store, code_version, fingerprint, now, write_atomic
from ev_platform.tasks import Task
from ev_platform.training.base import load_tokenizer

# The endpoint always retrieves, so this is the only verdict that speaks for what it would serve.
SHIPPED = "ship tuned + retrieval"


@dataclass(frozen=True, slots=True)
class SourceChunk:
    """A passage with what a reader needs to judge and find its source."""

    chunk_id: str
    text: str
    title: str | None
    heading_path: str
    url: str
    page: int | None
    licence: str
    publisher: str
    fetched_at: datetime


@dataclass(frozen=True)
class Release:
    """A loaded version, ready to answer.

    Attributes:
        model_version: Such as `ev_charging@3`.
        description: The task in words; the system message.
        engine: Generates.
        retriever: Searches the version's own chunks.
        chunks: By id.
        top_k: Passages in a prompt.
        max_new_tokens: Longest answer.
    """

    model_version: str
    description: str
    engine: Engine
    retriever: Retriever
    chunks: dict[str, SourceChunk]
    top_k: int
    max_new_tokens: int


def _alias_file(store: Store, task: str) -> Path:
    return store.root / "registry" / f"{task}.json"


def serving_settings(task: Task) -> dict[str, Any]:
    """Return what decides an answer beside weights, passages and template; a version keeps it as it was evaluated."""
    return {
        "description": task.description,
        "top_k": task.config.retrieval.top_k,
        "candidates": task.config.retrieval.candidates,
        "max_new_tokens": task.config.evaluation.max_new_tokens,
    }


def template_fingerprint(model: Path) -> str:
    """Hash the prompt template and the chat template saved with a model."""
    return fingerprint([code_version(prompting), load_tokenizer(model).chat_template])


def read_aliases(store: Store, task: str) -> dict[str, str]:
    """Return alias to version, such as `{"champion": "ev_charging@3"}`."""
    file = _alias_file(store, task)
    return json.loads(file.read_text()) if file.exists() else {}


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
) -> pl.DataFrame:
    """Add a version to the `registered_model` table, unless the newest one is the same in all that decides answers.

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

    Returns:
        All versions, oldest first.
    """
    versions = store.read("registered_model", task)
    newest = versions.tail(1).to_dicts()[0] if versions.height else None
    model_id = serving_model.item(0, "artifact_id")
    is_shipped = verdict == SHIPPED
    made_of = {
        "serving_model_id": model_id,
        "chunks_fingerprint": chunks[1],
        "serving": json.dumps(serving, sort_keys=True),
        "template_fingerprint": template,
        "benchmark_fingerprint": benchmark_fingerprint,
        "verdict": verdict,
    }
    if newest is None or any(newest[name] != value for name, value in made_of.items()):
        number = (newest["number"] if newest else 0) + 1
        row = RegisteredModel(
            model_version=f"{task}@{number}",
            number=number,
            registered_at=now(),
            adapter_id=adapter.item(0, "artifact_id"),
            training_set_version=training_set[0],
            training_set_fingerprint=training_set[1],
            chunks_version=chunks[0],
            recipe=adapter.item(0, "recipe"),
            **made_of,
            reason=reason,
            scores=json.dumps(scores, sort_keys=True),
            alias="champion" if is_shipped else None,
        )
        versions = pl.concat([versions, to_frame("registered_model", [row])])
    return versions


def apply_aliases(store: Store, task: str) -> dict[str, str]:
    """Let the newest version take its place: it becomes `candidate`, and `champion` if it was registered to ship.

    Done once for each version, so that a rollback by hand lasts until there is a new one.

    Returns:
        The aliases now in force.
    """
    newest = store.read("registered_model", task).tail(1).to_dicts()[0]
    aliases = read_aliases(store, task)
    name = newest["model_version"]
    if aliases.get("candidate") == name:
        return aliases
    aliases["candidate"] = name
    if newest["alias"] == "champion":
        if "champion" in aliases:
            aliases["previous"] = aliases["champion"]
        aliases["champion"] = name
    write_atomic(_alias_file(store, task), json.dumps(aliases, indent=1).encode())
    return aliases


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


def load_release(store: Store, task: Task, name: str | None = None) -> Release:
    """Load a version with its engine and its passages.

    Raises:
        UserError: If there is no such version, its weights are gone, or the prompt template has changed since.
    """
    row = resolve(store, task.name, name)
    folder = store.artifact_path("serving_model", row["serving_model_id"])
    if not folder.is_dir():
        raise UserError(f"The weights of {row['model_version']} are gone from {folder}: choose another version.")
    if template_fingerprint(folder) != row["template_fingerprint"]:
        raise UserError(
            f"{row['model_version']} was evaluated with another prompt template than this code has: run "
            f"`ev-platform run --task {task.name}` to evaluate and register it anew."
        )
    chunks = store.read("chunks", task.name, row["chunks_version"])
    settings = json.loads(row["serving"])
    return Release(
        model_version=row["model_version"],
        description=settings["description"],
        engine=load_engine(folder),
        retriever=Retriever.build(chunks, settings["candidates"], store.read("chunk_vectors", task.name)),
        chunks=_with_sources(store, task.name, chunks),
        top_k=settings["top_k"],
        max_new_tokens=settings["max_new_tokens"],
    )


def _with_sources(store: Store, task: str, chunks: pl.DataFrame) -> dict[str, SourceChunk]:
    wanted = set(chunks["document_id"])
    documents: dict[str, dict[str, Any]] = {}
    # The newest version of the documents usually has them all; an older one is read only for what it misses.
    for record in reversed(store.history("clean_documents", task)):
        if wanted <= documents.keys():
            break
        for row in store.read("clean_documents", task, record.version).iter_rows(named=True):
            if row["document_id"] in wanted:
                documents.setdefault(row["document_id"], row)
    sources = {}
    for chunk in chunks.iter_rows(named=True):
        document = documents[chunk["document_id"]]
        sources[chunk["chunk_id"]] = SourceChunk(
            **{name: chunk[name] for name in ("chunk_id", "text", "heading_path", "page")},
            **{name: document[name] for name in ("title", "url", "licence", "publisher", "fetched_at")},
        )
    return sources
