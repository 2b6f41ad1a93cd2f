"""The dataset in the forms that other tools read, written from the stored tables.

What does not belong here: what a dataset card says (`card`), and which rows there are (`splits`).
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ev_platform.errors import UserError
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.types import get_task_type

SPLITS = {"train": "training_set", "validation": "validation_set", "test": "benchmark"}
RECORD = "export.json"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: Where.
        n_rows: Rows by split; a split without rows has no file.
        left_out: Rows that the format cannot hold, by reason.
    """

    folder: Path
    n_rows: dict[str, int]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Dataset:
    """The tables of one task's dataset, as they are stored now."""

    store: Store
    task: Task

    def table(self, name: str) -> pl.DataFrame:
        """Return one table."""
        return self.store.read(name, self.task.name)

    @cached_property
    def splits(self) -> dict[str, list[Row]]:
        """Rows of `training_set`, `validation_set` and `benchmark` by split, without splits that have none."""
        frames = {split: self.table(table) for split, table in SPLITS.items()}
        return {split: frame.to_dicts() for split, frame in frames.items() if frame.height}

    @cached_property
    def chunks(self) -> dict[str, Row]:
        """Chunks by id."""
        return {row["chunk_id"]: row for row in self.table("chunks").iter_rows(named=True)}

    @cached_property
    def documents(self) -> dict[str, Row]:
        """Clean documents by id."""
        return {row["document_id"]: row for row in self.table("clean_documents").iter_rows(named=True)}

    def passage(self, row: Row) -> str | None:
        """Return the text that a row's answer rests on: its own, else that of its chunk."""
        return row["context"] or self.chunks.get(row["chunk_id"], {}).get("text")


