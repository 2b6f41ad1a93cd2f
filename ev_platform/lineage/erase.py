"""Carrying a takedown out: in every version of every table, in what was served, in the ledger, and in all other files.

This is the one exception to the rule that nothing stored is changed (contract 2): a version is written anew beside and
moved into its place, under its own name; its sidecar then says its new fingerprint and number of rows, and names the
takedown. Every step looks for what is left, so that the same call after a kill does the rest.

What belongs here: places and how each is written. What does not: what is meant (`takedown`, `dependants`), and
Dagster's own storage (`defs.takedown`).
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.collect.journal import fetched_so_far, forget, journal_path
from ev_platform.files import write_atomic
from ev_platform.identity import frame_fingerprint
from ev_platform.lineage.dependants import BODIES, MASK, Ids, every, redact
from ev_platform.lineage.quotes import WEIGHTS, Quotes
from ev_platform.lineage.served import mask_served, parquet_bytes, replace_lines
from ev_platform.lineage.takedown import Plan, TaskPlan, stored_tasks
from ev_platform.records import SERVED, TABLES, schema_of
from ev_platform.storage import Store
from ev_platform.teachers.ledger import Ledger, ledger_path

# Weights under way, and weights kept for other seeds and recipes: none of them says what it was trained on.
_HALF_TRAINED = ("checkpoints", "seeds", "sweeps")


@dataclass
class Erasure:
    """What was done, or would be, by task and place; a place is a table or a kind of file."""

    removed: Counter[tuple[str, str]]
    masked: Counter[tuple[str, str]]
    versions: Counter[tuple[str, str]]

    def add(self, task: str, place: str, n_removed: int = 0, n_masked: int = 0) -> None:
        """Count what one file lost."""
        if n_removed or n_masked:
            self.removed[task, place] += n_removed
            self.masked[task, place] += n_masked
            self.versions[task, place] += 1

    def touched(self) -> dict[str, dict[str, str]]:
        """Return it in words, by task and place."""
        told: dict[str, dict[str, str]] = {}
        for task, place in self.versions:
            counts = ((self.removed[task, place], "removed"), (self.masked[task, place], "masked"))
            words = ", ".join(f"{n} {what}" for n, what in counts if n)
            n = self.versions[task, place]
            where = f" in {n} version{'s' if n > 1 else ''}" if place in TABLES else ""
            told.setdefault(task, {})[place] = words + where
        return told


def erase(store: Store, made: Plan, *, apply: bool, progress: Callable[[str], None] = lambda text: None) -> Erasure:
    """Remove and mask all that a plan names; without `apply`, only count it.

    Args:
        store: Where.
        made: What.
        apply: Whether it is done.
        progress: Called with what is being looked at.

    Raises:
        UserError: If a server holds the log of requests, or the object store of a shared one cannot be written.
    """
    done, quotes = Erasure(Counter(), Counter(), Counter()), made.quotes
    for task, it in made.tasks.items():
        progress(f"tables of {task}")
        _tables(store, made.takedown_id, task, it.ids, quotes, done, apply)
        _blobs(store, task, it.ids, done, apply)
        _weights_and_files(store, task, it, done, apply)
    progress("requests and feedback")
    ids_of = made.ids_by_task()
    mask_served(store.root, lambda task: ids_of(task).chunks, quotes, done.add, apply=apply)
    progress("the ledger of the teachers")
    _ledger(store, made, quotes, done, apply)
    for file in _other_files(store):
        progress(str(file.relative_to(store.root)))
        if quotes.are_in_file(file):
            _other_file(store, file, made, quotes, done, apply)
    return done


def left_over(store: Store, made: Plan) -> list[str]:
    """Return the files below the data folder, relative to it, that still hold words of what was taken down.

    Weights are not looked into: a model keeps no text that could be found.
    """
    quotes = made.quotes
    kept = _named_blobs(store)
    return [
        name
        for file in sorted(store.root.rglob("*"))
        if file.is_file() and file.suffix not in WEIGHTS
        if (name := str(file.relative_to(store.root))) not in kept and quotes.are_in_file(file)
    ]


# ---- tables ----


def _tables(store: Store, takedown_id: str, task: str, ids: Ids, quotes: Quotes, done: Erasure, apply: bool) -> None:
    for table in TABLES:
        folder = store.root / "tables" / table / task
        for record in store.history(table, task) if table != "takedowns" else []:
            file = folder / f"{record.version}.parquet"
            stored = pl.read_parquet(file, hive_partitioning=False)
            rows = redact(table, stored.drop("task", strict=False), ids, quotes)
            done.add(task, table, rows.n_removed, rows.n_masked)
            # A sidecar says by which rows of the task's own files its rows were made.
            config = _without(record.config, quotes)
            if config != record.config:
                done.add(task, "sidecars", n_masked=1)
            if not apply or (config == record.config and not rows.n_removed and not rows.n_masked):
                continue
            after = replace(record, config=config)
            if rows.n_removed or rows.n_masked:
                config |= {"taken_down": sorted({*config.get("taken_down", []), takedown_id})}
                print_ = frame_fingerprint(table, _as_declared(table, rows.frame))
                after = replace(record, n_rows=rows.frame.height, fingerprint=print_, config=config)
            files = {".json": json.dumps(asdict(after), indent=1).encode()}
            if rows.n_removed or rows.n_masked:
                files[".parquet"] = parquet_bytes(rows.frame.select(pl.lit(task).alias("task"), pl.all()))
            store.rewrite_shared(table, task, record.version, files)
            # The sidecar first: killed in between, the rows are found again, and all is written as now.
            for suffix, data in files.items():
                target = file.with_suffix(suffix)
                write_atomic(target, data, target.stat().st_mode & 0o777)


def _without(value: Any, quotes: Quotes) -> Any:
    """Return a JSON value whose texts quote nothing."""
    if isinstance(value, dict):
        return {name: _without(each, quotes) for name, each in value.items()}
    if isinstance(value, list):
        return [_without(each, quotes) for each in value]
    return MASK if isinstance(value, str) and quotes.are_in(value) else value


def _as_declared(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in schema_of(table).items()
    )


def _named_blobs(store: Store) -> set[str]:
    """Return the bodies that a row of any version of any task names."""
    return {
        path
        for task in stored_tasks(store)
        for table in BODIES
        for path in every(store, table, task, ["path"])["path"].drop_nulls()
    }


def _blobs(store: Store, task: str, ids: Ids, done: Erasure, apply: bool) -> None:
    needed = {
        path
        for name in stored_tasks(store)
        for table in BODIES
        for url, path in every(store, table, name, ["url", "path"]).drop_nulls().iter_rows()
        if name != task or url not in ids.urls
    }
    under_way = fetched_so_far(journal_path(store.root, task))
    needed |= {str(row.get("path")) for row in under_way if row["url"] not in ids.urls}
    doomed = {row["url"] for row in under_way} & ids.urls
    done.add(task, "fetched by a crawl under way", len(doomed))
    if apply and doomed:
        forget(journal_path(store.root, task), doomed)
    for path in sorted(ids.blobs - needed):
        if store.holds(path):
            done.add(task, "blobs", 1)
            if apply:
                store.drop(path)
                (store.root / path).unlink(missing_ok=True)


# ---- teachers ----


def _ledger(store: Store, made: Plan, quotes: Quotes, done: Erasure, apply: bool) -> None:
    file = ledger_path(store.root)
    if not file.exists():
        return
    calls = {call: task for task, it in made.tasks.items() for call in it.ids.calls}
    ledger = Ledger(file)
    try:
        for call_id, text in ledger.replies():
            if call_id in calls or quotes.are_in(text):
                done.add(calls.get(call_id, next(iter(made.tasks))), "cached replies", 1)
                if apply:
                    ledger.forget_reply(call_id, MASK)
        if apply:
            ledger.compact()
    finally:
        ledger.close()


# ---- weights and other files ----


def _weights_and_files(store: Store, task: str, it: TaskPlan, done: Erasure, apply: bool) -> None:
    doomed: list[tuple[str, Path]] = []
    if it.trained:
        doomed += [("weights under way", store.root / name) for name in _HALF_TRAINED]
        doomed.append(("vectors of questions", store.root / "vectors" / task))
    if it.ids.documents:
        # They show rows by the dozen: the next run writes them anew. What people judged is not among them.
        shown = sorted((store.root / "reports").glob(f"{task}*"))
        doomed += [("reports", file) for file in shown if file.suffix != ".csv"]
    for url in sorted(it.addresses):
        if url.startswith("inbox/"):
            doomed.append(("files of the drop folder", store.root / "inbox" / task / url.removeprefix("inbox/")))
    for place, path in doomed:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            done.add(task, place, 1)
            if apply:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _other_files(store: Store) -> Iterator[Path]:
    """Yield the files that no step before this one looked into."""
    known = [store.root / name for name in ("tables", "dagster", "teacher", "takedowns")]
    known += [store.root / "serving" / table for table in SERVED]
    named = _named_blobs(store)
    for file in sorted(store.root.rglob("*")):
        if not file.is_file() or file.suffix in WEIGHTS or any(file.is_relative_to(folder) for folder in known):
            continue
        if str(file.relative_to(store.root)) not in named:
            yield file


def _other_file(store: Store, file: Path, made: Plan, quotes: Quotes, done: Erasure, apply: bool) -> None:
    task, place = next(iter(made.tasks)), file.relative_to(store.root).parts[0]
    if place == "reports" and file.suffix == ".csv":
        _sheet(file, quotes, apply)
        done.add(task, "reports", n_masked=1)
    elif place in ("reports", "blobs"):  # a body that no row names was left by a crawl that was cut off
        done.add(task, place, 1)
        if apply:
            file.unlink()
    elif place == "wandb":
        run = next((it for it in file.parents if it.parent.parent == store.root / "wandb"), file)
        done.add(task, "W&B runs", 1)
        if apply and run.exists():
            shutil.rmtree(run) if run.is_dir() else run.unlink()
    elif file.suffix in (".log", ".jsonl", ".txt", ".out", ".err"):
        done.add(task, "logs", n_masked=1)
        replace_lines(
            file, lambda line: MASK.encode() if quotes.are_in(line.decode("utf-8", "ignore")) else None, apply=apply
        )


def _sheet(file: Path, quotes: Quotes, apply: bool) -> None:
    """Mask the cells of a sheet that people fill in."""
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = [[MASK if quotes.are_in(cell) else cell for cell in row] for row in csv.reader(opened)]
    if apply:
        out = io.StringIO()
        csv.writer(out).writerows(rows)
        write_atomic(file, out.getvalue().encode("utf-8-sig"))
