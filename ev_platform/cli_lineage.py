"""The command that follows an id through the data: `ev-platform trace`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, say

if TYPE_CHECKING:
    from ev_platform.lineage.index import Source


@plain_errors
def trace(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="An id, an address, a model version, a body's SHA-256, or the beginning of one that no other has.",
        ),
    ],
    direction: Annotated[
        Literal["back", "forward", "both"], typer.Option(help="To the sources, to what depends on it, or both.")
    ] = "both",
    depth: Annotated[int, typer.Option(min=1, max=32, help="Most steps from it.")] = 32,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most things of a kind to list with one thing.")] = 5,
    task: Annotated[str | None, typer.Option("--task", help="Only in this task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: nodes, edges, exact counts.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file instead.")] = None,
) -> None:
    """Follow anything back to its sources and forward to all that depends on it; counts are exact, lists are capped.

    Example: `ev-platform trace https://plugfield.example/connectors.html --direction forward`
    """
    from ev_platform.files import write_atomic
    from ev_platform.lineage import trace as tracing
    from ev_platform.lineage.trace_show import page, print_trace
    from ev_platform.storage import Store

    store = Store(get_settings().data_root)
    traces = tracing.trace(
        store, name, task=task, direction=direction, depth=depth, limit=limit, progress=_with_progress
    )
    if as_json:
        sys.stdout.write(json.dumps([t.as_dict() for t in traces], ensure_ascii=False, indent=1) + "\n")
    if html is not None:
        write_atomic(html, page(traces).encode())
        if not as_json:
            say(f"Wrote {html}.")
    if html is None and not as_json:
        for number, found in enumerate(traces):
            if len(traces) > 1:
                console.rule(f"Task {found.task}", align="left")
            elif number:
                console.print()
            print_trace(console, found)


def _with_progress(sources: list[Source]) -> Iterator[Source]:
    """Show how the versions that nobody has traced through yet are read."""
    from rich.console import Console
    from rich.progress import track

    yield from track(
        sources,
        "Reading versions that are new to the index",
        console=Console(stderr=True),
        transient=True,
        disable=not sources,
    )
