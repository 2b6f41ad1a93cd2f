"""The materialization as a Prefect flow.

`ev-platform run` calls it once; `ev-platform schedule` serves it every week and lets the Prefect UI start it with
other parameters. The work itself is Dagster's: one run, in this process, with its own record and checks.
"""

from __future__ import annotations

import re

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from ev_platform.defs.jobs import STAGES
from ev_platform.defs.run import RunResult, materialize
from ev_platform.settings import get_settings


@task(name="materialize", task_run_name="{task_name}")
def _materialize(task_name: str, stages: list[str], force: bool, overrule: str) -> RunResult:
    from ev_platform.definitions import defs

    return materialize(defs, get_settings().data_root, task_name, stages, force=force, overrule=overrule)


@flow(name="materialize-graph", validate_parameters=False)
def materialize_graph(
    task_name: str = "ev_charging", stages: list[str] | None = None, force: bool = False, overrule: str = ""
) -> RunResult:
    """Materialize the asset graph for one task.

    Args:
        task_name: Partition.
        stages: Asset groups; all of them by default.
        force: Compute also what has not changed.
        overrule: Why the run goes on whatever the verdict on the teacher.
    """
    result = _materialize(task_name, list(stages or STAGES), force, overrule)
    create_markdown_artifact(
        key="run-" + re.sub(r"[^a-z0-9]+", "-", task_name.lower()),
        markdown=describe_run(result),
        description=f"What the run of {task_name} did.",
    )
    return result


def describe_run(result: RunResult) -> str:
    """Return what a run did, as Markdown: first what it means for the endpoint, then what was computed."""
    outcome = f"**{result.outcome}**: {result.reason}\n\n" if result.outcome else ""
    return (
        f"{outcome}Dagster run `{result.run_id}`\n\n"
        f"- computed: {', '.join(result.computed) or 'nothing, no change'}\n"
        f"- unchanged: {', '.join(result.unchanged) or 'nothing'}\n"
        f"- checks that did not pass: {', '.join(result.failed_checks) or 'none'}\n"
    )


def serve_weekly(task_name: str, cron: str, timezone: str) -> None:
    """Run the flow on a schedule until stopped; needs a Prefect server (`prefect server start`).

    Args:
        task_name: Partition.
        cron: When.
        timezone: IANA name in which `cron` is read.
    """
    from prefect.schedules import Cron

    materialize_graph.serve(
        name=f"weekly-{task_name}",
        parameters={"task_name": task_name},
        schedule=Cron(cron, timezone=timezone),
        limit=1,  # a run that is still going when the next is due is not overtaken
    )