def export_dataset(
    store: Store, task: Task, name: str, out: Path, *, tokenizer: str | None = None, force: bool = False
) -> Exported:
    """Write a task's dataset into a folder, a file for each split.

    Args:
        store: Holds the tables.
        task: Whose dataset.
        name: Of the format, see `FORMATS`: `instruction` (JSONL of instruction, input, output), `chat` (JSONL of
            messages), `inst` (JSONL of text, rendered by a tokenizer's own chat template: `[INST]` for Llama 2 and
            Mistral; it begins with the template's own special tokens, so tokenize it without adding them again),
            `squad` (SQuAD 2.0), `csv` (text, label) or `hf` (Parquet with a dataset card).
        out: Folder to make; all of it appears at once, or nothing.
        tokenizer: Folder or hub name for `inst`; the task's own base model where None.
        force: Whether an earlier export there is replaced.

    Raises:
        UserError: If there is no such format, no dataset yet, the format does not fit the task, the tokenizer cannot be
            had, or the folder exists and may not be replaced.
    """
    if name not in FORMATS:
        raise UserError(f"There is no export format {name!r}: choose one of {', '.join(FORMATS)}.")
    if tokenizer and name != "inst":
        raise UserError(f"A tokenizer says how inst is rendered, but the format is {name}: leave it out.")
    out = out.expanduser().absolute()
    _check_target(out, force=force)
    dataset = Dataset(store, task)
    if not dataset.splits:
        raise UserError(
            f"The task {task.name} has no dataset yet: run `ev-platform run --task {task.name} --stage dataset` first."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tmp-export-") as beside:
        scratch = Path(beside) / "new"
        scratch.mkdir()
        left_out = FORMATS[name](dataset, scratch, tokenizer)
        n_rows = {split: len(rows) - left_out[split].total() for split, rows in dataset.splits.items()}
        if not any(n_rows.values()):
            raise UserError(f"No row of {task.name} fits the format {name}: {dict(_sum(left_out))}; choose another.")
        exported = Exported(out, n_rows, dict(_sum(left_out)))
        _write_json(scratch / RECORD, _record(dataset, name, exported) | {"files": _files_in(scratch)})
        if out.exists():
            out.rename(Path(beside) / "old")
        scratch.rename(out)
    return exported


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise UserError(f"{out} exists: name another folder, or replace it with --force.")
    # Replacing removes what is there, so nothing may be but what an export wrote.
    known = _files_of(out / RECORD) if out.is_dir() else set()
    other = next((file for file in _files_in(out) if file not in known), None) if out.is_dir() else out.name
    if other is not None:
        raise UserError(f"{out} is not replaced, since no export wrote {other}: name another folder, or move it away.")


def _files_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _files_of(record: Path) -> set[str]:
    try:
        return {RECORD, *json.loads(record.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _record(dataset: Dataset, name: str, exported: Exported) -> Row:
    records = {table: dataset.store.current(table, dataset.task.name) for table in SPLITS.values()}
    return {
        "task": dataset.task.name,
        "format": name,
        "n_rows": exported.n_rows,
        "left_out": exported.left_out,
        "tables": {
            table: {"version": record.version, "fingerprint": record.fingerprint}
            for table, record in records.items()
            if record
        },
    }


LeftOut = dict[str, Counter[str]]  # split to reasons


def _nothing() -> LeftOut:
    return defaultdict(Counter)


def _sum(left_out: LeftOut) -> Counter[str]:
    return sum(left_out.values(), Counter())


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_jsonl(file: Path, rows: Iterable[Row]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _instruction(dataset: Dataset, folder: Path, _: str | None) -> LeftOut:
    for split, rows in dataset.splits.items():
        names = ("instruction", "input", "output")
        _write_jsonl(folder / f"{split}.jsonl", ({name: row[name] for name in names} for row in rows))
    return _nothing()


def _chat(dataset: Dataset, folder: Path, _: str | None) -> LeftOut:
    for split, rows in dataset.splits.items():
        _write_jsonl(folder / f"{split}.jsonl", ({"messages": row["messages"]} for row in rows))
    return _nothing()


def _inst(dataset: Dataset, folder: Path, tokenizer: str | None) -> LeftOut:
    from jinja2 import TemplateError

    loaded = _load_tokenizer(dataset, tokenizer)

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return loaded.apply_chat_template(messages, tokenize=False)
        except TemplateError:
            # Some templates (Mistral's first, Gemma's) refuse a system message: there it opens the user's.
            system, user, *rest = messages
            joined = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
            return loaded.apply_chat_template([joined, *rest], tokenize=False)

    for split, rows in dataset.splits.items():
        _write_jsonl(folder / f"{split}.jsonl", ({"text": render(row["messages"])} for row in rows))
    return _nothing()


def _load_tokenizer(dataset: Dataset, name: str | None) -> Any:
    from transformers import AutoTokenizer

    if name is None:
        stored = dataset.table("base_model")
        if stored.is_empty():
            raise UserError(
                f"The base model of {dataset.task.name} is not stored yet: name a tokenizer, or run the task."
            )
        name = str(dataset.store.local(stored["path"][0]))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tokenizer {name} could not be loaded ({type(error).__name__}): name a folder that holds one, or "
            "owner/name on the model hub."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(f"The tokenizer {name} has no chat template: name one of an instruction-tuned model.")
    return tokenizer


def _squad(dataset: Dataset, folder: Path, _: str | None) -> LeftOut:
    left_out = _nothing()
    for split, rows in dataset.splits.items():
        articles: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            context = dataset.passage(row)
            if context is None:
                left_out[split]["no_passage"] += 1
                continue
            answers = find_spans(row, context) if row["is_answerable"] else []
            if row["is_answerable"] and not answers:
                left_out[split]["answer_is_no_span"] += 1
                continue
            document = dataset.documents.get(row["document_id"], {})
            title = document.get("title") or document.get("url") or dataset.task.name
            question = {"id": row["example_id"], "question": row["question"], "answers": answers}
            articles[title][context].append(question | {"is_impossible": not row["is_answerable"]})
        data = [
            {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
            for title, paragraphs in articles.items()
        ]
        if data:
            _write_json(folder / f"{split}.json", {"version": "v2.0", "data": data})
    return left_out


def find_spans(row: Mapping[str, Any], context: str) -> list[Row]:
    """Return the accepted answers of a row that stand in a passage, as SQuAD has them: `text` and `answer_start`.

    The row's own start counts where the answer stands there; else the first place where it stands as whole words, in
    the passage's own letters.
    """
    spans: dict[tuple[int, str], Row] = {}
    accepted: list[str] = [row["answer"], *(row["answers"] or [])]
    for answer in accepted:
        start = row["answer_start"]
        if answer != row["answer"] or start is None or not context.startswith(answer, start):
            words = rf"(?<!\w){re.escape(answer)}(?!\w)"
            found = re.search(words, context) or re.search(words, context, re.IGNORECASE)
            if not answer.strip() or not found:
                continue
            start, answer = found.start(), found[0]
        spans[start, answer] = {"text": answer, "answer_start": start}
    return list(spans.values())


def _csv(dataset: Dataset, folder: Path, _: str | None) -> LeftOut:
    if not get_task_type(dataset.task.config.type).has_classes:
        raise UserError(
            f"The format csv holds texts with labels, and {dataset.task.name} ({dataset.task.config.type}) has none: "
            "choose instruction or hf."
        )
    for split, rows in dataset.splits.items():
        # As they are, also where a spreadsheet would run a cell: this file is read by trainers.
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows([row["question"], row["answer"]] for row in rows)
    return _nothing()


def _hf(dataset: Dataset, folder: Path, _: str | None) -> LeftOut:
    from ev_platform.dataset.card import render_card, traced_rows

    (folder / "data").mkdir()
    for split, frame in traced_rows(dataset).items():
        frame.write_parquet(folder / "data" / f"{split}.parquet")
    (folder / "README.md").write_text(render_card(dataset), encoding="utf-8")
    return _nothing()


FORMATS: dict[str, Callable[[Dataset, Path, str | None], LeftOut]] = {
    "instruction": _instruction,
    "chat": _chat,
    "inst": _inst,
    "squad": _squad,
    "csv": _csv,
    "hf": _hf,
}
