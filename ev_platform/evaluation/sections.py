"""The report's smaller tables, one function each: what stands in which column, formatted for people.

What does not belong here: where the figures come from (`figures`, `surroundings`), and the page around them (`report`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ev_platform.evaluation.calibration import GROUPS
from ev_platform.evaluation.figures import WRONG, label_of
from ev_platform.evaluation.names import METRIC_NAMES
from ev_platform.evaluation.plots import plot_scores_of_questions

N_GROUPS = 15  # lines of errors by source, and of labels, that are shown

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the page.

    Attributes:
        title: Above it.
        head: Names of its columns; the first one names the lines.
        rows: Cells as text, as many as columns.
        note: Below it.
        n_text: Columns from the left that hold text and not figures.
        plot: Above the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    n_text: int = 1
    plot: Markup | None = None


def sections_of(report: Row) -> list[Section]:
    """Return the tables for what a report tells; what it does not tell has none."""
    makers: tuple[tuple[str, Callable[[Row], list[Section]]], ...] = (
        ("labels", _labels),
        ("errors", _errors),
        ("judgements", _judgements),
        ("seeds", _seeds),
        ("retrieval", _retrieval),
        ("abstention", _abstention),
        ("retention", _retention),
        ("speed", _speed),
        ("coverage", _coverage),
        ("training", _training),
        ("teacher", _teacher),
    )
    return [section for key, make in makers if report.get(key) for section in make(report)]


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Return a size in MB or GB (10^6 and 10^9 bytes)."""
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def _figure(value: float | None, form: str = "{:.3f}") -> str:
    return "–" if value is None else form.format(value)


def _bounds(row: Row, form: str = "{:.3f}") -> str:
    return "" if row["low"] is None else f"{form.format(row['low'])}, {form.format(row['high'])}"


def _labels(report: Row) -> list[Section]:
    taken: dict[str, list[str]] = {}
    for pair in sorted(report["confusion"], key=lambda pair: (-pair["n"], pair["given"])):
        if pair["right"] != pair["given"]:
            taken.setdefault(pair["right"], []).append(f"{pair['given']} ({pair['n']})")
    own = report["favourite"]
    systems = [name for name in report["systems"] if any(name in line["f1"] for line in report["labels"])]
    lines = sorted(report["labels"], key=lambda line: (line["f1"].get(own, 0.0), line["label"]))
    rows = [
        [
            line["label"],
            ", ".join(taken.get(line["label"], [])[:3]) or "–",
            _figure(line["n_rows"], "{:,}"),
            *(_figure(line["f1"].get(name)) for name in systems),
        ]
        for line in lines[:N_GROUPS]
    ]
    head = ["label", f"taken by {label_of(own)} for", "rows", *(f"F1, {label_of(name)}" for name in systems)]
    shown = f"The {len(rows)} weakest of {len(lines)} labels." if len(rows) < len(lines) else ""
    return [Section("Labels", head, rows, shown, n_text=2)]


def _errors(report: Row) -> list[Section]:
    titles = {
        "kind": "Errors by topic",
        "asked": "Errors by what is asked",
        "source": "Errors by source",
        "answerable": "Errors by answerability",
    }
    metric, own = METRIC_NAMES[report["metric"]], label_of(report["favourite"])
    found = []
    for name, groups in report["errors"].items():
        systems = list(groups[0]["means"])
        head = [name, "rows", "errors", *map(label_of, systems)]
        rows = [
            [g["name"], f"{g['n_rows']:,}", f"{g['n_wrong']:,}", *(_figure(g["means"][system]) for system in systems)]
            for g in groups[:N_GROUPS]
        ]
        note = (
            f"An error is an answer of {own} with a {metric} below {WRONG:g}; beside it stand mean scores ({metric})."
        )
        if len(groups) > N_GROUPS:
            note += f" The {N_GROUPS} of {len(groups)} with most errors."
        found.append(Section(titles[name], head, rows, note))
    return found


def _judgements(report: Row) -> list[Section]:
    told = report["judgements"]
    columns = {name: name for name in ("better", "tie", "worse")}
    if not told["is_by_people"]:
        columns |= {"inconsistent": "changed with the order", "unjudged": "no judgement"}
    rows = [
        [
            f"{label_of(line['system'])} against {label_of(line['compared_to'])}",
            *(f"{line[name]:,}" for name in columns),
        ]
        for line in told["pairs"]
    ]
    head = ["pair", *columns.values()]
    if told["is_by_people"]:
        note = "People judged these pairs; the teacher judged none, since it is no language model."
        return [Section("Judged pair by pair", head, rows, note)]
    note = "The teacher compared both answers twice, each in either place; a choice counts if it stayed the same."
    people = told["people"]
    if people["n"]:
        note += f" On {people['n']} pairs that people judged too, it says the same on {people['share']:.0%}"
        note += "." if people["kappa"] is None else f" (kappa {people['kappa']:.2f})."
    if told["flaw"]:
        note += f" Do not rely on it: {told['flaw']}"
    return [Section("Judged pair by pair", head, rows, note)]


def _seeds(report: Row) -> list[Section]:
    rows = [
        [
            f"{label_of(line['system'])}, {METRIC_NAMES.get(line['metric'], line['metric'])}",
            f"{line['n_seeds']}",
            _figure(line["mean"]),
            _figure(line["sd"]),
        ]
        for line in report["seeds"]
    ]
    note = "The same recipe on the same rows, trained with other seeds: how much of a score is chance."
    return [Section("Other seeds", ["score", "seeds", "mean", "standard deviation"], rows, note)]


