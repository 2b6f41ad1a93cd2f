"""Taking weights that no version needs any more off the disk; rows and decisions stay for ever.

What does not belong here: deleting rows of tables, which a version must always be able to reopen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ev_platform.registry.aliases import locked, read_aliases
from ev_platform.registry.versions import resolve
from ev_platform.storage import Store, now

# Tables whose rows name folders of weights, each in the column `path`.
TABLES = ("base_model", "base_serving_model", "adapter", "merged_model", "serving_model", "exports")
_RENAMED = ".tmp-pruned-"


@dataclass(frozen=True, slots=True)
class Plan:
    """What pruning takes away.

    Attributes:
        versions: Versions that cannot be loaded afterwards.
        folders: Folders of weights, relative to the data folder: theirs, and those that no version ever named.
        n_bytes: Size of the folders.
    """

    versions: tuple[str, ...]
    folders: tuple[str, ...]
    n_bytes: int


def pruned_at(store: Store, task: str) -> dict[str, str]:
    """Return the versions whose weights were taken away, with the time (ISO 8601, UTC)."""
    content = store.read_pointer(_file(task))
    return {} if content is None else json.loads(content)


def is_held(store: Store, folder: str) -> bool:
    """Return whether weights lie here or in the object store.

    Args:
        store: Where they lie.
        folder: Relative to the data folder.
    """
    # In the object store a folder is there once it is said to be complete: `drop` takes that away first.
    return (store.root / folder).is_dir() or store.holds(f"complete/{folder}")


def prune(store: Store, task: str, *, keep_last: int = 3, keep: Collection[str] = (), apply: bool = False) -> Plan:
    """Take weights off the disk that neither an alias, nor the newest versions, nor a named one, nor a table need.

    What a table says now is kept too, so that the next run goes on from it; so is what another task uses. Of an object
    store it takes them for every machine, whether or not they lie here, and looks at what every machine published.

    Args:
        store: Where they lie.
        task: Whose versions.
        keep_last: How many of the newest versions are kept.
        keep: Further versions or aliases.
        apply: Whether it is done; else it is only said what would be.

    Raises:
        UserError: If a version to keep is not there, or another process holds the registry.
    """
    named = {resolve(store, task, name)["model_version"] for name in keep}
    with locked(store, task):
        plan = _plan(store, task, keep_last, named)
        if apply:
            if plan.versions:
                # Said before it is done: a version whose folder is half gone must not look altered.
                known = pruned_at(store, task) | dict.fromkeys(plan.versions, now().isoformat())
                store.write_pointer(_file(task), json.dumps(known, indent=1).encode())
            _remove_renamed(store)  # what a killed process left
            for folder in plan.folders:
                store.drop(folder)
                path = store.root / folder
                if path.is_dir():
                    # Away under one rename: a run that makes the same artifact again must not find half of it.
                    path.rename(path.with_name(f"{_RENAMED}{path.name}"))
            _remove_renamed(store)
    return plan


def _remove_renamed(store: Store) -> None:
    for path in sorted(store.root.glob(f"artifacts/*/{_RENAMED}*")):
        shutil.rmtree(path)


def _plan(store: Store, task: str, keep_last: int, named: set[str]) -> Plan:
    store.refresh()  # else what a task of another machine uses would not be known here
    versions = store.read("registered_model", task).to_dicts()
    newest = versions[max(0, len(versions) - keep_last) :]
    kept = {*read_aliases(store, task).values(), *named, *(row["model_version"] for row in newest)}
    held = {path for table in TABLES for path in _held(store, table, task)}
    held |= _paths_of(store, task, [row for row in versions if row["model_version"] in kept])
    made = {row["path"]: row["n_bytes"] for table in TABLES for row in _rows(store, table, task)}
    folders = sorted(path for path in made.keys() - held if is_held(store, path))
    served = {row["model_version"]: store.artifact_path("serving_model", row["serving_model_id"]) for row in versions}
    return Plan(
        tuple(version for version, folder in served.items() if str(folder.relative_to(store.root)) in folders),
        tuple(folders),
        sum(_size(store.root / path, made[path]) for path in folders),
    )


def _size(folder: Path, recorded: int) -> int:
    """Return the size of the files here; of a folder that only the object store holds, what its table says."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else recorded


def _held(store: Store, table: str, task: str) -> Iterable[str]:
    """Yield the folders that the table says now, and those that other tasks ever named: weights may be shared."""
    for pointer in sorted((store.root / "tables" / table).glob("*/CURRENT")):
        name = pointer.parent.name
        yield from store.read(table, task)["path"] if name == task else (r["path"] for r in _rows(store, table, name))


def _rows(store: Store, table: str, task: str) -> list[dict[str, Any]]:
    """Return the rows of all versions of a table."""
    return [row for it in store.history(table, task) for row in store.read(table, task, it.version).to_dicts()]


def _paths_of(store: Store, task: str, versions: list[dict[str, Any]]) -> set[str]:
    """Return the folders of some versions: adapter, merged and served weights."""
    serving_ids = {row["serving_model_id"] for row in versions}
    served = [row for row in _rows(store, "serving_model", task) if row["artifact_id"] in serving_ids]
    merged = {json.loads(row["inputs"]).get("model") for row in served}
    rows = [row for row in _rows(store, "merged_model", task) if row["sha256"] in merged]
    adapters = {row["adapter_id"] for row in versions}
    rows += [row for row in _rows(store, "adapter", task) if row["artifact_id"] in adapters]
    return {row["path"] for row in [*served, *rows]}


def _file(task: str) -> str:
    return f"registry/{task}.pruned.json"
