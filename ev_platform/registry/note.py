"""The note that a run leaves behind: promoted, kept or nothing changed, why, and what every check said.

What does not belong here: what the evaluation's report says (`evaluation.report`), and deciding (`promotion`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.registry.aliases import read_aliases
from ev_platform.registry.promotion import Outcome
from ev_platform.storage import Store
from ev_platform.tasks import get_task


def render_note(
    task: str, gate: pl.DataFrame, outcome: Outcome, aliases: dict[str, str], decisions: pl.DataFrame
) -> str:
    """Return the note as Markdown.

    Args:
        task: Name of the task.
        gate: The `promotion_gate` table.
        outcome: How the run ended.
        aliases: In force now.
        decisions: The `promotions` table.
    """
    lines = [
        f"# {task}: {outcome.outcome}",
        "",
        outcome.reason,
        "",
        "Aliases: " + (", ".join(f"{name} is {version}" for name, version in aliases.items()) or "none") + ".",
        "",
        f"## Checks of {gate.item(0, 'model_version')} against {gate.item(0, 'champion') or 'no champion'}",
        "",
        "| check | passed | figure | limit | what it found |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for row in gate.iter_rows(named=True):
        cells = [row["check"], "yes" if row["passed"] else "**no**", _figure(row["value"]), _figure(row["limit"])]
        lines.append("| " + " | ".join([*cells, _cell(row["reason"])]) + " |")
    lines += ["", "## Decisions, newest first", ""]
    lines += [
        f"- {row['decided_at']:%Y-%m-%d %H:%M} UTC, {row['decided_by']}: {row['model_version']} "
        f"{row['decision'].replace('_', ' ')}. {row['reason']}"
        for row in reversed(decisions.to_dicts())
    ] or ["None yet."]
    return "\n".join(lines) + "\n"


def write_note(store: Store, task: str, gate: pl.DataFrame, outcome: Outcome) -> Path:
    """Write `reports/<task>_promotion.md` from the tables as they are now; returns where it lies."""
    file = store.root / "reports" / f"{task}_promotion.md"
    text = render_note(task, gate, outcome, read_aliases(store, task), store.read("promotions", task))
    write_atomic(file, text.encode())
    return file


def rewrite_report(store: Store, task: str, tasks_root: Path) -> None:
    """Write the evaluation's page anew after a person's decision, so that it says who answers now.

    There is none of a task that was not evaluated, or whose folder is gone; the decision stands all the same.
    """
    from ev_platform.evaluation.pages import write_report

    with contextlib.suppress(UserError):
        write_report(store, get_task(task, tasks_root))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
