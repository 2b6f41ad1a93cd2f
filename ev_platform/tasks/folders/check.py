"""The report on one task folder: what stops a run, what is in it, and what is doubtful about its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ev_platform.errors import UserError
from ev_platform.tasks import JobDescription, Task, read_model
from ev_platform.tasks.folders.findings import (
    Finding,
    Label,
    Leak,
    Lengths,
    find_labels,
    find_leaks,
    find_long_answers,
    find_repeats,
    judge_labels,
    judge_leaks,
    lengths,
)
from ev_platform.tasks.formats import Problem, find_files
from ev_platform.tasks.rows import TaskRow, scan_rows, scan_texts
from ev_platform.tasks.types import TASK_TYPES


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What one file of rows holds.

    Attributes:
        file: Its name.
        n_rows: Rows that can be used.
        n_wrong: Rows that cannot.
        n_unanswerable: Of the rows that can be used, those whose passage does not hold the answer.
        words: Lengths by field, of the fields that are there.
    """

    file: str
    n_rows: int
    n_wrong: int
    n_unanswerable: int
    words: dict[str, Lengths]


@dataclass(slots=True)
class Report:
    """What `check_folder` found.

    Attributes:
        task: Name of the folder.
        type: Task type: as config.yaml names it, else what the folder's files are of.
        is_trainable: Whether that type can be trained.
        files: What is in the files of rows, in the order train, test, unstructured.
        labels: Of a classification task.
        leaks: Pairs of test and training questions.
        findings: What stops a run comes first.
    """

    task: str
    type: str
    is_trainable: bool
    files: list[FileSummary] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Whether nothing stops a run."""
        return not any(finding.stops for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for machines."""
        return {"ok": self.is_ok} | asdict(self)


