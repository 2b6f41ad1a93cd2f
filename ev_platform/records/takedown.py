"""Rows about what had to be taken down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from ev_platform.records.columns import VOLATILE


@dataclass(frozen=True, slots=True)
class Takedown:
    """One address that was taken down in a task, as it stands now (`takedowns`)."""

    takedown_id: str  # hash of the address and of whether it holds for all tasks
    url: str  # as it was named; a path of a file
    addresses: list[str]  # what is not fetched any more: the address, and those that led to it
    reason: str
    decided_by: str
    decided_at: Annotated[datetime, VOLATILE]
    state: str  # "removing" until all is gone, then "done"; "undone" where it may be fetched again
    for_all_tasks: bool  # also those that never had it
    touched: str  # JSON: rows, files and runs that were removed or masked, by where they lay
    trained_versions: list[str]  # model versions that were trained on it
    holding_versions: list[str]  # model versions that answered from its passages
