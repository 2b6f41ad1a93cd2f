"""The release that a server answers with now, and its exchange for another one while it answers.

What belongs here: loading from the registry, following an alias, warming up beside, swapping. What does not: what an
alias is and who may move it (`registry`), and Ray's rolling updates, which start a new process for each version.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.errors import UserError
from ev_platform.serving.schemas import ApiError
from ev_platform.serving.worker import Worker, answer_question

if TYPE_CHECKING:
    from ev_platform.registry import Release
    from ev_platform.storage import Store

# A look is one stat of one file, some 20 microseconds; a promotion may well take a second to be seen.
POLL_S = 1.0

_WARM_UP = "What can you tell me?"
_NEVER = object()
_log = logging.getLogger(__name__)

# From the data folder, the folder of task folders, the task and an alias or a version to what answers.
Loader = Callable[[Path, Path, str, str], "Release"]


def load_from_registry(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load a registered model; the loader of every server that is no test.

    Raises:
        UserError: If there is no such task or model, or it cannot be served.
    """
    from ev_platform.registry import load_release
    from ev_platform.storage import Store
    from ev_platform.tasks import get_task

    return load_release(Store(data_root), get_task(task_name, tasks_dir), name)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name in the registry that a server follows.

    Attributes:
        name: Such as `champion`.
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

        aliases = read_aliases(self.store, self.task)
        if self.name not in aliases:
            raise UserError(f"Task {self.task} has no {self.name} any more: promote a version.")
        return aliases[self.name]

    def stamp(self) -> tuple[int, int, int] | None:
        """Return what changes with every write of the aliases; None where there are none that can be read."""
        from ev_platform.registry import alias_file

        try:
            stat = alias_file(self.store, self.task).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size  # every write makes a new file


def open_release(
    load: Loader, data_root: Path, tasks_dir: Path, task_name: str, release_name: str | None
) -> LiveRelease:
    """Load what a server is started for.

    Args:
        load: How.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        task_name: Task.
        release_name: An alias, which is followed from then on, or a version (`ev_charging@3`), which is kept; None is
            the champion.

    Raises:
        UserError: If it cannot be loaded.
    """
    from ev_platform.storage import Store

    name = release_name or "champion"
    load_version = partial(load, data_root, tasks_dir, task_name)
    alias = None if "@" in name else Alias(name, Store(data_root), task_name, load_version)
    return LiveRelease(load_version(name), alias)


class LiveRelease:
    """Holds the worker that new questions go to.

    Questions that the worker before it has taken are answered by that one; with the last of them it is gone, and its
    weights with it.

    Args:
        release: What answers first.
        alias: What to follow; None for a server of one version, which never swaps.

    Attributes:
        worker: Read anew for each question, and used before anything is awaited.
        alias: See above.
    """

    def __init__(self, release: Release, alias: Alias | None = None):
        self.worker = Worker(release)
        self.alias = alias
        self._seen: object = _NEVER

    async def follow(self) -> None:
        """Swap whenever the alias names another version that can be loaded; runs until it is cancelled.

        Loading and warming up happen in a thread, the swap on the event loop that serves the questions.
        """
        while self.alias is not None:
            # No local name here may hold a release: it would outlive the swap.
            has_swapped = self._swap_in(await asyncio.to_thread(self._load_if_moved, self.alias))
            await asyncio.sleep(POLL_S)
            if has_swapped:
                await asyncio.to_thread(_give_memory_back)

    def _swap_in(self, release: Release | None) -> bool:
        if release is None:
            return False
        old, self.worker = self.worker, Worker(release)
        old.retire()
        _log.info("%s answers from now on, in the place of %s.", release.model_version, old.release.model_version)
        return True

    def _load_if_moved(self, alias: Alias) -> Release | None:
        """Return the release that the alias names, loaded and tried out; None where there is nothing to swap.

        A version that cannot be loaded is tried again only when the aliases are written anew.
        """
        stamp = alias.stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        current = self.worker.release.model_version
        try:
            version = alias.version()
            if version == current:
                return None
            release = alias.load(version)
            answer_question(release, _WARM_UP, release.max_new_tokens, 0.0, 0)
        except (UserError, ApiError) as error:
            _log.error("The %s moved, but %s goes on answering: %s", alias.name, current, error)
        except Exception:
            _log.exception("The %s moved, but %s goes on answering, since loading failed:", alias.name, current)
        else:
            return release
        return None

    def close(self) -> None:
        """Drop what waits."""
        self.worker.close()


def _give_memory_back() -> None:
    """Let the C library return what is free: left alone, glibc keeps 300 MB more after some swaps of a 135M model."""
    with contextlib.suppress(AttributeError, OSError):  # another library has no such function
        ctypes.CDLL(None).malloc_trim(0)