def check_folder(folder: Path, inbox: Path | None = None) -> Report:
    """Check a task folder.

    Args:
        folder: The folder; it needs not lie below EV_TASKS_DIR.
        inbox: Drop folder of the task: PDFs in it are sources too.

    Raises:
        UserError: If there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name a task folder, or make one with `ev-platform task new NAME`.")
    task = Task(folder.name, folder.resolve())
    found: list[Finding] = []
    classes = _read_classes(task, found)
    has_config = _holds(lambda: task.config, "config", "config.yaml", found)
    rows: list[TaskRow] = []
    files: list[FileSummary] = []
    if has_config:
        for split in ("train", "test"):
            own, summary = _read_split(task, split, found)
            rows += own
            files += [summary] if summary else []
    unstructured = _read_texts(task, found)
    files += [unstructured] if unstructured else []
    kind = _type_of(task, classes, rows) if has_config else "unknown"
    report = Report(task.folder.name, kind, kind in TASK_TYPES, files)
    if has_config:
        found += _judge_type(task, kind)
        found += _judge_setup(task)
    found += _judge_sources(task, inbox, has_texts=unstructured is not None)
    report.labels = find_labels(rows, classes)
    report.leaks = find_leaks(rows)
    found += judge_leaks(report.leaks, rows)
    found += find_repeats(rows)
    if not report.labels:
        found += find_long_answers(rows)
    found += judge_labels(report.labels, rows)
    report.findings = sorted(found, key=lambda finding: not finding.stops)
    return report


def _holds(read: Callable[[], Any], kind: str, file: str, found: list[Finding]) -> bool:
    """Whether something can be read; what keeps it from that is added to what was found."""
    try:
        read()
    except UserError as error:
        found.append(Finding(kind, True, str(error), file))
        return False
    return True


def _read_classes(task: Task, found: list[Finding]) -> dict[str, str]:
    name = "job_description.json"
    if not _holds(lambda: task.description, "job_description", name, found):
        return {}
    return read_model(JobDescription, task.folder / name).classes_description


def _read_split(task: Task, split: str, found: list[Finding]) -> tuple[list[TaskRow], FileSummary | None]:
    rows: list[TaskRow] = []
    n_wrong = 0
    files = find_files(task.folder, split)
    try:
        for row in scan_rows(task, split):
            if isinstance(row, Problem):
                n_wrong += 1
                found.append(Finding("wrong_row", True, row.sentence, row.file, row.place, row.column))
            else:
                rows.append(row)
    except UserError as error:
        found.append(Finding("rows", True, str(error), files[0].name if files else f"{split}.csv"))
    if len(files) > 1:
        others = ", ".join(file.name for file in files[1:])
        found.append(Finding("second_file", False, f"Beside {files[0].name}, {others} is not read.", files[1].name))
    if not files:
        return rows, None
    texts = {
        "question": [row.question for row in rows],
        "answer": [row.answer for row in rows if row.is_answerable],
        "context": [row.context for row in rows if row.context],
    }
    measured = {name: measure for name, own in texts.items() if (measure := lengths(own))}
    n_unanswerable = sum(not row.is_answerable for row in rows)
    return rows, FileSummary(files[0].name, len(rows), n_wrong, n_unanswerable, measured)


def _read_texts(task: Task, found: list[Finding]) -> FileSummary | None:
    files = find_files(task.folder, "unstructured")
    if not files:
        return None
    texts: list[str] = []
    n_wrong = 0
    try:
        for text in scan_texts(task):
            if isinstance(text, Problem):
                n_wrong += 1
                found.append(Finding("wrong_text", False, text.sentence, text.file, text.place, text.column))
            else:
                texts.append(text)
    except UserError as error:
        found.append(Finding("wrong_text", False, str(error), files[0].name))
    measure = lengths(texts)
    return FileSummary(files[0].name, len(texts), n_wrong, 0, {"context": measure} if measure else {})


def _type_of(task: Task, classes: dict[str, str], rows: list[TaskRow]) -> str:
    """Return the type that config.yaml names, else the one that the files are of."""
    if "type" in task.config.model_fields_set:
        return task.config.type
    if classes:
        return "classification"
    if any(row.answer_start is not None for row in rows):
        return "extractive_qa"
    return task.config.type


def _judge_type(task: Task, kind: str) -> Iterator[Finding]:
    if kind not in TASK_TYPES:
        said = f"This is a folder of the type {kind}, which cannot be trained yet; the types that can be are "
        said += f"{', '.join(TASK_TYPES)}: if one of them fits too, write it below type in config.yaml."
        yield Finding("type", True, said, "config.yaml", None, "type")
    elif kind != task.config.type:
        said = f"This is a folder of the type {kind}, but config.yaml does not say so: write type: {kind} there."
        yield Finding("type", True, said, "config.yaml", None, "type")


def _judge_setup(task: Task) -> Iterator[Finding]:
    from ev_platform.training.recipes import load_recipe

    try:
        load_recipe(task)
    except UserError as error:
        yield Finding("recipe", True, str(error), "config.yaml", None, "recipe")


def _judge_sources(task: Task, inbox: Path | None, *, has_texts: bool) -> Iterator[Finding]:
    name = "sources.yaml"
    found: list[Finding] = []
    if not _holds(lambda: task.sources, "sources", name, found):
        yield from found
        return
    sources, file = task.sources, task.folder / name
    if not sources.seeds and not sources.pdfs and not (inbox and _holds_pdf(inbox)):
        unread = " (unstructured.csv is checked, but not collected)" if has_texts else ""
        lacks = "names nothing to collect" if file.exists() else "is missing"
        said = f"{file} {lacks}{unread}: write an address below seeds, or files below pdfs."
        yield Finding("nothing_to_collect", True, said, name)
    for mirror in sources.mirrors:
        if not (task.folder / mirror.folder).is_dir():
            said = f"{file}: the folder {mirror.folder!r} of the mirror of {mirror.base_url} does not exist."
            yield Finding("sources", True, said, name, None, "mirrors")
    for pattern in sources.pdfs:
        if not _matches(task.folder, pattern):
            said = f"{file}: no file matches the PDF glob {pattern!r}: put the files there, or remove the glob."
            yield Finding("sources", True, said, name, None, "pdfs")


def _matches(folder: Path, pattern: str) -> bool:
    anchor = Path(pattern).anchor  # empty for a relative glob
    try:
        return any((Path(anchor) if anchor else folder).glob(pattern.removeprefix(anchor)))
    except ValueError:  # empty, or ** beside other characters
        return False


def _holds_pdf(folder: Path) -> bool:
    return any(file.suffix.lower() == ".pdf" for file in folder.rglob("*"))
