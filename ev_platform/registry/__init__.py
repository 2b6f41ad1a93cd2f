"""Immutable model versions, aliases that point at them, and everything that is needed to answer with one.

A version is a row of the table `registered_model`; it names the very weights, training rows and passages it stands
for. Aliases (`champion`, `candidate`, `previous`) are a small file beside it, replaced as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform import prompting
from ev_platform.engine import Engine, load_engine
from ev_platform.errors import UserError
from ev_platform.prompting import passage_text
from ev_platform.records import RegisteredModel, to_frame
from ev_platform.retrieval import Hit, Retriever
from ev_platform.storage import Store, code_version, fingerprint, now, write_atomic
from ev_platform.tasks import Task
from ev_platform.tasks.types import TaskType, get_task_type
from ev_platform.training.base import load_tokenizer

# The verdicts that promote a tuned model, and whether it then answers from passages, as the system that won did.
SHIPPED = {"ship tuned": False, "ship tuned + retrieval": True}


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
        task_type: Makes the prompts.
        instructions: The system message.
        engine: Generates.
        retriever: Searches the version's own chunks; None where it answers without passages.
        chunks: By id.
        top_k: Passages in a prompt.
        max_new_tokens: Longest answer.
    """

    model_version: str
    task_type: TaskType
    instructions: str
    engine: Engine
    retriever: Retriever | None
    chunks: dict[str, SourceChunk]
    top_k: int
    max_new_tokens: int

    def retrieve(self, question: str) -> list[Hit]:
        """Return the passages that a question is answered from, best first; none where the model needs none."""
        if self.retriever is None:
            return []
        (hits,) = self.retriever.search([question], self.top_k)
        return hits

    def render(self, question: str, hits: Sequence[Hit]) -> str:
        """Return the prompt of a question, as in evaluation."""
        found = [self.chunks[hit.chunk_id] for hit in hits]
        contexts = [passage_text(chunk.heading_path, chunk.text) for chunk in found]
        return self.engine.render(self.task_type.prompt(self.instructions, question, contexts))


def _alias_file(store: Store, task: str) -> Path:
    return store.root / "registry" / f"{task}.json"


def serving_settings(task: Task, verdict: str) -> dict[str, Any]:
    """Return what decides an answer beside weights, passages and template; a version keeps it as it was evaluated.

    Args:
        task: The evaluated task.
        verdict: See `evaluation.statistics`. It says whether the model answers from passages; without a system to ship,
            the model is given them if it was trained with them.
    """
    task_type = get_task_type(task.config.type)
    return {
        "task_type": task_type.name,
        "instructions": task.instructions,
        "has_retrieval": SHIPPED.get(verdict, task_type.trains_with_passages),
        "top_k": task.config.retrieval.top_k,
        "candidates": task.config.retrieval.candidates,
        "max_new_tokens": task.config.evaluation.max_new_tokens,
    }


def template_fingerprint(model: Path, task_type: TaskType | None = None) -> str:
    """Hash how a prompt is made: the shared template, the chat template saved with a model, the task type's chats.

    Args:
        model: Folder of the model.
        task_type: None for a version that was registered before there were task types.
    """
    parts: list[Any] = [code_version(prompting), load_tokenizer(model).chat_template]
    if task_type is not None:
        # What it makes, not how it is written: its other duties have no say in an answer.
        parts += [task_type.prompt("instructions", "question", contexts) for contexts in ([], ["one", "two"])]
    return fingerprint(parts)


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
    is_shipped = verdict in SHIPPED
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
    settings = json.loads(row["serving"])
    if "task_type" not in settings:  # registered when open-book QA was the only type
        settings |= {"instructions": settings["description"], "has_retrieval": True}
    task_type = get_task_type(settings.get("task_type", "open_book_qa"))
    evaluated = task_type if "task_type" in settings else None
    if template_fingerprint(folder, evaluated) != row["template_fingerprint"]:
        raise UserError(
            f"{row['model_version']} was evaluated with another prompt template than this code has: run "
            f"`ev-platform run --task {task.name}` to evaluate and register it anew."
        )
    chunks = store.read("chunks", task.name, row["chunks_version"])
    retriever = None
    if settings["has_retrieval"]:
        if chunks.is_empty():
            raise UserError(
                f"{row['model_version']} answers from passages, but its task has no documents to search: add some to "
                f"sources.yaml and run `ev-platform run --task {task.name}`."
            )
        retriever = Retriever.build(chunks, settings["candidates"], store.read("chunk_vectors", task.name))
    return Release(
        model_version=row["model_version"],
        task_type=task_type,
        instructions=settings["instructions"],
        engine=load_engine(folder),
        retriever=retriever,
        chunks=_with_sources(store, task.name, chunks) if retriever else {},
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
