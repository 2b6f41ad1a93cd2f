"""A version with everything that is needed to answer with it: checked weights, its own passages, its own settings.

What does not belong here: which version that is (`versions`, `aliases`) and answering over HTTP (`serving`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ev_platform.encoder import HEADS
from ev_platform.engine import load_engine
from ev_platform.engine_base import Engine
from ev_platform.errors import UserError
from ev_platform.prompting import passage_text
from ev_platform.registry.digests import is_intact
from ev_platform.registry.prune import pruned_at
from ev_platform.registry.similarity import trained_vectors
from ev_platform.registry.versions import resolve, template_fingerprint
from ev_platform.retrieval import Hit, Retriever, best_score, embed, is_too_far
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.config import NO_ANSWER
from ev_platform.tasks.types import TaskType, get_task_type
from ev_platform.training.base import architecture_of, load_tokenizer


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


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is known about a question before it is answered.

    Attributes:
        hits: Passages to answer from, best first; none where the model needs none.
        similarity: Cosine of the question and the nearest one that the model was trained on, -1 to 1; None where there
            is none to compare with.
    """

    hits: list[Hit]
    similarity: float | None


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
        has_retrieval: Whether it answers from passages: retrieved ones, or those that a question brings.
        min_score: Cosine of question and nearest retrieved passage below which it abstains; None: never by score.
        no_answer: What it says where it abstains.
        labels: Of a classification task; empty elsewhere.
        trained_vectors: Unit vectors of questions that it was trained on, one row each; None where there are none.
    """

    model_version: str
    task_type: TaskType
    instructions: str
    engine: Engine
    retriever: Retriever | None
    chunks: dict[str, SourceChunk]
    top_k: int
    max_new_tokens: int
    has_retrieval: bool = False
    min_score: float | None = None
    no_answer: str = NO_ANSWER
    labels: tuple[str, ...] = ()
    trained_vectors: np.ndarray | None = field(default=None, compare=False, repr=False)

    def look_up(self, question: str, *, needs_passages: bool = True) -> LookUp:
        """Return what a question is answered from, and how near it is to what was trained on; embeds it once.

        Args:
            question: As it was asked.
            needs_passages: Whether to search; a question may bring its own passage.
        """
        if self.trained_vectors is None or not len(self.trained_vectors):
            return LookUp(self.retrieve(question) if needs_passages else [], None)
        vectors = embed([question])
        hits: list[Hit] = []
        if needs_passages and self.retriever is not None:
            (hits,) = self.retriever.search([question], self.top_k, vectors=vectors)
        # Beyond five digits a product hangs on the machine.
        return LookUp(hits, round(float((self.trained_vectors @ vectors[0]).max()), 5))

    def abstains(self, hits: Sequence[Hit]) -> bool:
        """Return whether no retrieved passage is near enough, so that the answer is `no_answer`.

        It is not asked about a question that brings its own passage.
        """
        return self.retriever is not None and is_too_far(best_score(hits), self.min_score)

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


def checked_weights(store: Store, task: str, row: Mapping[str, Any]) -> Path:
    """Return the folder of a version's weights, after comparing the bytes in it with what was registered.

    Args:
        store: Where they lie.
        task: Partition.
        row: Of `registered_model`; one that an earlier release registered has no digest to compare with.

    Raises:
        UserError: If they are gone or altered.
    """
    folder, version = store.local(f"artifacts/serving_model/{row['serving_model_id']}"), row["model_version"]
    if not folder.is_dir():
        pruned = pruned_at(store, task).get(version)
        if pruned:
            raise UserError(f"{version} was pruned on {pruned[:10]} and cannot be loaded: choose another version.")
        raise UserError(f"The weights of {version} are gone from {folder}: choose another version.")
    if not is_intact(folder, row["weights_sha256"]):
        raise UserError(
            f"The files of {version} in {folder} are not those that were registered (their SHA-256 differs): "
            f"choose another version, or bring the files back from a backup."
        )
    return folder


def checked_settings(store: Store, task: str, row: Mapping[str, Any]) -> tuple[Path, TaskType, dict[str, Any]]:
    """Return the folder, the task type and the settings of a version, after checking that all is as it was evaluated.

    Raises:
        UserError: If its weights are gone or altered, its tokenizer cannot be loaded, or the prompt template has
            changed.
    """
    folder = checked_weights(store, task, row)
    settings = json.loads(row["serving"])
    evaluated = None
    if "task_type" in settings:
        evaluated = get_task_type(settings["task_type"])
    else:  # registered when open-book QA was the only type
        settings |= {"instructions": settings["description"], "has_retrieval": True}
    try:
        load_tokenizer(folder)  # the digest of an earlier release covers the weights only
        template = template_fingerprint(folder, evaluated)
    except UserError:
        raise
    except Exception as error:  # whatever a library makes of files that are gone or broken
        raise UserError(
            f"The tokenizer of {row['model_version']} in {folder} cannot be loaded ({type(error).__name__}): choose "
            "another version, or bring the files back from a backup."
        ) from error
    if template != row["template_fingerprint"]:
        raise UserError(
            f"{row['model_version']} was evaluated with another prompt template than this code has: run "
            f"`ev-platform run --task {task}` to evaluate and register it anew."
        )
    return folder, evaluated or get_task_type("open_book_qa"), settings


def load_release(
    store: Store, task: Task, name: str | None = None, needs_corpus: bool = True, engine_url: str | None = None
) -> Release:
    """Load a version with its engine and its passages.

    Args:
        store: Where it lies.
        task: Whose model.
        name: Version or alias; the champion where None.
        needs_corpus: Whether a version that answers from passages must have some to search; where every question brings
            its own, it need not.
        engine_url: Of a server of vLLM that knows the version by its name and writes its answers; None: this process
            does. Encoders always run here.

    Raises:
        UserError: If there is no such version, its weights are gone or altered, the prompt template has changed, or it
            has nothing to search.
    """
    row = resolve(store, task.name, name)
    folder, task_type, settings = checked_settings(store, task.name, row)
    if "labels" not in settings:  # registered when nothing abstained by score
        settings |= {"min_score": None, "no_answer": task.config.no_answer, "labels": list(task.classes)}
    chunks = store.read("chunks", task.name, row["chunks_version"])
    retriever = None
    if settings["has_retrieval"] and not chunks.is_empty():
        retriever = Retriever.build(chunks, settings["candidates"], store.read("chunk_vectors", task.name))
    elif settings["has_retrieval"] and needs_corpus:
        raise UserError(
            f"{row['model_version']} answers from passages, but its task has no documents to search: add some to "
            f"sources.yaml and run `ev-platform run --task {task.name}`."
        )
    return Release(
        model_version=row["model_version"],
        task_type=task_type,
        instructions=settings["instructions"],
        engine=load_engine(folder) if engine_url is None else _remote_engine(folder, engine_url, row["model_version"]),
        retriever=retriever,
        chunks=_with_sources(store, task.name, chunks) if retriever else {},
        top_k=settings["top_k"],
        max_new_tokens=settings["max_new_tokens"],
        has_retrieval=settings["has_retrieval"],
        min_score=settings["min_score"],
        no_answer=settings["no_answer"],
        labels=tuple(settings["labels"]),
        trained_vectors=trained_vectors(store, task.name, row),
    )


def _remote_engine(folder: Path, url: str, version: str) -> Engine:
    from ev_platform.remote_engine import RemoteEngine

    is_encoder = (architecture_of(folder) or "").endswith(HEADS)
    return load_engine(folder) if is_encoder else RemoteEngine(folder, url, version)


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
