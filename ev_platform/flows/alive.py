"""Which flow runs go on, and what becomes of those whose process was killed: nobody else tells Prefect of it.

What does not belong here: whose turn it is (`lock`), and Dagster's runs (`defs.instance`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import psutil
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_SAID = "The process of this run ended without a word: it was killed."


@contextmanager
def marked(data_root: Path, flow_run_id: str) -> Iterator[None]:
    """Show, while the block runs, that a flow run goes on: a lock of the operating system's, which ends with us.

    Args:
        data_root: The data folder.
        flow_run_id: Prefect's id.
    """
    mark = _folder(data_root) / flow_run_id
    mark.parent.mkdir(parents=True, exist_ok=True)
    beside = mark.with_name(f".tmp-{flow_run_id}")
    with FileLock(beside):
        beside.rename(mark)  # held before anybody sees it
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def end_dead_flow_runs(data_root: Path) -> list[FlowRun]:
    """Let Prefect show as crashed the flow runs of this machine whose process is no more, with their stages.

    Args:
        data_root: The data folder.

    Returns:
        Those runs, in the state that they now have.
    """
    _end_orphaned_servers()
    dead = []
    for mark in sorted(_folder(data_root).glob("[!.]*")):
        with suppress(Timeout), FileLock(mark, timeout=0):
            dead += _end(UUID(mark.name))
            mark.unlink(missing_ok=True)
    return dead


def _folder(data_root: Path) -> Path:
    return data_root / "runs" / "flow_runs"


def _end(flow_run_id: UUID) -> list[FlowRun]:
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:  # of a server that is no longer asked
            return []
        of_run = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
        for stage in client.read_task_runs(flow_run_filter=of_run):
            if stage.state is None or not stage.state.is_final():
                client.set_task_run_state(stage.id, Crashed(message=_SAID), force=True)
        if run.state is not None and run.state.is_final():
            return []
        client.set_flow_run_state(flow_run_id, Crashed(message=_SAID), force=True)
        return [client.read_flow_run(flow_run_id)]


def _end_orphaned_servers() -> None:
    """End the servers that Prefect starts for one process, where that process was killed: they would stay for ever."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            own = process.environ()
            is_ours = own.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME")
            if own.get("PREFECT__SERVER_EPHEMERAL") and is_ours and _is_orphan(process):
                process.terminate()


def _is_orphan(process: psutil.Process) -> bool:
    parent = process.parent()
    if parent is None:
        return True
    try:
        # Whoever takes an orphan over, be it init or a user's systemd, is no Python. The number 1 says nothing: in a
        # container it may be the run itself.
        return parent.exe() != process.exe()
    except psutil.AccessDenied:
        return parent.pid == 1  # init is root's
