"""A trained model as a folder for somebody else: another engine's form, checked on load, with its model card.

What does not belong here: how a form is written (`packages`), how it is compared (`parity`), where it goes (`publish`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.dataset.export import Dataset
from ev_platform.errors import UserError
from ev_platform.records import Publication, to_frame
from ev_platform.settings import get_settings
from ev_platform.storage import Store, now
from ev_platform.tasks import Task
from ev_platform.training.card import render_model_card
from ev_platform.training.packages import write_ctranslate2, write_ollama
from ev_platform.training.parity import agreement
from ev_platform.training.publish import Files, files_of, publish

FORMATS = ("safetensors", "ctranslate2-int8", "ctranslate2-float16", "ollama")
N_PARITY_PROMPTS = 16


def parity_figures(model: Path, exported: Path, shown: pl.DataFrame) -> dict[str, Any]:
    """Compare an export with its model on validation rows; returns figures to record, none where there are no rows.

    Args:
        model: Model directory.
        exported: What was made of it.
        shown: The `validation_set` table.
    """
    if shown.is_empty():
        return {}
    agreed = agreement(model, exported, shown["messages"].head(N_PARITY_PROMPTS).to_list())
    return {"agreement": agreed.rate, "token_agreement": agreed.token_rate, "n_prompts": agreed.n}


def write_export(store: Store, task: Task, name: str, out: Path) -> dict[str, Any]:
    """Write the newest model of a task in one form, with its card as README.md.

    Args:
        store: Holds the model.
        task: Whose model.
        name: One of `FORMATS`.
        out: Empty folder.

    Returns:
        How far the export says what the model says.

    Raises:
        UserError: If there is no such form, no model yet, or the model has no such form.
    """
    if name not in FORMATS:
        raise UserError(f"There is no format {name!r}: choose one of {', '.join(FORMATS)}.")
    model = merged_folder(store, task)
    shown = store.read("validation_set", task.name)
    if name == "safetensors":
        shutil.copytree(model, out, dirs_exist_ok=True)
    elif name == "ollama":
        rows = store.read("training_set", task.name)["messages"].head(1).to_list()
        config = task.config.evaluation
        write_ollama(
            model, out, instructions=task.instructions, example=rows[0][:-1], max_new_tokens=config.max_new_tokens
        )
    else:
        write_ctranslate2(model, out, "int8" if name == "ctranslate2-int8" else "float16")
    figures = {} if name == "safetensors" else parity_figures(model, out, shown)
    (out / "README.md").write_text(render_model_card(Dataset(store, task)), encoding="utf-8")
    return figures


def publish_model(
    store: Store, task: Task, repo_id: str, *, private: bool = True, revision: str | None = None, dry_run: bool = False
) -> pl.DataFrame:
    """Put the newest model of a task on the Hugging Face Hub, with its card; returns the table `published_models`.

    Args:
        store: Holds the model.
        task: Whose model.
        repo_id: `owner/name`.
        private: Whether only its owner sees it.
        revision: Branch; the main one where None.
        dry_run: Only list what would be sent.

    Raises:
        UserError: If there is no model yet, its files were changed, or the hub refuses.
    """
    settings = get_settings()
    merged = store.read("merged_model", task.name)
    files: Files = {
        **files_of(merged_folder(store, task), merged.item(0, "sha256")),
        "README.md": render_model_card(Dataset(store, task)).encode(),
    }
    done = publish(
        files,
        repo_id,
        token=settings.hf_token,
        private=private,
        message=f"{task.name}: {merged.item(0, 'artifact_id')}",
        revision=revision,
        endpoint=settings.hf_endpoint,
        dry_run=dry_run,
    )
    row = Publication(
        repo_id=repo_id,
        merged_model_id=merged.item(0, "artifact_id"),
        is_private=private,
        is_dry_run=dry_run,
        url=done.url,
        commit=done.commit,
        n_files=len(done.n_bytes),
        n_bytes=sum(done.n_bytes.values()),
        published_at=now(),
    )
    return to_frame("published_models", [row])


def merged_folder(store: Store, task: Task) -> Path:
    """Return the directory of the newest model of a task.

    Raises:
        UserError: If there is none.
    """
    merged = store.read("merged_model", task.name)
    if merged.is_empty():
        raise UserError(f"The task {task.name} has no model yet: run `ev-platform run --task {task.name}` first.")
    return store.local(merged.item(0, "path"))
