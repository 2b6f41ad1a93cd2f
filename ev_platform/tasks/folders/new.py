"""A new task folder: what a person fills in, without a single made-up row."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import JobDescription, find_tasks
from ev_platform.tasks.types import TASK_TYPES

_TEMPLATE = Path(__file__).parent / "template"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_HEADER = "question,answer,source\n"


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
        job = json.dumps({"task_description": description}, ensure_ascii=False, indent=2)
        (folder / "job_description.json").write_text(job + "\n", encoding="utf-8")
        for file in sorted(_TEMPLATE.iterdir()):
            text = file.read_text(encoding="utf-8")
            for key, value in {"name": name, "type": kind, "folder": str(folder), "description": description}.items():
                text = text.replace(f"{{{key}}}", value)
            (folder / file.name).write_text(text, encoding="utf-8")
        for split in ("train", "test"):
            (folder / f"{split}.csv").write_text(_HEADER, encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{folder} exists already: choose another name, or move it away.") from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): set EV_TASKS_DIR to another folder."
        ) from error
    return folder
