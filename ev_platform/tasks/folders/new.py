"""A new task folder: one that runs at once, on samples that a person then replaces by rows and texts of their own.

`template` holds what all types share, `template/corpus` what those with a corpus do, and `template/TYPE` the rest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import JobDescription, find_tasks
from ev_platform.tasks.types import TASK_TYPES

_TEMPLATE = Path(__file__).parent / "template"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_JOB = "job_description.json"
# Parts of the README, not files of the folder.
_PARTS = ("steps.md", "rows.md")


def new_task(name: str, kind: str, description: str, tasks_dir: Path) -> Path:
    """Write a task folder below `tasks_dir` and return it.

    Args:
        name: Letters, digits, `_` and `-`; becomes the partition's and the model's name.
        kind: Task type.
        description: What the model is for, in a sentence or two.
        tasks_dir: EV_TASKS_DIR; made if missing.

    Raises:
        UserError: If the name, the type or the description cannot be used, or something of that name exists.
    """
    description = " ".join(description.split())
    shortest = next(m.min_length for m in JobDescription.model_fields["task_description"].metadata)
    if not re.fullmatch(_NAME, name):
        raise UserError(
            f"{name!r} cannot be a task's name: take up to 64 of a to z, A to Z, 0 to 9, _ and -, the first no _ or -."
        )
    if kind not in TASK_TYPES:
        raise UserError(f"There is no task type {kind!r}: choose one of {', '.join(TASK_TYPES)}.")
    if len(description) < shortest:
        raise UserError(
            f"The description {description!r} is too short: say in a sentence what the model is for, such as "
            f"'Answer questions about heat pumps in a few words.'."
        )
    folder = tasks_dir / name
    if name in find_tasks(tasks_dir):
        raise UserError(f"There is a task {name!r} already: choose another name.")
    try:
        folder.mkdir(parents=True)
        layers = [_TEMPLATE, *([_TEMPLATE / "corpus"] if TASK_TYPES[kind].has_corpus else []), _TEMPLATE / kind]
        files = {part: file for layer in layers for part, file in _files(layer)}
        job = json.loads(files.pop(_JOB).read_text(encoding="utf-8")) if _JOB in files else {}
        words = json.dumps({"task_description": description} | job, ensure_ascii=False, indent=2)
        (folder / _JOB).write_text(words + "\n", encoding="utf-8")
        steps, rows = (files.pop(part).read_text(encoding="utf-8") for part in _PARTS)
        values = {"steps": steps.strip(), "rows": rows, "name": name, "type": kind, "folder": str(folder)}
        for part, file in files.items():
            text = file.read_text(encoding="utf-8")
            for key, value in (values | {"description": description}).items():
                text = text.replace(f"{{{key}}}", value)
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{folder} exists already: choose another name, or move it away.") from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): set EV_TASKS_DIR to another folder."
        ) from error
    return folder


def is_sample(file: Path) -> bool:
    """Return whether a file of rows is still as `new_task` wrote it."""
    size = file.stat().st_size
    samples = [sample for sample in _TEMPLATE.glob(f"*/{file.name}") if sample.stat().st_size == size]
    return any(sample.read_bytes() == file.read_bytes() for sample in samples)


def _files(layer: Path) -> list[tuple[str, Path]]:
    """Return (path below the task's folder, template) of the files of one layer."""
    below = [file for file in layer.iterdir() if file.is_file()]
    below += [file for folder in layer.glob("texts") for file in folder.iterdir()]
    return [(file.relative_to(layer).as_posix(), file) for file in sorted(below)]
