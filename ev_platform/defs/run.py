"""Materializing from Python: what the CLI, the Prefect flow and the tests call.

What does not belong here: runs that a Dagster webserver carries out (`submit`), and Dagster's settings (`instance`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from ev_platform.defs.instance import PROCESS_TAG, end_dead_runs, open_instance, write_settings
from ev_platform.defs.jobs import STAGES, select
from ev_platform.defs.stage import FORCE_TAG, QUERY_INTERRUPTED
from ev_platform.errors import UserError

# Dagster captures a step's output into a file; who runs the graph from a terminal wants the progress bars there.
_TERMINAL = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


# What assets tell of a run beside their tables.
DECIDED = {"promotions": ("outcome", "reason"), "adapter": ("kept",), "registered_model": ("kept",)}
_USER_ERROR = "ev_platform.errors.UserError: "
# How a step tells that it was interrupted; DuckDB's words are those of a step that builds no table.
_INTERRUPTS = (
    "KeyboardInterrupt",
    "dagster._core.errors.DagsterExecutionInterruptedError",
    f"RuntimeError: {QUERY_INTERRUPTED}",
)


class RunFailedError(UserError):
    """A run that failed, told in the sentence of the asset or check that failed.

    Attributes:
        run_id: Dagster's id of the run.
        where: The step or check that failed.
        is_final: Whether a person has to act first; else the same run may well pass when it is tried again.
    """

    def __init__(self, sentence: str, run_id: str, where: str, *, is_final: bool):
        super().__init__(sentence)
        self.run_id, self.where, self.is_final = run_id, where, is_final


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one or several runs of a task ended.

    Attributes:
        run_ids: Dagster's ids.
        unchanged: Tables for which nothing had to be computed.
        computed: Tables that have a new version.
        failed_checks: Names of checks that did not pass but did not stop the run.
        outcome: What it means for the endpoint: "promoted", "kept" or "nothing changed"; empty where the run did not
            come to that.
        reason: Why, in a sentence.
        kept: Why the trained model, or its version, was kept though rows changed; empty where it was not so.
    """

    run_ids: tuple[str, ...]
    unchanged: tuple[str, ...]
    computed: tuple[str, ...]
    failed_checks: tuple[str, ...]
    outcome: str = ""
    reason: str = ""
    kept: str = ""


def join_results(results: Sequence[RunResult]) -> RunResult:
    """Return what several runs of one task did together; a table that any of them computed counts as computed."""

    def each(name: str) -> dict[str, None]:
        return dict.fromkeys(value for result in results for value in getattr(result, name))

    computed = each("computed")
    unchanged = tuple(table for table in each("unchanged") if table not in computed)
    decided = next((result for result in reversed(results) if result.outcome), None)
    return RunResult(
        tuple(each("run_ids")),
        unchanged,
        tuple(computed),
        tuple(each("failed_checks")),
        decided.outcome if decided else "",
        decided.reason if decided else "",
        "; ".join(result.kept for result in results if result.kept),
    )


def dagster_home(data_root: Path) -> Path:
    """Return DAGSTER_HOME, by default a folder of the data folder, made if missing.

    Raises:
        UserError: If DAGSTER_HOME is set to a relative path.
    """
    configured = os.environ.get("DAGSTER_HOME")
    if configured and not Path(configured).is_absolute():
        raise UserError(f"DAGSTER_HOME is {configured!r}: set it to an absolute path, or unset it.")
    home = Path(configured) if configured else data_root / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    write_settings(home)
    return home


