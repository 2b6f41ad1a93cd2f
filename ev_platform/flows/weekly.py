"""The materialization as a Prefect flow.

`ev-platform run` calls it once; `ev-platform schedule` serves it every week and lets the Prefect UI start it with
other parameters. The work itself is Dagster's: one run for each stage, with its own record and checks, in this process
or, where EV_DAGSTER_URL answers, in the webserver's.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_client, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter
from prefect.context import FlowRunContext
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Completed

from ev_platform.defs.jobs import STAGES
from ev_platform.defs.run import RunFailedError, RunResult, assets_of, check_request, join_results, materialize
from ev_platform.defs.stage import FLOW_TAG
from ev_platform.defs.submit import is_reachable, run_page, submit
from ev_platform.errors import UserError
from ev_platform.flows import DEFAULT_TASK
from ev_platform.flows.alive import end_dead_flow_runs, marked
from ev_platform.flows.lock import one_run
from ev_platform.flows.notify import TasksFailedError, tell_of_failure
from ev_platform.settings import get_settings
from ev_platform.terminal import say

# A host that is down for a moment, a GPU that another process has filled: tried again after half a minute and after
# five. What was computed is kept, so the stage goes on at the asset that failed.
RETRY_DELAYS_S = (30, 300)
_log = logging.getLogger(__name__)


def _may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether trying again can help: not after what a person has to put right."""
    error = state.result(raise_on_failure=False)
    return not error.is_final if isinstance(error, RunFailedError) else not isinstance(error, UserError)


