"""A report on a task folder as tables and sentences for a terminal."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ev_platform.tasks.folders.check import Report
from ev_platform.tasks.folders.findings import Finding

_FIELDS = ("question", "answer", "context")
_MOST_LABELS = 100
_MOST = 12  # of one kind; machines get them all


def print_report(console: Console, report: Report) -> None:
    """Print a report: the files, the labels, pairs of test and training questions, then one sentence a finding."""
    console.print(f"[bold]{escape(report.task)}[/], type {escape(report.type)}", highlight=False)
    if report.files:
        _print_files(console, report)
    if report.labels:
        _print_labels(console, report)
    if report.leaks:
        _print_leaks(console, report)
    _print_findings(console, "Stops a run", "bold red", [f for f in report.findings if f.stops])
    _print_findings(console, "Worth a look", "yellow", [f for f in report.findings if not f.stops])


def _print_files(console: Console, report: Report) -> None:
    console.print("Rows, and how many words they have: median / 95th percentile / most")
    table = Table("file")
    counts = {
        "rows": [summary.n_rows for summary in report.files],
        "wrong": [summary.n_wrong for summary in report.files],
        "unanswerable": [summary.n_unanswerable for summary in report.files],
    }
    counts = {name: own for name, own in counts.items() if name == "rows" or any(own)}
    for name in (*counts, *_FIELDS):
        table.add_column(name, justify="right", no_wrap=True)
    for number, summary in enumerate(report.files):
        measures = [summary.words.get(name) for name in _FIELDS]
        cells = [f"{x.p50} / {x.p95} / {x.max}" if x else "" for x in measures]
        table.add_row(summary.file, *(str(own[number]) for own in counts.values()), *cells)
    console.print(table)


def _print_labels(console: Console, report: Report) -> None:
    table = Table("label")
    for name in ("train", "test"):
        table.add_column(name, justify="right")
    table.add_column("described")
    for label in report.labels[:_MOST_LABELS]:
        described = {True: "yes", False: "[yellow]no[/]", None: ""}[label.is_described]
        table.add_row(escape(label.label), str(label.n_train), str(label.n_test), described)
    console.print(table)
    if len(report.labels) > _MOST_LABELS:
        console.print(f"and {len(report.labels) - _MOST_LABELS} more labels (--json prints all).")


def _print_leaks(console: Console, report: Report) -> None:
    console.print("Test questions that stand in train too, or nearly:")
    table = Table("test", "train", "how")
    for leak in report.leaks[:_MOST]:
        how = leak.kind if leak.kind != "near" else f"near, {leak.overlap:.2f}"
        table.add_row(
            escape(f"{leak.test}: {_cut(leak.test_question)}"),
            escape(f"{leak.train}: {_cut(leak.train_question)}"),
            how,
        )
    console.print(table)
    if len(report.leaks) > _MOST:
        console.print(f"and {len(report.leaks) - _MOST} more pairs (--json prints all).")


def _print_findings(console: Console, title: str, style: str, findings: list[Finding]) -> None:
    if not findings:
        return
    console.print(f"[{style}]{title}:[/]")
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    for kind, own in by_kind.items():
        for finding in own[:_MOST]:
            console.print(f"- {escape(finding.message)}", highlight=False, soft_wrap=True)
        if len(own) > _MOST:
            console.print(f"- and {len(own) - _MOST} more of {kind} (--json prints all).", highlight=False)


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"
