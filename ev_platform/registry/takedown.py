"""Which versions must not answer any more, because something that they hold was taken down.

What does not belong here: taking it down (`lineage.takedown`).
"""

from __future__ import annotations

from ev_platform.registry.versions import versions_like
from ev_platform.storage import Store


def tainted_versions(store: Store, task: str) -> dict[str, str]:
    """Return the tainted versions of a task, each with the reason, in a clause.

    A version is tainted that was trained on what was taken down, or that answered from its passages when that
    happened; so is every version with the adapter of one that was trained on it, whatever it answers from.
    """
    tainted: dict[str, str] = {}
    for row in store.read("takedowns", task).iter_rows(named=True):
        if row["state"] == "undone":
            continue
        what = f"{row['url']}, which was taken down on {row['decided_at']:%Y-%m-%d}"
        for version in row["trained_versions"]:
            for same in sorted(versions_like(store, task, version, "adapter_id")):
                tainted[same] = f"it was trained on {what}"
        for version in row["holding_versions"]:
            tainted.setdefault(version, f"it answers from passages of {what}")
    return tainted
