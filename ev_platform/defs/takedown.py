"""Dagster's own storage without what was taken down: previews of tables stand in the events of its runs.

What does not belong here: everything that the platform stores itself (`lineage.erase`).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from dagster import serialize_value

from ev_platform.defs.instance import open_instance
from ev_platform.defs.run import dagster_home
from ev_platform.lineage.takedown import Plan

_ID = re.compile(r"\b[a-z]{2,4}_[0-9a-f]{20}\b")


def forget_runs(data_root: Path, made: Plan, *, apply: bool) -> list[str]:
    """Delete the runs whose events show something that is taken down, and what the UI shows of them.

    Assets that such a run materialized or checked count as never materialized until the next run; the tables have
    their history all the same.

    Args:
        data_root: Where Dagster's state lies when DAGSTER_HOME is unset.
        made: What is taken down.
        apply: Whether it is done.

    Returns:
        The runs.
    """
    home = dagster_home(data_root)
    ids_of, quotes, found = made.ids_by_task(), made.quotes, []
    with open_instance(home) as instance:
        for run_id, tags in sorted((run.run_id, run.tags) for run in instance.get_runs()):
            its = ids_of(tags.get("dagster/partition"))
            ids = its.documents | its.chunks | its.examples
            entries = instance.all_logs(run_id)
            texts = [serialize_value(entry) for entry in entries]
            if not any(not ids.isdisjoint(_ID.findall(text)) or quotes.are_in(text) for text in texts):
                continue
            found.append(run_id)
            if apply:
                events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
                instance.delete_run(run_id)
                instance.compute_log_manager.delete_logs(prefix=[run_id])
                # The index keeps the latest event of each asset and check for itself.
                for key in sorted({event.asset_key for event in events if event.asset_key is not None}):
                    instance.wipe_assets([key])
    if apply and found:
        for file in sorted(home.rglob("*.db")):
            _compact(file)
    return found


def _compact(file: Path) -> None:
    """Write a SQLite file anew, so that nothing that was deleted stays on its free pages or in its journal."""
    with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as database:
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
