"""One run at a time for each task: a lock of the operating system's, and who holds it.

A killed process holds nothing, so no lock is ever stale; tasks do not wait for one another. It binds the flow's runs on
one machine. What does not belong here: who changes the registry (`registry.aliases`), which has a lock of its own.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.storage import now

# A full run of a large task, with its teacher's batches, takes a day.
LONGEST_WAIT_S = 24 * 3600


@contextmanager
def one_run(
    data_root: Path, task: str, tell: Callable[[str], None], *, wait_s: float = LONGEST_WAIT_S
) -> Iterator[None]:
    """Hold a task's turn to run while the block runs; wait for whoever holds it.

    Args:
        data_root: The data folder.
        task: Partition.
        tell: Is given a sentence about who is waited for.
        wait_s: Longest wait.

    Raises:
        UserError: If the other run has not ended by then.
    """
    folder = data_root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / f"{task}.lock"), folder / f"{task}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"A run of {task} is going on ({_holder(holder)}): waiting until it ends.")
        try:
            lock.acquire(timeout=wait_s)
        except Timeout as error:
            raise UserError(
                f"A run of {task} is still going on after {wait_s:g} seconds ({_holder(holder)}): wait for it, or stop "
                "that process; what it computed is kept."
            ) from error
    try:
        who = {"pid": os.getpid(), "host": platform.node(), "started_at": f"{now():%Y-%m-%d %H:%M:%S} UTC"}
        write_atomic(holder, json.dumps(who).encode())
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    try:
        who = json.loads(file.read_text())
        return f"process {who['pid']} on {who['host']}, since {who['started_at']}"
    except (OSError, ValueError, KeyError):
        return "it has just begun"
