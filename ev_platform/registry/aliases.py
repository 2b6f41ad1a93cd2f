"""Aliases of a task's model versions: one small file, replaced as a whole, changed by one process at a time.

`candidate` is the newest version, `champion` the one that answers, `previous` the one that answered before it. What
does not belong here: who becomes champion (`promotion`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ev_platform.errors import UserError
from ev_platform.remote import one_view
from ev_platform.storage import Store

# A promotion hashes the weights while it holds the lock: 14 GB at 0.3 GB a second take 50 seconds.
_WAIT_S = 120


def alias_file(store: Store, task: str) -> Path:
    """Return the file that holds a task's aliases; it is written anew, never changed in place."""
    return store.root / _pointer(task)


def _pointer(task: str) -> str:
    return f"registry/{task}.json"


def read_aliases(store: Store, task: str) -> dict[str, str]:
    """Return alias to version, such as `{"champion": "ev_charging@3"}`; needs no lock."""
    content = store.read_pointer(_pointer(task))
    return {} if content is None else json.loads(content)


def write_aliases(store: Store, task: str, aliases: Mapping[str, str]) -> None:
    """Replace a task's aliases; to be called under `locked`."""
    if aliases != read_aliases(store, task):
        store.write_pointer(_pointer(task), json.dumps(dict(sorted(aliases.items())), indent=1).encode())


@contextmanager
def locked(store: Store, task: str) -> Iterator[None]:
    """Hold a task's registry: versions, aliases and decisions are read and written by one process at a time.

    The lock is the operating system's, so that a killed process holds nothing. Who holds it may take it again. Another
    machine is not locked out: of two that decide at once the later one is refused when it writes (`remote.one_view`).

    Raises:
        UserError: If another process has held it for two minutes.
    """
    file = alias_file(store, task).with_suffix(".lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=_WAIT_S, is_singleton=True), one_view():
            yield
    except Timeout as error:
        raise UserError(
            f"Another process has been deciding about the models of {task} for {_WAIT_S} seconds ({file}): wait for it "
            "to end, then try again."
        ) from error


def name_candidate(store: Store, task: str) -> dict[str, str]:
    """Let the newest version be the `candidate`; returns the aliases now in force."""
    with locked(store, task):
        newest = store.read("registered_model", task).tail(1).to_dicts()
        aliases = read_aliases(store, task) | ({"candidate": newest[0]["model_version"]} if newest else {})
        write_aliases(store, task, aliases)
    return aliases
