"""`ev-platform backup`, and `ev-platform prepare` for what starts the services."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors

backup_app = typer.Typer(
    no_args_is_help=True,
    help="Back up the data folder while it is in use, and bring it back.\n\n"
    "Example: `ev-platform backup create /backups`",
)


@contextlib.contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """Let SIGTERM, which `systemctl stop` and Kubernetes send, end the block as an error would: it tidies up."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@backup_app.command()
@plain_errors
def create(
    into: Annotated[Path, typer.Argument(help="Folder of backups, on another disk; made if missing.")],
) -> None:
    """Copy EV_DATA_DIR into a new folder named by the time; what the newest backup there holds already is linked.

    Example: `ev-platform backup create /backups`
    """
    from ev_platform import backup

    with console.status("Copying ..."), _stopped_cleanly():
        done = backup.create(get_settings().data_root, into)
    console.print(
        f"{done.folder}: {done.n_files} files, {done.n_bytes / 1e6:.1f} MB, {done.n_linked} of them linked.",
        soft_wrap=True,
        highlight=False,
    )


@backup_app.command()
@plain_errors
def restore(folder: Annotated[Path, typer.Argument(help="One backup, as `backup create` printed it.")]) -> None:
    """Bring a backup back into EV_DATA_DIR, which must be empty or missing; every file is compared with its SHA-256.

    Example: `EV_DATA_DIR=restored ev-platform backup restore /backups/20261122T003000Z`
    """
    from ev_platform import backup

    with console.status("Copying ..."), _stopped_cleanly():
        done = backup.restore(folder, get_settings().data_root)
    console.print(f"{done.folder}: {done.n_files} files, {done.n_bytes / 1e6:.1f} MB.", soft_wrap=True, highlight=False)


@plain_errors
def prepare() -> None:
    """Make EV_DATA_DIR ready for the services: Dagster's settings and the catalogue; what is there already stays.

    Example: `EV_DATA_DIR=/data/ev ev-platform prepare`
    """
    from ev_platform.defs.run import dagster_home
    from ev_platform.storage import Store

    data_root = get_settings().data_root
    home = dagster_home(data_root)
    Store(data_root).rebuild_catalogue()
    console.print(f"{data_root} is ready; DAGSTER_HOME is {home}.", soft_wrap=True, highlight=False)