def _retrieval(report: Row) -> list[Section]:
    lines = report["retrieval"]
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    found = {(line["method"], line["level"], line["metric"]): line for line in lines}
    rows = []
    for method, level in dict.fromkeys((line["method"], line["level"]) for line in lines):
        cells = [found.get((method, level, metric)) for metric in metrics]
        n_rows = max(cell["n_rows"] for cell in cells if cell)
        text = [f"{_figure(cell['value'])} [{_bounds(cell)}]" if cell else "–" for cell in cells]
        rows.append([method, level, f"{n_rows:,}", *text])
    note = (
        "How often a search brings the chunk that supports the answer, or any chunk of its document, among the first."
    )
    head = ["search", "what is found", "rows", *(metric.replace("mrr", "MRR") for metric in metrics)]
    return [Section("Retrieval", head, rows, note, n_text=2)]


def _abstention(report: Row) -> list[Section]:
    told = report["abstention"]
    rows = [
        [
            GROUPS[line["group"]],
            f"{line['n']:,}",
            f"{line['n_refused']:,}",
            _figure(line["value"], "{:.1%}"),
            _bounds(line, "{:.1%}"),
        ]
        for line in told["shares"]
        if line["n"]
    ]
    note = (
        "The score of a question is the cosine of it and the nearest passage that is found. Where it lies below the "
        f"line, nothing is generated and the answer is the task's sentence for that. {told['reason']}"
    )
    head = ["questions", "n", "refused", "share", "95 % interval"]
    plot = plot_scores_of_questions(told["scores"], told["min_score"])
    found = [Section("Questions out of scope", head, rows, note, plot=plot)]
    for title, lines in (
        ("Questions of the task that are refused", told["refused"]),
        ("Held-out questions outside the task that are answered", told["answered"]),
    ):
        if told["min_score"] is not None and lines:
            rows = [[row["question"], row["source"], _figure(row["score"])] for row in lines[:N_GROUPS]]
            more = f"The {N_GROUPS} of {len(lines)} that are furthest off." if len(lines) > N_GROUPS else ""
            found.append(Section(title, ["question", "from", "score"], rows, more, n_text=2))
    return found


def _retention(report: Row) -> list[Section]:
    rows = [
        [label_of(model), _figure(figures.get("accuracy")), _figure(figures.get("perplexity"), "{:.1f}")]
        for model, figures in report["retention"].items()
    ]
    note = "Questions and text that have nothing to do with the task: what the training has made the model forget."
    head = ["model", "general questions answered", "perplexity of neutral text"]
    return [Section("General ability", head, rows, note)]


def _speed(report: Row) -> list[Section]:
    rows = [
        [
            label_of(line["model"]),
            f"{line['concurrency']}",
            *(f"{line[name]:,.0f}" for name in ("latency_ms_p50", "latency_ms_p95", "latency_ms_p99")),
            _figure(line["first_token_ms_p50"], "{:,.0f}"),
            _figure(line["tokens_per_second"], "{:,.1f}"),
            size(line["memory_bytes"]),
            f"{line['usd_per_1000_answers']:.4f}",
        ]
        for line in report["speed"]
    ]
    head = [
        "model",
        "at once",
        "p50, ms",
        "p95, ms",
        "p99, ms",
        "first token, ms",
        "tokens/s",
        "memory",
        "USD per 1,000",
    ]
    note = "Latency of an answer with so many questions under way; base and tuned took turns in one run."
    return [Section("Speed and cost", head, rows, note)]


def _coverage(report: Row) -> list[Section]:
    told = report["coverage"]
    rows = [
        [line["status"].replace("_", " "), f"{line['n']:,}", f"{line['n_examples']:,}"] for line in told["by_status"]
    ]
    n_asked = told["n"] - told["n_held_out"]
    share = f" ({told['n_covered'] / n_asked:.0%})" if n_asked else ""
    note = f"{told['n_covered']:,} of {n_asked:,} passages or texts that may be trained on{share} have an example."
    if told["n_held_out"]:
        note += f" {told['n_held_out']:,} more are held out: they stand behind test rows."
    return [Section("Coverage", ["passages or texts", "n", "examples"], rows, note)]


def _training(report: Row) -> list[Section]:
    told = report["training"]
    shown: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("train_seconds", "time", duration),
        ("energy_kwh", "energy, kWh", "{:.3f}".format),
        ("device", "device", str),
        ("n_rows", "rows", "{:,}".format),
        ("n_steps", "optimiser steps", "{:,}".format),
        ("n_tokens_seen", "tokens seen", "{:,}".format),
        ("tokens_per_second", "tokens per second", "{:,.0f}".format),
        ("n_trainable_parameters", "trained parameters", "{:,}".format),
        ("validation_loss_before", "validation loss before", "{:.3f}".format),
        ("validation_loss", "validation loss after", "{:.3f}".format),
        ("peak_memory_bytes", "peak memory", size),
        ("n_bytes", "size of the adapter", size),
    )
    rows = [[name, form(told[key])] for key, name, form in shown if key in told]
    return [Section("Training", ["of the tuned model", ""], rows)]


def _teacher(report: Row) -> list[Section]:
    told = report["teacher"]
    rows = [[f"{c['purpose']}, {c['model']}", f"{c['n_calls']:,}", f"{c['cost_usd']:.4f}"] for c in told["calls"]]
    rows.append(["in all", f"{sum(c['n_calls'] for c in told['calls']):,}", f"{told['cost_usd']:.4f}"])
    examined = told["examined"]
    note = f"{examined['teacher']}: {examined['verdict'].replace('_', ' ')}. {examined['reason']}" if examined else ""
    return [Section("Teacher", ["calls", "n", "USD"], rows, note)]