@task(
    name="stage",
    task_run_name="{task_name}: {stage}",
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=list(RETRY_DELAYS_S),
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def _stage(task_name: str, stage: str, force: bool, overrule: str) -> RunResult:
    from ev_platform.definitions import defs

    settings, tags = get_settings(), {FLOW_TAG: str(this_flow_run.id)}
    url = settings.dagster_url
    try:
        if url and is_reachable(url):
            assets = [key.path[-1] for key in assets_of(defs, [stage])]
            result = submit(url, task_name, assets, force=force, overrule=overrule, tags=tags)
        else:
            result = materialize(
                defs, settings.data_root, task_name, [stage], force=force, overrule=overrule, tags=tags
            )
    except RunFailedError as error:
        _write_artifact(f"{task_name} {stage}", f"**failed** at {error.where}\n\n{link_to_run(error.run_id, url)}\n")
        raise
    _write_artifact(f"{task_name} {stage}", describe_run(result, url))
    return result


def _write_artifact(name: str, markdown: str) -> None:
    key = "run-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
    create_markdown_artifact(key=key, markdown=markdown, description=f"What the run of {name} did.")


@flow(name="materialize-graph", on_failure=[tell_of_failure], on_crashed=[tell_of_failure])
def materialize_graph(
    tasks: list[str] | None = None, stages: list[str] | None = None, force: bool = False, overrule: str = ""
) -> dict[str, RunResult]:
    """Materialize the asset graph, task after task, stage after stage.

    Args:
        tasks: Partitions; `ev_charging` by default. One that fails does not keep the others from running.
        stages: Asset groups, in the order of the data whatever the order here; all of them by default.
        force: Compute also what has not changed.
        overrule: Why the run goes on whatever the verdict on the teacher.

    Returns:
        What was done for each task.

    Raises:
        UserError: With what stopped the task, or each of the tasks, that failed.
    """
    from ev_platform.definitions import defs

    data_root = get_settings().data_root
    _end_dead(data_root)  # first: a killed run that is due as well does no work
    if _is_overtaken():
        # A returned state is the flow run's; the type is that of a run that did its work.
        said = "Missed while nothing was running; a later run of the schedule is due and does its work."
        return Completed(name="Skipped", message=said)  # type: ignore[return-value]
    tasks = list(dict.fromkeys(tasks or [DEFAULT_TASK]))
    check_request(defs, tasks, stages or ())
    wanted = [stage for stage in STAGES if stages is None or stage in stages]
    done: dict[str, RunResult] = {}
    failed: dict[str, Exception] = {}
    with marked(data_root, str(this_flow_run.id)):
        for name in tasks:
            try:
                with one_run(data_root, name, say):
                    done[name] = join_results([_stage(name, stage, force, overrule) for stage in wanted])
            except Exception as error:
                if len(tasks) == 1:
                    raise
                failed[name] = error
    if failed:
        raise TasksFailedError(failed, len(tasks))
    return done


def _end_dead(data_root: Path) -> None:
    for run in end_dead_flow_runs(data_root):
        try:
            tell_of_failure(materialize_graph, run, run.state)
        except Exception as problem:
            # The run of today is not to fail for it. Not the error's own words, which may hold the address.
            _log.warning("Nobody was told that %s crashed (%s)", run.name, type(problem).__name__)


def _is_overtaken() -> bool:
    """Return whether this run was made by the schedule and a later one of the same schedule is due as well.

    Runs that a server had planned before it went down are all due when it is back: only the newest does the work.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.deployment_id is None or run.expected_start_time is None:
        return False
    due = {
        "deployment_id": {"any_": [run.deployment_id]},
        "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
        "expected_start_time": {
            "after_": run.expected_start_time + timedelta(microseconds=1),
            "before_": datetime.now(UTC),
        },
    }
    with get_client(sync_client=True) as client:
        return bool(client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(due), limit=1))


def link_to_run(run_id: str, url: str | None) -> str:
    """Return, as Markdown, a link to a run's page in Dagster's UI; its id where no address is known."""
    return f"Dagster run [{run_id}]({run_page(url, run_id)})" if url else f"Dagster run `{run_id}`"


def describe_run(result: RunResult, url: str | None = None) -> str:
    """Return what a run did, as Markdown: first what it means for the endpoint, then what was computed.

    Args:
        result: Of the run.
        url: Of Dagster's UI.
    """
    outcome = f"**{result.outcome}**: {result.reason}\n\n" if result.outcome else ""
    outcome += f"{result.kept}\n\n" if result.kept else ""
    links = "\n".join(link_to_run(run_id, url) for run_id in result.run_ids)
    return (
        f"{outcome}{links}\n\n"
        f"- computed: {', '.join(result.computed) or 'nothing, no change'}\n"
        f"- unchanged: {', '.join(result.unchanged) or 'nothing'}\n"
        f"- checks that did not pass: {', '.join(result.failed_checks) or 'none'}\n"
    )


def serve_weekly(tasks: list[str], cron: str, timezone: str) -> None:
    """Run the flow on a schedule until stopped; needs a Prefect server (`prefect server start`).

    Args:
        tasks: Partitions.
        cron: When.
        timezone: IANA name in which `cron` is read.

    Raises:
        UserError: If the schedule is not one, a task is unknown, or no server is named.
    """
    from prefect.schedules import Cron
    from prefect.settings import PREFECT_API_URL
    from pydantic import ValidationError

    from ev_platform.definitions import defs

    check_request(defs, tasks, ())
    if not PREFECT_API_URL.value():
        raise UserError(
            "No Prefect server is named: start one with `prefect server start`, then "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`."
        )
    _end_dead(get_settings().data_root)  # of a service that was killed with its run
    try:
        schedule = Cron(cron, timezone=timezone)
        materialize_graph.serve(
            name=f"weekly-{'-'.join(tasks)}",
            parameters={"tasks": tasks},
            schedule=schedule,
            limit=1,  # a run that is still going when the next is due is not overtaken
            pause_on_shutdown=False,  # the server would delete what comes due until the next start
        )
    except ValidationError as error:
        raise UserError(f"{cron!r} in {timezone!r} is no schedule: {error.errors()[0]['msg']}.") from error