def check_request(defs: dg.Definitions, tasks: Iterable[str], stages: Iterable[str]) -> None:
    """Say what is wrong with the names of tasks and stages, before anything runs.

    Raises:
        UserError: If there is no such task or stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise UserError(f"There is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    partitions = defs.resolve_job_def("everything").partitions_def
    known = partitions.get_partition_keys() if partitions else []
    for task in tasks:
        if task not in known:
            raise UserError(f"There is no task {task!r}; the tasks are {', '.join(known)}.")


def assets_of(defs: dg.Definitions, stages: Sequence[str]) -> list[dg.AssetKey]:
    """Return the assets of some stages."""
    return sorted(select(*stages).resolve(defs.resolve_asset_graph()))


def run_config(overrule: str) -> dict[str, Any]:
    """Return what is said to a run's steps.

    Args:
        overrule: Why the run goes on whatever the verdict on the teacher; empty where it does not.
    """
    return {"ops": {"examine": {"config": {"overruled_by": overrule}}}} if overrule else {}


def materialize(
    defs: dg.Definitions,
    data_root: Path,
    task: str,
    stages: Sequence[str] = STAGES,
    *,
    force: bool = False,
    overrule: str = "",
    tags: Mapping[str, str] | None = None,
) -> RunResult:
    """Materialize the assets of some stages for one task, in this process.

    Args:
        defs: The graph.
        data_root: Where Dagster's own state goes when DAGSTER_HOME is unset.
        task: Partition.
        stages: Names of groups, such as `collect`.
        force: Compute also what has not changed.
        overrule: Why the run goes on whatever the verdict on the teacher.
        tags: Of the run, in Dagster's UI.

    Raises:
        RunFailedError: With the sentence of the asset or check that failed.
        UserError: If there is no such task or stage.
        KeyboardInterrupt: If a signal ended the run; Dagster has written it down and would say no more than "failed".
    """
    check_request(defs, [task], stages)
    with open_instance(dagster_home(data_root), _TERMINAL) as instance:
        end_dead_runs(instance)
        has_examination = "dataset" in stages
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key=task,
            asset_selection=assets_of(defs, stages),
            tags={PROCESS_TAG: str(os.getpid()), **(tags or {}), **({FORCE_TAG: "true"} if force else {})},
            raise_on_error=False,
            run_config={"loggers": {"steps": {}}, **run_config(overrule if has_examination else "")},
        )
        if not result.success:
            raise _failure(result)
        unchanged, computed, decided = [], [], {}
        for event in result.get_asset_materialization_events():
            materialization = event.step_materialization_data.materialization
            is_unchanged = materialization.metadata["unchanged"].value
            (unchanged if is_unchanged else computed).append(materialization.asset_key.path[-1])
            told = materialization.metadata
            names = DECIDED.get(materialization.asset_key.path[-1], ())
            add_decided(decided, {name: str(told[name].value) for name in names if name in told})
        failed = [e.check_name for e in result.get_asset_check_evaluations() if not e.passed]
        return RunResult((result.run_id,), tuple(unchanged), tuple(computed), tuple(failed), **decided)


def add_decided(decided: dict[str, str], told: Mapping[str, str]) -> None:
    """Add what an asset told (see `DECIDED`) to what others did; model and version may each say why it was kept."""
    for name, value in told.items():
        decided[name] = f"{decided[name]}; {value}" if name in decided else value


def failure_of(run_id: str, step: str, messages: Sequence[str]) -> RunFailedError:
    """Return the error of a run from its failed step.

    Args:
        run_id: Dagster's id of the run.
        step: The step's key.
        messages: `module.Class: words` of the step's exception and its causes, outermost first: Dagster wraps what a
            step raises, and a UserError may have a cause of its own, so the sentence is in between.
    """
    for message in messages:
        if message.startswith(_USER_ERROR):
            return RunFailedError(message.removeprefix(_USER_ERROR), run_id, step, is_final=True)
    if _is_interrupt(messages):
        said = f"The run was interrupted at {step}; what it computed before is kept."
        return RunFailedError(said, run_id, step, is_final=True)
    return RunFailedError(f"{step}: {messages[-1] if messages else 'failed'}", run_id, step, is_final=False)


def _is_interrupt(messages: Sequence[str]) -> bool:
    return any(message.startswith(_INTERRUPTS) for message in messages)


def _failure(result: Any) -> RunFailedError:
    failed = {event.step_key: _messages(event) for event in result.all_events if event.is_step_failure}
    if any(_is_interrupt(messages) for messages in failed.values()):
        raise KeyboardInterrupt
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.blocking and evaluation.description:
            return RunFailedError(evaluation.description, result.run_id, evaluation.check_name, is_final=True)
    for step, messages in failed.items():
        return failure_of(result.run_id, step, messages)
    said = "The run failed before any step started; see the Dagster log above."
    return RunFailedError(said, result.run_id, "the run", is_final=False)


def _messages(event: dg.DagsterEvent) -> list[str]:
    error, found = event.step_failure_data.error, []
    while error is not None:
        found.append(error.message.strip())
        error = error.cause
    return found
