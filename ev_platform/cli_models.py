"""The commands on a task's models: versions, promotion, exports, model card, publication."""

from __future__ import annotations

import getpass
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from ev_platform.cli_vllm import models_vllm
from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import get_task
from ev_platform.terminal import TaskOption, console, plain_errors, quiet, say

if TYPE_CHECKING:
    from ev_platform.records import Promotion
    from ev_platform.storage import Store

models_app = typer.Typer(
    no_args_is_help=True,
    help="Models: versions, promotion, exports, card, publication.\n\nExample: `ev-platform models list`",
)
models_app.command("vllm")(models_vllm)
ReasonOption = Annotated[str, typer.Option(help="Why; it is recorded with the decision.")]
# What a list and a comparison have room for; `eval_report` has every score.
_SHOWN = ("accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "latency_ms_p50")


def _store() -> Store:
    from ev_platform.storage import Store

    return Store(get_settings().data_root)


@models_app.command("list")
@plain_errors
def models_list(task: TaskOption = "ev_charging") -> None:
    """List the versions of a task's model: stage, verdict, score of what it answers as, size.

    Example: `ev-platform models list --task ev_charging`
    """
    from ev_platform.registry import pruned_at, read_aliases
    from ev_platform.registry.prune import is_held

    store = _store()
    aliases: dict[str, list[str]] = {}
    for alias, version in read_aliases(store, task).items():
        aliases.setdefault(version, []).append(alias)
    pruned = pruned_at(store, task)
    table = Table(Column("version", overflow="fold", no_wrap=True), "stage", "registered", "verdict", "score", "size")
    for row in store.read("registered_model", task).iter_rows(named=True):
        name = row["model_version"]
        folder = store.artifact_path("serving_model", row["serving_model_id"])
        if folder.is_dir():
            size = f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB"
        elif is_held(store, str(folder.relative_to(store.root))):
            size = "in the store"
        else:
            size = "pruned" if name in pruned else "gone"
        table.add_row(
            name,
            ", ".join(aliases.get(name, [])),
            f"{row['registered_at']:%Y-%m-%d %H:%M}",
            row["verdict"],
            _score(row),
            size,
        )
    console.print(table)


def _score(row: Mapping[str, Any]) -> str:
    scores = json.loads(row["scores"])
    system = "tuned_rag" if json.loads(row["serving"]).get("has_retrieval", True) else "tuned"
    for metric in ("accuracy", "token_f1"):
        if (value := scores.get(f"{system}/{metric}")) is not None:
            return f"{metric} {value:.3f}"
    return ""


@models_app.command("show")
@plain_errors
def models_show(
    version: Annotated[str, typer.Argument(help="Version or alias.")] = "champion", task: TaskOption = "ev_charging"
) -> None:
    """Show everything a version stands for: fingerprints, scores, the gate's checks, decisions.

    Example: `ev-platform models show ev_charging@3`
    """
    import polars as pl

    from ev_platform.registry import resolve
    from ev_platform.registry.compare import FINGERPRINTS
    from ev_platform.registry.promotion import gate_of

    store = _store()
    row = resolve(store, task, version)
    name = row["model_version"]
    say(f"{name}, registered {row['registered_at']:%Y-%m-%d %H:%M} UTC: {row['verdict']}. {row['reason']}")
    table = Table("what", "value")
    for column, what in FINGERPRINTS.items():
        table.add_row(what, escape(str(row[column] or "not recorded")))
    for column in ("serving_model_id", "adapter_id", "training_set_version", "chunks_version"):
        table.add_row(column.replace("_", " "), row[column])
    console.print(table)
    scores = {key: value for key, value in json.loads(row["scores"]).items() if key.split("/")[1] in _SHOWN}
    say("Scores: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    gate = gate_of(store, task, name)
    if gate.is_empty():
        say("The gate has not judged it.")
    else:
        say(f"The gate judged it against {gate.item(0, 'champion') or 'no champion'}:")
        checks = Table("check", "passed", "what it found")
        for check, passed, reason in gate.select("check", "passed", "reason").rows():
            checks.add_row(check, "yes" if passed else "[bold red]no[/]", escape(reason))
        console.print(checks)
    about = store.read("promotions", task).filter(
        (pl.col("model_version") == name) | (pl.col("champion_before") == name) | (pl.col("champion_after") == name)
    )
    for it in about.iter_rows(named=True):
        say(
            f"{it['decided_at']:%Y-%m-%d %H:%M} UTC, {it['decided_by']}: {it['model_version']} "
            f"{it['decision'].replace('_', ' ')}, champion {it['champion_before'] or 'none'} -> "
            f"{it['champion_after'] or 'none'}. {it['reason']}"
        )


@models_app.command("diff")
@plain_errors
def models_diff(
    first: Annotated[str, typer.Argument(help="Version or alias.")],
    second: Annotated[str, typer.Argument(help="Version or alias.")],
    task: TaskOption = "ev_charging",
) -> None:
    """Say what differs between two versions: training rows, recipe, settings, fingerprints, scores.

    Example: `ev-platform models diff champion candidate`
    """
    from ev_platform.registry.compare import compare

    found = compare(_store(), task, first, second)
    say(f"{found.versions[0]} -> {found.versions[1]}. The same in both: {', '.join(found.same) or 'nothing'}.")
    say(f"Training rows: {found.n_shared} shared, {len(found.added)} added, {len(found.removed)} removed.")
    for mark, questions in (("+", found.added), ("-", found.removed)):
        for question in questions[:5]:
            say(f"  {mark} {question}")
        if len(questions) > 5:
            say(f"  {mark} and {len(questions) - 5} more")
    table = Table("what", *found.versions)
    for name, (a, b) in {**found.other, **found.recipe, **found.serving}.items():
        table.add_row(name, *(escape(str(value)[:40]) for value in (a, b)))
    for name, (a, b) in found.scores.items():
        if name.split("/")[1] in _SHOWN:
            table.add_row(name, f"{a:.3f}", f"{b:.3f} ({b - a:+.3f})" if found.has_same_test_rows else f"{b:.3f}")
    console.print(table)
    if found.scores and not found.has_same_test_rows:
        say("The scores are not compared: the two versions answered other test rows.")


@models_app.command("promote")
@plain_errors
def models_promote(
    version: Annotated[str, typer.Argument(help="Version or alias.")],
    reason: ReasonOption,
    task: TaskOption = "ev_charging",
    override: Annotated[bool, typer.Option("--override", help="Though it did not pass the gate.")] = False,
) -> None:
    """Make a version champion; one that did not pass the gate needs --override. Running endpoints swap it in.

    Example: `ev-platform models promote candidate --reason "Checked 50 answers by hand." --override`
    """
    from ev_platform.registry.promotion import promote

    _tell(task, promote(_store(), task, version, reason=reason, by=getpass.getuser(), override=override))


@models_app.command("rollback")
@plain_errors
def models_rollback(
    reason: ReasonOption,
    task: TaskOption = "ev_charging",
    version: Annotated[str | None, typer.Option(help="A former champion; the previous one by default.")] = None,
) -> None:
    """Let the champion before answer again. Running endpoints swap it in.

    Example: `ev-platform models rollback --reason "Wrong units in answers about cables."`
    """
    from ev_platform.registry.promotion import rollback

    _tell(task, rollback(_store(), task, reason=reason, by=getpass.getuser(), version=version))


def _tell(task: str, row: Promotion) -> None:
    from ev_platform.registry.note import rewrite_report

    said = {"promoted": "Promoted", "overridden": "Promoted against the gate", "rolled_back": "Rolled back to"}
    say(f"{said[row.decision]} {row.champion_after}; champion before: {row.champion_before or 'none'}.")
    rewrite_report(_store(), task, get_settings().tasks_root)


@models_app.command("prune")
@plain_errors
def models_prune(
    task: TaskOption = "ev_charging",
    keep_last: Annotated[int, typer.Option(min=0, help="How many of the newest versions are kept.")] = 3,
    keep: Annotated[list[str] | None, typer.Option(help="A further version to keep; may be repeated.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else it is only listed.")] = False,
) -> None:
    """Take weights off the disk that no alias, none of the newest versions and no named one needs.

    Example: `ev-platform models prune --keep-last 3 --keep ev_charging@2 --apply`
    """
    from ev_platform.registry.prune import prune

    plan = prune(_store(), task, keep_last=keep_last, keep=keep or [], apply=apply)
    for folder in plan.folders:
        say(folder)
    done = "Removed" if apply else "Would remove (add --apply)"
    versions = f"; no longer loadable: {', '.join(plan.versions)}" if plan.versions else ""
    say(f"{done}: {len(plan.folders)} folders, {plan.n_bytes / 1e6:.1f} MB{versions}.")


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
