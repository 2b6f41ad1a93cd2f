"""The commands that start runs: once, or every week.

What does not belong here: the flow itself (`flows`), and the graph (`defs`).
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from rich.markup import escape

from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, quiet

TasksOption = Annotated[list[str], typer.Option("--task", help="Name of the task; may be repeated.")]


@plain_errors
def run(
    task: TasksOption = ["ev_charging"],  # noqa: B006 - typer copies it
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be repeated. All of them by default.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Compute also what has not changed.")] = False,
    overrule: Annotated[str, typer.Option(help="Why the run goes on whatever the verdict on the teacher.")] = "",
) -> None:
    """Materialize the graph, as the weekly flow does; what was computed before is kept.

    Example: `ev-platform run --task ev_charging --stage collect --stage corpus`
    """
    quiet()
    from ev_platform.definitions import defs
    from ev_platform.defs.run import check_request

    check_request(defs, task, stage or ())  # before Prefect is started, which takes ten seconds
    from ev_platform.flows.weekly import materialize_graph

    started = begun = time.monotonic()

    def begin(flow: object, flow_run: object, state: object) -> None:
        nonlocal begun
        begun = time.monotonic()

    flow = materialize_graph.with_options(on_running=[begin])  # where no server is named, Prefect starts one first
    for name, result in flow(tasks=task, stages=stage, force=force, overrule=overrule).items():
        if len(task) > 1:
            console.rule(escape(name))
        console.print(f"Computed: {', '.join(result.computed) or 'nothing, no change'}", soft_wrap=True)
        if result.unchanged:
            console.print(f"Unchanged: {', '.join(result.unchanged)}", soft_wrap=True)
        if result.kept:
            console.print(f"Kept: {escape(result.kept)}.", soft_wrap=True, highlight=False)
        for check in result.failed_checks:
            console.print(f"[yellow]Check {check} did not pass; the run went on.[/]")
        _print_scores(name)
        if result.outcome:
            console.print(f"[bold]{result.outcome}[/]: {escape(result.reason)}", soft_wrap=True, highlight=False)
    ended = time.monotonic()
    console.print(f"{ended - started:.0f} s, {ended - begun:.0f} s of it since Prefect began the flow", highlight=False)


@plain_errors
def schedule(
    task: TasksOption = ["ev_charging"],  # noqa: B006
    cron: Annotated[str, typer.Option(help="When, as a cron line.")] = "0 4 * * 1",
    timezone: Annotated[str, typer.Option(help="IANA time zone of the cron line.")] = "UTC",
) -> None:
    """Run the flow every week, until stopped. Needs a Prefect server: `prefect server start`.

    Example: `ev-platform schedule --task ev_charging --cron "0 4 * * 1" --timezone Europe/Berlin`
    """
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")  # a service tells what it does, to its log and to the UI
    quiet()
    from ev_platform.flows.weekly import serve_weekly

    serve_weekly(task, cron, timezone)


def _print_scores(task: str) -> None:
    from ev_platform.evaluation.report import print_table
    from ev_platform.storage import Store

    metrics = Store(get_settings().data_root).read("eval_report", task)
    if metrics.height:
        console.print(print_table(metrics))
