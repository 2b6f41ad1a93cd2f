"""The report on one task folder: what stops a run, what is in it, and what is doubtful about its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.folders.findings import (
    Finding,
    Label,
    Leak,
    Lengths,
    find_flaws,
    find_labels,
    find_leaks,
    find_long_answers,
    find_repeats,
    judge_labels,
    judge_leaks,
    lengths,
)
from ev_platform.tasks.folders.new import is_sample
from ev_platform.tasks.formats import Problem
from ev_platform.tasks.rows import TaskRow, row_files, scan_rows, scan_texts
from ev_platform.tasks.types import TASK_TYPES, get_task_type

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What one file of rows holds.

    Attributes:
        file: Its name, with the split where it holds both.
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
        is_trainable: Whether there is such a type.
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
    has_job = _holds(lambda: task.job, "job_description", "job_description.json", found)
    descriptions = task.job.classes_description if has_job else {}
    has_config = _holds(lambda: task.config, "config", "config.yaml", found)
    rows: list[TaskRow] = []
    files: list[FileSummary] = []
    n_texts = 0
    if has_config:
        for split in ("train", "test"):
            own, summary = _read_split(task, split, found)
            rows += own
            files += [summary] if summary else []
        unstructured = _read_texts(task, found)
        files += [unstructured] if unstructured else []
        n_texts = unstructured.n_rows if unstructured else 0
    kind = _type_of(task, descriptions, rows) if has_config else "unknown"
    report = Report(task.folder.name, kind, kind in TASK_TYPES, files)
    report.leaks = find_leaks(rows)
    if has_config:
        found += _judge_type(task, kind)
        told = {finding.message for finding in found}
        found += [finding for finding in _judge_setup(task) if finding.message not in told]
        found += _judge_sources(task, kind, rows, inbox, n_texts=n_texts)
        found += _judge_reach(task)
    if report.is_trainable:
        task_type = TASK_TYPES[kind]
        classes = descriptions
        if task_type.has_classes and not descriptions:
            classes = {row.answer: "" for row in rows if row.split == "train"}
        found += find_flaws(rows, task_type, classes)
        report.labels = find_labels(rows, descriptions, is_certain=task_type.has_classes)
    found += judge_leaks(report.leaks, rows)
    found += find_repeats(rows)
    if has_config and not report.labels:
        found += find_long_answers(rows, task.config.evaluation.max_new_tokens)
    found += judge_labels(report.labels)
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


def _sift(scan: Iterable[Item | Problem], kind: str, file: str, found: list[Finding], *, stops: bool) -> list[Item]:
    """Return what can be used; what cannot, and what ends the scan, is added to what was found."""
    usable: list[Item] = []
    try:
        for item in scan:
            if isinstance(item, Problem):
                found.append(Finding(kind, stops, item.sentence, item.file, item.place, item.column))
            else:
                usable.append(item)
    except UserError as error:
        found.append(Finding("rows" if stops else kind, stops, str(error), file))
    return usable


def _files_of(task: Task, name: str, found: list[Finding]) -> list[Path] | None:
    """Return the files of a split or of `unstructured`, None where config.yaml names one that cannot be read."""
    try:
        return row_files(task, name)
    except UserError as error:
        if all(finding.message != str(error) for finding in found):  # one file may be named for both splits
            found.append(Finding("files", True, str(error), "config.yaml", None, "files"))
        return None


def _read_split(task: Task, split: str, found: list[Finding]) -> tuple[list[TaskRow], FileSummary | None]:
    files = _files_of(task, split, found)
    if files is None:
        return [], None
    name = files[0].name if files else f"{split}.csv"
    n_before = len(found)
    rows = _sift(scan_rows(task, split), "wrong_row", name, found, stops=True)
    n_wrong = sum(finding.kind == "wrong_row" for finding in found[n_before:])
    if len(files) > 1:
        others = ", ".join(file.name for file in files[1:])
        found.append(Finding("second_file", False, f"Beside {name}, {others} is not read.", files[1].name))
    if not files:
        return rows, None
    if is_sample(files[0]):
        said = f"{name} still holds the sample rows of `ev-platform task new`: write your own in their place."
        found.append(Finding("sample_rows", False, said, name))
    texts = {
        "question": [row.question for row in rows],
        "answer": [row.answer for row in rows if row.is_answerable],
        "context": [row.context for row in rows if row.context],
    }
    measured = {name: measure for name, own in texts.items() if (measure := lengths(own))}
    n_unanswerable = sum(not row.is_answerable for row in rows)
    shown = f"{name} ({split})" if task.config.files.rows else name
    return rows, FileSummary(shown, len(rows), n_wrong, n_unanswerable, measured)


def _read_texts(task: Task, found: list[Finding]) -> FileSummary | None:
    files = _files_of(task, "unstructured", found)
    if not files:
        return None
    n_before = len(found)
    texts = _sift(scan_texts(task), "wrong_text", files[0].name, found, stops=False)
    n_wrong = sum(finding.row is not None for finding in found[n_before:])
    measure = lengths(texts)
    return FileSummary(files[0].name, len(texts), n_wrong, 0, {"context": measure} if measure else {})


def _type_of(task: Task, descriptions: dict[str, str], rows: list[TaskRow]) -> str:
    """Return the type that config.yaml names, else the one that the files are of."""
    if "type" in task.config.model_fields_set:
        return task.config.type
    has_spans = any(row.answer_start is not None for row in rows)
    fitting = [t.name for t in TASK_TYPES.values() if t.fits(has_descriptions=bool(descriptions), has_spans=has_spans)]
    return fitting[0] if fitting else task.config.type


def _judge_type(task: Task, kind: str) -> Iterator[Finding]:
    try:
        get_task_type(kind)
    except UserError as error:
        yield Finding("type", True, str(error), "config.yaml", None, "type")
    else:
        if kind != task.config.type:
            said = f"This is a folder of the type {kind}, but config.yaml does not say so: write type: {kind} there."
            yield Finding("type", True, said, "config.yaml", None, "type")


def _judge_setup(task: Task) -> Iterator[Finding]:
    from ev_platform.training.recipes import load_recipe
    from ev_platform.training.sweep import plan_trials

    try:
        load_recipe(task)
    except UserError as error:
        yield Finding("recipe", True, str(error), "config.yaml", None, "recipe")
        return
    try:
        plan_trials(task)
    except UserError as error:
        yield Finding("sweep", True, str(error), "config.yaml", None, "sweep")


def _judge_sources(
    task: Task, kind: str, rows: list[TaskRow], inbox: Path | None, *, n_texts: int
) -> Iterator[Finding]:
    name = "sources.yaml"
    found: list[Finding] = []
    if not _holds(lambda: task.sources, "sources", name, found):
        yield from found
        return
    sources, file = task.sources, task.folder / name
    has_corpus = kind in TASK_TYPES and TASK_TYPES[kind].has_corpus
    # Rows that bring their own passage can be learned from without any corpus.
    is_needed = has_corpus and not (rows and all(row.context for row in rows))
    names_any = sources.seeds or sources.pdfs or sources.texts or n_texts
    if is_needed and not names_any and not (inbox and _holds_pdf(inbox)):
        lacks = "names nothing to collect" if file.exists() else "is missing"
        said = f"{file} {lacks}: write an address below seeds, or files below pdfs or texts."
        yield Finding("nothing_to_collect", True, said, name)
    for mirror in sources.mirrors:
        if not (task.folder / mirror.folder).is_dir():
            said = f"{file}: the folder {mirror.folder!r} of the mirror of {mirror.base_url} does not exist."
            yield Finding("sources", True, said, name, None, "mirrors")
    for key, what, patterns in (("pdfs", "PDF", sources.pdfs), ("texts", "text", sources.texts)):
        for pattern in patterns:
            if not _matches(task.folder, pattern):
                said = f"{file}: no file matches the {what} glob {pattern!r}: put the files there, or remove the glob."
                yield Finding("sources", True, said, name, None, key)


def _judge_reach(task: Task) -> Iterator[Finding]:
    """Tell what is read from outside the folder: whoever wrote it chose that, and a dataset may carry it away."""
    config = task.config
    named = [("config.yaml", f"files.{key}", path) for key, path in config.files if isinstance(path, str)]
    named += [("config.yaml", "teacher.recording", path) for path in [config.teacher.recording] if path]
    read = [(name, key, [(task.folder / path).resolve()]) for name, key, path in named]
    if _holds(lambda: task.sources, "sources", "sources.yaml", []):
        sources = task.sources
        read += [("sources.yaml", "mirrors", [(task.folder / m.folder).resolve()]) for m in sources.mirrors]
        for key, patterns in (("pdfs", sources.pdfs), ("texts", sources.texts)):
            read += [("sources.yaml", key, _matches(task.folder, pattern)) for pattern in patterns]
    for name, key, files in read:
        outside = next((file for file in files if file.exists() and not file.is_relative_to(task.folder)), None)
        if outside:
            said = f"{task.folder / name}: {key} reads {outside}, outside the task's folder: see that this is meant."
            yield Finding("outside", False, said, name, None, key)


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return what a path or a glob stands for, without links."""
    anchor = Path(pattern).anchor  # empty for a relative one
    try:
        return [file.resolve() for file in (Path(anchor) if anchor else folder).glob(pattern.removeprefix(anchor))]
    except ValueError:  # empty, or ** beside other characters
        return []


def _holds_pdf(folder: Path) -> bool:
    return any(file.suffix.lower() == ".pdf" for file in folder.rglob("*"))
