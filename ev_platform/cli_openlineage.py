"""The command that tells a lineage catalogue, such as Marquez or DataHub, what this platform made from what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, say


@plain_errors
def openlineage(
    task: Annotated[str | None, typer.Argument(help="Only this task; all of them by default.")] = None,
    to: Annotated[
        str, typer.Option(help="Where to: the address of a catalogue, or a file that ends in .jsonl.")
    ] = "openlineage.jsonl",
    namespace: Annotated[
        str, typer.Option(help="Of jobs and datasets: tells this installation apart from others.")
    ] = "ev-platform",
) -> None:
    """Send the history of every table as OpenLineage events; sending it again changes nothing.

    A catalogue that wants a key gets the one in the environment variable OPENLINEAGE_API_KEY.

    Example: `ev-platform openlineage ev_charging --to http://localhost:5000`
    """
    from ev_platform.lineage.openlineage import lineage_events, send_events, write_events
    from ev_platform.storage import Store

    events = list(lineage_events(Store(get_settings().data_root), task, namespace))
    shown = track(events, "Sending", console=console, transient=True)
    if to.endswith(".jsonl"):
        n = write_events(shown, Path(to))
    else:
        n = send_events(shown, to, os.environ.get("OPENLINEAGE_API_KEY", ""))
    say(f"{n} events to {to}")
