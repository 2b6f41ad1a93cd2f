"""The command that says how good a task's model is: verdict, systems with their intervals, where the page lies."""

from __future__ import annotations

from typing import Annotated

import typer

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.tasks import get_task
from ev_platform.terminal import TaskOption, console, plain_errors, quiet, say


@plain_errors
def report(
    task: TaskOption = "ev_charging",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures of the page as JSON.")] = False,
    benchmark_card: Annotated[
        bool, typer.Option("--benchmark-card", help="Print the card of the test rows (Markdown) instead.")
    ] = False,
) -> None:
    """Print the verdict on a task's last evaluation and every system's scores, and write the page anew.

    Example: `ev-platform report --task ev_charging`
    """
    quiet()
    from ev_platform.evaluation import pages
    from ev_platform.evaluation.report import print_abstention, print_table
    from ev_platform.storage import Store

    settings = get_settings()
    store, chosen = Store(settings.data_root), get_task(task, settings.tasks_root)
    if benchmark_card:
        versions = store.read("benchmark_versions", chosen.name)
        if versions.is_empty():
            raise UserError(
                f"The benchmark of {chosen.name} has no version yet: run "
                f"`ev-platform run --task {chosen.name} --stage evaluation`."
            )
        typer.echo(versions.item(-1, "card"))
        return
    told = pages.read_report(store, chosen)
    if as_json:
        typer.echo(pages.to_json(told))
        return
    page, verdict = pages.write_report(store, chosen)
    say(f"{told['model_version'] or chosen.name}: {verdict.verdict}. {verdict.reason}")
    if told["gate"] and told["gate"]["decision"]:
        say(f"Gate: {told['gate']['decision']['decision'].replace('_', ' ')}. {told['gate']['decision']['reason']}")
    console.print(print_table(store.read("eval_report", chosen.name)))
    if told["abstention"] and told["abstention"]["min_score"] is None:
        say(f"Never abstains by score. {told['abstention']['reason']}")
    elif told["abstention"]:
        console.print(print_abstention(told["abstention"]))
    say(f"Report: {page}")
