"""The commands on what was served: look at the latest requests, delete the old ones.

More than a look is DuckDB's: `ev-platform query "FROM requests"`.
"""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, say

if TYPE_CHECKING:
    import polars as pl

requests_app = typer.Typer(
    no_args_is_help=True,
    help="What was asked of the endpoint: look, delete what is old.\n\nExample: `ev-platform requests show --since 1d`",
)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LEAST_QUESTION = 40  # characters, however narrow the terminal


@requests_app.command("show")
@plain_errors
def requests_show(
    since: Annotated[str, typer.Option(help="How far back: a number and m, h, d or w.")] = "1d",
    limit: Annotated[int, typer.Option(min=1, help="Most requests to print, the newest.")] = 20,
    task: Annotated[str | None, typer.Option("--task", help="Only of this task.")] = None,
) -> None:
    """Show the latest requests, newest last, and what they add up to; times are UTC.

    Example: `ev-platform requests show --since 12h --limit 50`
    """
    import polars as pl

    from ev_platform.serving.journal import read_journal
    from ev_platform.storage import now

    rows = read_journal(get_settings().data_root, "requests", now() - _span(since))
    if task is not None:
        rows = rows.filter(pl.col("task") == task)
    of_task = f" of {task}" if task else ""
    if rows.is_empty():
        say(f"No request{of_task} in the last {since}: `ev-platform serve` answers them, and logs those with a key.")
        return
    for row in rows.tail(limit).iter_rows(named=True):
        _print(row)
    say(_summary(rows, f"{of_task} in the last {since}"))


def _print(row: dict[str, Any]) -> None:
    """Print a request in two lines: ids are too long for the column of a table, and are there to be copied."""
    status = str(row["status"])
    if row["error"]:
        status = f"[red]{status} {escape(row['error'])}[/]"
    elif row["is_abstention"]:
        status += " abstained"
    tokens = (
        "" if row["n_completion_tokens"] is None else f"{row['n_prompt_tokens']}+{row['n_completion_tokens']} tokens"
    )
    parts = [
        f"[bold]{row['asked_at']:%Y-%m-%d %H:%M:%S}[/]",
        status,
        row["route"],
        row["model_version"] or "",
        f"{row['total_ms']:.0f} ms",
        tokens,
    ]
    console.print("  ".join(part for part in parts if part), highlight=False, soft_wrap=True)
    room = max(_LEAST_QUESTION, console.width - len(row["request_id"]) - 4)
    console.print(f"  [dim]{escape(row['request_id'])}[/]  {_question(row, room)}", highlight=False, soft_wrap=True)


def _question(row: dict[str, Any], n_chars: int) -> str:
    if row["question"] is None:
        return f"(hash {row['question_hash']})" if row["question_hash"] else ""
    # Whoever asks must not steer the terminal of whoever looks.
    shown = "".join(sign if sign.isprintable() else " " for sign in row["question"])
    return escape(textwrap.shorten(shown, n_chars, placeholder=" …"))


def _summary(rows: pl.DataFrame, where: str) -> str:
    import polars as pl

    # A stream that broke had its status by then, and one that was left has a model too.
    is_whole = (pl.col("status") == 200) & pl.col("error").is_null()
    answered = rows.filter(is_whole & pl.col("model_version").is_not_null())
    counts = [
        (answered.height, "answered"),
        (int(answered["is_abstention"].sum() or 0), "of them with an abstention"),
        (rows.filter(pl.col("status").is_between(400, 498)).height, "refused"),
        (rows.filter(pl.col("status") == 499).height, "left"),
        (
            rows.filter((pl.col("status") >= 500) | ((pl.col("status") == 200) & ~is_whole)).height,
            "failed or turned away",
        ),
    ]
    said = ", ".join(f"{n} {what}" for n, what in counts if n)
    times = answered["total_ms"]
    took = f" Half of the answers took up to {times.median():.0f} ms, 95 % up to {times.quantile(0.95):.0f} ms."
    many = "request" if rows.height == 1 else "requests"
    return f"{rows.height} {many}{where}{': ' + said if said else ''}.{took if answered.height else ''}"


@requests_app.command("prune")
@plain_errors
def requests_prune(
    days: Annotated[
        int | None, typer.Option(min=0, help="Delete what is older; EV_REQUEST_RETENTION_DAYS by default.")
    ] = None,
    feedback: Annotated[bool, typer.Option("--feedback", help="What people said of answers, instead.")] = False,
) -> None:
    """Delete requests that are older than the limit, by whole days (UTC); a running server does the same every hour.

    What people said of answers stays, and with it the question and answer that they said it of, until --feedback
    deletes it; what a reviewer has decided on stays then too, and so do the stored versions of feedback_candidates.

    Example: `ev-platform requests prune --days 30`
    """
    from ev_platform.serving.journal import keep_up
    from ev_platform.serving.segments import Segments

    settings, table = get_settings(), "feedback" if feedback else "requests"
    if feedback and days is None:
        raise UserError("Feedback has no age at which it goes: say how old with --days.")
    limit = settings.request_retention_days if days is None else days
    segments = Segments(settings.data_root, table)
    with segments.upkeep() as is_mine:
        if not is_mine:
            raise UserError(f"A server is deleting old {table} at this moment: try again in a minute.")
        gone = keep_up(segments, limit)
    if not gone:
        say(f"Nothing is older than {limit} days.")
    elif len(gone) == 1:
        say(f"Deleted the {table} of {gone[0]}.")
    else:
        say(f"Deleted the {table} of {len(gone)} days, {gone[0]} to {gone[-1]}.")


def _span(text: str) -> timedelta:
    parts = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if parts is None:
        raise UserError(f"--since is {text[:20]!r}: write a number and m, h, d or w, such as 90m, 12h, 1d or 2w.")
    return timedelta(**{_UNITS[parts[2]]: int(parts[1])})
