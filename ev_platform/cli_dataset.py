"""The commands on a task's dataset: what is in it, what it will cost, exports, and review by people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import get_task
from ev_platform.terminal import TaskOption, console, plain_errors, quiet, say

dataset_app = typer.Typer(
    no_args_is_help=True,
    help="Datasets: what they cost, what is in them, exports, reviews.\n\n"
    "Example: `ev-platform dataset show --task ev_charging`",
)


@dataset_app.command("show")
@plain_errors
def show(task: TaskOption = "ev_charging") -> None:
    """Show what is in a dataset: rows by origin and kind, coverage, rejections by reason, cost.

    Example: `ev-platform dataset show --task ev_charging`
    """
    from ev_platform.dataset.steps import reviewable
    from ev_platform.storage import Store

    settings = get_settings()
    store, chosen = Store(settings.data_root), get_task(task, settings.tasks_root)
    name = chosen.name
    examples = store.read("examples", name)
    if examples.is_empty():
        raise UserError(
            f"The task {name} has no dataset yet: run `ev-platform run --task {name} --stage dataset` first."
        )
    _print_counts("Examples", examples, "split", "origin", "kind")
    _print_counts("Passages or texts", store.read("coverage", name), "status")
    _print_counts("Rejected", store.read("rejected_examples", name), "reject_reason")
    for row in store.read("teacher_evaluation", name).iter_rows(named=True):
        say(f"Teacher {row['teacher']}: {row['verdict']}. {row['reason']}")
    calls = store.read("teacher_calls", name)
    _print_counts("Teacher's calls", calls, "purpose", "model", "status", cost=True)
    say(f"Paid to teachers: {calls['cost_usd'].sum():.4f} USD")
    feedback, reviews = store.read("feedback_candidates", name), store.read("reviews", name)
    if feedback.height:
        is_decided = pl.col("example_id").is_in(reviews["example_id"].to_list())
        decided = pl.when(is_decided).then(pl.lit("yes")).otherwise(pl.lit("no, see review-export --feedback"))
        _print_counts("From feedback", feedback.with_columns(decided.alias("decided")), "kind", "decided")
    if reviews.height:
        _print_agreement(reviews, reviewable(chosen, store))


def _print_counts(title: str, frame: pl.DataFrame, *columns: str, cost: bool = False) -> None:
    if frame.is_empty():
        return
    figures = [pl.len().alias("n"), *([pl.col("cost_usd").sum()] if cost else [])]
    counted = frame.group_by(columns).agg(figures).sort(["n", *columns], descending=[True, *[False] * len(columns)])
    table = Table(*columns, *(["n", "USD"] if cost else ["n"]), title=f"{title}: {frame.height}", title_justify="left")
    for row in counted.iter_rows():
        cells = [f"{cell:.4f}" if isinstance(cell, float) else escape(str(cell)) for cell in row]
        table.add_row(*cells)
    console.print(table)


def _print_agreement(reviews: pl.DataFrame, examples: pl.DataFrame) -> None:
    from ev_platform.dataset.agreement import agreement

    figures = agreement(reviews, examples)
    for title, frame in (("Reviewed", figures["by_kind"]), ("Agreement between reviewers", figures["between"])):
        if frame.is_empty():
            continue
        table = Table(*frame.columns, title=title, title_justify="left")
        for row in frame.iter_rows():
            cells = ["" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
            table.add_row(*map(escape, cells))
        console.print(table)
    n_lost = reviews["example_id"].n_unique() - figures["by_kind"]["n"].tail(1).sum()
    if n_lost:
        say(f"Reviewed, but not made any more, since their passage, text or teacher changed: {n_lost}")


@dataset_app.command("estimate")
@plain_errors
def estimate_cost(task: TaskOption = "ev_charging") -> None:
    """Say what writing or labelling will cost, before anything is paid; replies that are stored cost nothing.

    Example: `ev-platform dataset estimate --task ev_charging`
    """
    quiet()
    from ev_platform.dataset.generate import plan_candidates
    from ev_platform.dataset.steps import read_task_rows, read_unlabelled
    from ev_platform.storage import Store
    from ev_platform.tasks.types import get_task_type
    from ev_platform.teachers.ask import Budget, Ledger
    from ev_platform.teachers.estimate import estimate
    from ev_platform.teachers.language_model import LanguageModelTeacher
    from ev_platform.teachers.ledger import ledger_path
    from ev_platform.teachers.open import open_client
    from ev_platform.teachers.prices import price_of

    settings = get_settings()
    chosen = get_task(task, settings.tasks_root)
    config = chosen.config.teacher
    if config.provider == "offline":
        say(f"The teacher of {chosen.name} is offline: it costs nothing.")
        return
    store = Store(settings.data_root)
    client, price, ledger = open_client(chosen), price_of(config), Ledger(ledger_path(settings.data_root))
    teacher = LanguageModelTeacher(client, ledger, config, price, Budget(config.max_cost_usd))
    rows, texts = read_task_rows(chosen), read_unlabelled(chosen)
    chunks, documents, dropped = (
        store.read(table, chosen.name) for table in ("chunks", "clean_documents", "dropped_documents")
    )
    if get_task_type(chosen.config.type).has_corpus and store.current("chunks", chosen.name) is None:
        raise UserError(
            f"The task {chosen.name} has no passages yet to ask about: run `ev-platform run --task {chosen.name} "
            "--stage collect --stage corpus` first."
        )
    plan = plan_candidates(chosen, rows, texts, chunks, documents, dropped, teacher.name)
    calls = [*teacher.plan_generation(plan.brief, plan.questions), *teacher.plan_labels(plan.brief, plan.texts)]
    said = estimate(calls, client, ledger, price, config)
    how = "in batches" if said.is_batch else "one by one"
    say(f"{said.n_calls} calls to write or label: {said.n_stored} are stored, {said.n_asked} will be asked {how}")
    if said.n_interrupted:
        say(f"Of the others, {said.n_interrupted} were left under way by an earlier run: batches of it are collected,")
        say("single calls are asked again with teacher.resend_interrupted only, as they may be paid twice then")
    say(f"Tokens: {said.n_input_tokens} in, {said.n_output_tokens} out, by {said.output_basis}")
    say(f"Expected: {said.expected_usd:.4f} USD, at worst {said.worst_usd:.4f}")
    say(f"The cap of {said.cap_usd:g} USD pays for {said.n_within_cap} of them; examination and checks come on top")


@dataset_app.command("export")
@plain_errors
def export(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    task: TaskOption = "ev_charging",
    form: Annotated[
        str, typer.Option("--format", help="instruction, chat, inst (a chat template's text), squad, csv or hf.")
    ] = "hf",
    tokenizer: Annotated[
        str | None, typer.Option(help="For inst: folder or hub name; the task's base model by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export there.")] = False,
) -> None:
    """Write the dataset into a folder, a file for each split, in a form that other tools read.

    Example: `ev-platform dataset export --task ev_charging --format hf --out ev_charging_dataset`
    """
    quiet()
    from ev_platform.dataset.export import export_dataset
    from ev_platform.storage import Store

    settings = get_settings()
    chosen = get_task(task, settings.tasks_root)
    done = export_dataset(Store(settings.data_root), chosen, form, out, tokenizer=tokenizer, force=force)
    counts = ", ".join(f"{n} {split}" for split, n in done.n_rows.items())
    say(f"Wrote {done.folder}: {counts} rows.")
    if done.left_out:
        say("Left out: " + ", ".join(f"{n} {reason}" for reason, n in done.left_out.items()))


@dataset_app.command("review-export")
@plain_errors
def review_export(
    out: Annotated[Path, typer.Option(help="File to write, .csv or .parquet.")],
    task: TaskOption = "ev_charging",
    n: Annotated[int, typer.Option(min=1, help="Most rows.")] = 50,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 17,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="What people said of served answers, and nobody has decided on yet.")
    ] = False,
) -> None:
    """Write a sample of the training examples, or of the feedback, for people to accept, edit or reject.

    Example: `ev-platform dataset review-export --task ev_charging --n 50 --out review.csv`
    """
    from ev_platform.dataset.review import export_feedback, export_sample
    from ev_platform.dataset.steps import feedback_build
    from ev_platform.storage import Store

    settings = get_settings()
    store, chosen = Store(settings.data_root), get_task(task, settings.tasks_root)
    name = chosen.name
    chunks, documents = (store.read(table, name) for table in ("chunks", "clean_documents"))
    if feedback:
        store.build(["feedback_candidates"], name, inputs={}, **feedback_build(chosen, store))
        candidates, reviews = (store.read(table, name) for table in ("feedback_candidates", "reviews"))
        n_written = export_feedback(candidates, reviews, chunks, documents, out, n=n, seed=seed)
    else:
        n_written = export_sample(store.read("examples", name), chunks, documents, out, n=n, seed=seed)
    say(f"Wrote {n_written} rows to {out}: fill in decision (accept, edit or reject), edited_question or edited_answer")
    say(f"for an edit, and reviewer; then `ev-platform dataset review-import --task {name} {out}`")


@dataset_app.command("review-import")
@plain_errors
def review_import(
    file: Annotated[Path, typer.Argument(help="The sample, filled in.")],
    task: TaskOption = "ev_charging",
    reviewer: Annotated[str | None, typer.Option(help="Who decided, where the file does not say.")] = None,
) -> None:
    """Add what people decided to the earlier reviews; the next run takes it into the dataset.

    Example: `ev-platform dataset review-import --task ev_charging review.csv`
    """
    from ev_platform.dataset.agreement import merge_reviews
    from ev_platform.dataset.review import read_review
    from ev_platform.dataset.steps import reviewable
    from ev_platform.identity import frame_fingerprint
    from ev_platform.storage import Store, now

    settings = get_settings()
    store, chosen = Store(settings.data_root), get_task(task, settings.tasks_root)
    name, known = chosen.name, reviewable(chosen, store)
    earlier = store.read("reviews", name)
    new = read_review(file, known, now(), reviewer)
    merged = merge_reviews(earlier, new)
    if frame_fingerprint("reviews", merged) == frame_fingerprint("reviews", earlier):
        say(f"Nothing new in {file}: {earlier.height} reviews.")
        return
    store.publish("reviews", name, merged)
    say(f"Read {new.height} reviews from {file}; there are {merged.height} now.")
    _print_agreement(merged, known)
    say(f"Take them into the dataset: `ev-platform run --task {name} --stage dataset`")
