"""The commands on a task's models: versions, exports, model card, publication."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import get_task
from ev_platform.terminal import TaskOption, console, plain_errors, quiet, say

models_app = typer.Typer(
    no_args_is_help=True,
    help="Models: versions, exports, card, publication.\n\nExample: `ev-platform models list`",
)


@models_app.command("list")
@plain_errors
def models_list(task: TaskOption = "ev_charging") -> None:
    """List the versions of a task's model with their verdicts and aliases.

    Example: `ev-platform models list --task ev_charging`
    """
    from ev_platform.registry import read_aliases
    from ev_platform.storage import Store

    store = Store(get_settings().data_root)
    aliases: dict[str, list[str]] = {}
    for alias, version in read_aliases(store, task).items():
        aliases.setdefault(version, []).append(alias)
    table = Table("version", "registered", "verdict", "aliases")
    for row in store.read("registered_model", task).iter_rows(named=True):
        name = row["model_version"]
        table.add_row(name, f"{row['registered_at']:%Y-%m-%d %H:%M}", row["verdict"], ", ".join(aliases.get(name, [])))
    console.print(table)


@models_app.command("export")
@plain_errors
def models_export(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist or be empty.")],
    form: Annotated[
        str, typer.Option("--format", help="safetensors, ctranslate2-int8, ctranslate2-float16 or ollama.")
    ] = "safetensors",
    task: TaskOption = "ev_charging",
) -> None:
    """Write the newest model of a task for another engine, with its card, and compare it with the model.

    Example: `ev-platform models export build/ollama --format ollama`
    """
    quiet()
    from ev_platform.storage import Store
    from ev_platform.training.exports import write_export

    settings = get_settings()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a folder that does not exist or is empty.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as beside:
        folder = Path(beside) / "model"
        folder.mkdir()
        figures = write_export(Store(settings.data_root), get_task(task, settings.tasks_root), form, folder)
        folder.replace(out)
    say(f"Wrote {out}: {', '.join(sorted(file.name for file in out.iterdir()))}.")
    if figures:
        say(
            f"Asked {figures['n_prompts']} validation questions: {figures['agreement']:.0%} of the answers begin with "
            f"the model's own token; of all compared tokens, {figures['token_agreement']:.0%} are the model's."
        )


@models_app.command("card")
@plain_errors
def models_card(task: TaskOption = "ev_charging") -> None:
    """Print the model card of the newest model: what it is for, its scores, what it was made from.

    Example: `ev-platform models card --task ev_charging > card.md`
    """
    from ev_platform.dataset.export import Dataset
    from ev_platform.storage import Store
    from ev_platform.training.card import render_model_card

    settings = get_settings()
    typer.echo(render_model_card(Dataset(Store(settings.data_root), get_task(task, settings.tasks_root))))


@models_app.command("publish")
@plain_errors
def models_publish(
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    task: TaskOption = "ev_charging",
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; the main one by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
) -> None:
    """Publish the newest model with its card, private unless told otherwise; needs HF_TOKEN.

    Example: `ev-platform models publish me/charging --dry-run`
    """
    quiet()
    from ev_platform.storage import Store
    from ev_platform.training.exports import publish_model

    settings = get_settings()
    store, chosen = Store(settings.data_root), get_task(task, settings.tasks_root)
    made = publish_model(store, chosen, repo, private=not public, revision=revision, dry_run=dry_run)
    if not dry_run:
        store.publish("published_models", chosen.name, made)
    row = made.to_dicts()[0]
    size = f"{row['n_files']} files, {row['n_bytes'] / 1e6:.1f} MB"
    say(f"Would send {size} to {repo}." if dry_run else f"Sent {size}: {row['url']}")
