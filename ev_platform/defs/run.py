"""Materializing from Python: what the CLI, the Prefect flow and the tests call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from ev_platform.defs.jobs import STAGES, select
from ev_platform.defs.stage import FORCE_TAG
from ev_platform.errors import UserError

# Dagster captures a step's output into a file; who runs the graph from a terminal wants the progress bars there.
_TERMINAL = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}


_USER_ERROR = "ev_platform.errors.UserError: "


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: Dagster's id.
        unchanged: Tables for which nothing had to be computed.
        computed: Tables that have a new version.
        failed_checks: Names of checks that did not pass but did not stop the run.
        outcome: What it means for the endpoint: "promoted", "kept" or "nothing changed"; empty where the run did not
            come to that.
        reason: Why, in a sentence.
    """

    run_id: str
    unchanged: tuple[str, ...]
    computed: tuple[str, ...]
    failed_checks: tuple[str, ...]
    outcome: str = ""
    reason: str = ""


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
    settings = home / "dagster.yaml"
    if not settings.exists():
        # No first-run dialog and no usage reports: the UI has to work without a network.
        settings.write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    return home


def materialize(
    defs: dg.Definitions,
    data_root: Path,
    task: str,
    stages: Sequence[str] = STAGES,
    *,
    force: bool = False,
    overrule: str = "",
) -> RunResult:
    """Materialize the assets of some stages for one task, in this process.

    Args:
        defs: The graph.
        data_root: Where Dagster's own state goes when DAGSTER_HOME is unset.
        task: Partition.
        stages: Names of groups, such as `collect`.
        force: Compute also what has not changed.
        overrule: Why the run goes on whatever the verdict on the teacher.

    Raises:
        UserError: With the sentence of the asset or check that failed.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise UserError(f"There is no stage {sorted(unknown)[0]!r}; the stages are {', '.join(STAGES)}.")
    with dg.DagsterInstance.from_ref(
        InstanceRef.from_dir(str(dagster_home(data_root)), overrides=_TERMINAL)
    ) as instance:
        known = defs.resolve_job_def("everything").partitions_def
        if known is None or task not in known.get_partition_keys():
            raise UserError(
                f"There is no task {task!r}; the tasks are {', '.join(known.get_partition_keys() if known else [])}."
            )
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key=task,
            asset_selection=_asset_keys(defs, stages),
            tags={FORCE_TAG: "true"} if force else None,
            raise_on_error=False,
            run_config={
                "loggers": {"steps": {}},
                **({"ops": {"examine": {"config": {"overruled_by": overrule}}}} if overrule else {}),
            },
        )
        if not result.success:
            raise UserError(_failure(result))
        unchanged, computed, decided = [], [], {}
        for event in result.get_asset_materialization_events():
            materialization = event.step_materialization_data.materialization
            is_unchanged = materialization.metadata["unchanged"].value
            (unchanged if is_unchanged else computed).append(materialization.asset_key.path[-1])
            if materialization.asset_key.path[-1] == "promotions":
                decided = {name: str(materialization.metadata[name].value) for name in ("outcome", "reason")}
        failed = [e.check_name for e in result.get_asset_check_evaluations() if not e.passed]
        return RunResult(result.run_id, tuple(unchanged), tuple(computed), tuple(failed), **decided)


def _asset_keys(defs: dg.Definitions, stages: Sequence[str]) -> list[dg.AssetKey]:
    graph = defs.resolve_asset_graph()
    return sorted(select(*stages).resolve(graph))


def _failure(result: Any) -> str:
    """Return the sentence behind a failed run: of a blocking check, of a `UserError`, or the exception's own."""
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.blocking and evaluation.description:
            return evaluation.description
    for event in result.all_events:
        if event.is_step_failure:
            # Dagster wraps what a step raises, and a UserError may have a cause of its own: the sentence is in between.
            chain = [event.step_failure_data.error]
            while chain[-1] is not None and chain[-1].cause is not None:
                chain.append(chain[-1].cause)
            messages = [error.message.strip() for error in chain if error is not None]
            for message in messages:
                if message.startswith(_USER_ERROR):
                    return message.removeprefix(_USER_ERROR)
            if messages:
                return f"{event.step_key}: {messages[-1]}"
    return "The run failed before any step started; see the Dagster log above."
