"""The release that a server answers with now, and its exchange for another one while it answers.

What belongs here: loading from the registry, following an alias, warming up beside, swapping. What does not: what an
alias is and who may move it (`registry`), and Ray's rolling updates, which start a new process for each version.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.errors import UserError
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.worker import Worker

if TYPE_CHECKING:
    from ev_platform.registry import Release
    from ev_platform.storage import Store

# A look is one stat of one file, some 20 microseconds, or three requests to a shared store; a promotion may well take a
# second to be seen.
POLL_S = 1.0
# A version that could not be taken is tried again after so long, then after twice as long, and so on: its files may
# have been put right, or the memory that it lacked be free again.
RETRY_S = 5.0
LONGEST_RETRY_S = 300.0

_NEVER = object()
_log = logging.getLogger(__name__)

# From the data folder, the folder of task folders, the task and an alias or a version to what answers.
Loader = Callable[[Path, Path, str, str], "Release"]


def split_model(model: str) -> tuple[str, str]:
    """Return the task of a served model, and the alias or the version: `ev_charging` is its champion.

    Args:
        model: `TASK`, `TASK@ALIAS` or `TASK@NUMBER`.

    Raises:
        UserError: If it is none of them.
    """
    task, mark, name = model.partition("@")
    if not task or (mark and not name):
        raise UserError(f"{model!r} names no model: write TASK, TASK@ALIAS or TASK@NUMBER, such as ev_charging@3.")
    if name.isdecimal():
        return task, model
    return task, name or "champion"


def load_from_registry(
    data_root: Path, tasks_dir: Path, task_name: str, name: str, engine_url: str | None = None
) -> Release:
    """Load a registered model; the loader of every server that is no test.

    Args:
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        task_name: Task.
        name: Alias or version.
        engine_url: See `ServingConfig`.

    Raises:
        UserError: If there is no such task or model, or it cannot be served.
    """
    from ev_platform.registry import load_release
    from ev_platform.storage import Store
    from ev_platform.tasks import get_task

    task = get_task(task_name, tasks_dir)
    # Questions of an extractive task may bring their passage; all others need something to search.
    needs_corpus = task.config.type != "extractive_qa"
    return load_release(Store(data_root), task, name, needs_corpus, engine_url)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name in the registry that a server follows.

    Attributes:
        name: Such as `champion`; or a version, which stays, but not with passages that are taken down.
        store: Where the aliases are.
        task: Whose aliases they are.
        load: Loads a version.
    """

    name: str
    store: Store
    task: str
    load: Callable[[str], Release]

    def version(self) -> str:
        """Return the version that the name stands for now.

        Raises:
            UserError: If it stands for none.
        """
        from ev_platform.registry import read_aliases

        if "@" in self.name:
            return self.name
        aliases = read_aliases(self.store, self.task)
        if self.name not in aliases:
            raise UserError(f"Task {self.task} has no {self.name} any more: promote a version.")
        return aliases[self.name]

    def stamp(self) -> object:
        """Return what changes with every write of the aliases; None where there are none that can be read."""
        from ev_platform.registry import alias_file, read_aliases

        try:
            if self.store.is_shared:  # another machine may have promoted: its word is asked for
                return read_aliases(self.store, self.task)
            stat = alias_file(self.store, self.task).stat()
        except (OSError, UserError):
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size  # every write makes a new file

    def taken_down(self) -> int | None:
        """Return what changes when something is taken down in the task; None where nothing ever was."""
        try:
            return (self.store.root / "tables" / "takedowns" / self.task / "CURRENT").stat().st_mtime_ns
        except OSError:
            return None


async def open_release(
    load: Loader, data_root: Path, tasks_dir: Path, model: str, config: ServingConfig
) -> LiveRelease:
    """Load what a server is started for, and try it out.

    Args:
        load: How.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        model: See `split_model`; an alias is followed from then on, a version kept.
        config: Limits.

    Raises:
        UserError: If it cannot be loaded.
    """
    from ev_platform.storage import Store

    task, name = split_model(model)
    load_version = partial(load, data_root, tasks_dir, task)
    alias = Alias(name, Store(data_root), task, load_version)
    live = LiveRelease(await asyncio.to_thread(load_version, name), alias, config)
    try:
        await live.worker.try_out()
    except BaseException:
        live.close()
        raise
    return live


class LiveRelease:
    """Holds the worker that new questions go to.

    Questions that the worker before it has taken are answered by that one; with the last of them it is gone, and its
    weights with it.

    Args:
        release: What answers first.
        alias: What to follow; None for a release that is no registry's.
        config: Limits of its workers.

    Attributes:
        worker: Read anew for each question, and used before anything is awaited.
        alias: See above.
    """

    def __init__(self, release: Release, alias: Alias | None = None, config: ServingConfig | None = None):
        self._config = config or ServingConfig()
        self.worker = Worker(release, self._config)
        self.alias = alias
        self._seen: object = _NEVER
        self._taken_down = alias.taken_down() if alias else None
        self._retry_at = math.inf
        self._pause_s = RETRY_S

    async def follow(self) -> None:
        """Swap whenever the alias names another version that can be loaded and answers; runs until it is cancelled.

        Where something was taken down, the version in place is loaded anew, without its passages.

        Loading and warming up happen beside, in threads; the swap on the event loop that serves the questions.
        """
        while self.alias is not None:
            # No local name here may hold a release: it would outlive the swap.
            has_swapped = await self._swap_if_moved(self.alias)
            await asyncio.sleep(POLL_S)
            if has_swapped:
                await asyncio.to_thread(_give_memory_back)

    async def _swap_if_moved(self, alias: Alias) -> bool:
        stamp = await asyncio.to_thread(alias.stamp), alias.taken_down()
        if stamp == self._seen and time.monotonic() < self._retry_at:
            return False
        if stamp != self._seen:
            self._seen, self._pause_s = stamp, RETRY_S
        self._retry_at = math.inf
        current = self.worker.release.model_version
        try:
            version = await asyncio.to_thread(alias.version)
            if version == current and stamp[1] == self._taken_down:
                return False
            worker = Worker(await asyncio.to_thread(alias.load, version), self._config)
            try:
                await worker.try_out()
            except BaseException:
                worker.close()
                raise
        except UserError as error:
            _log.error("The %s moved, but %s goes on answering: %s", alias.name, current, error)
        except Exception:
            _log.exception("The %s moved, but %s goes on answering, since loading failed:", alias.name, current)
        else:
            old, self.worker, self._taken_down = self.worker, worker, stamp[1]
            old.retire()
            _log.info("%s answers from now on, in the place of %s.", version, current)
            return True
        self._retry_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_RETRY_S)
        return False

    def close(self) -> None:
        """Drop what waits."""
        self.worker.close()


def _give_memory_back() -> None:
    """Let the C library return what is free: left alone, glibc keeps 300 MB more after some swaps of a 135M model."""
    with contextlib.suppress(AttributeError, OSError):  # another library has no such function
        ctypes.CDLL(None).malloc_trim(0)
