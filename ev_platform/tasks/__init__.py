"""Task folders: what a person writes to get a model.

A task is a folder with `job_description.json`, `train.csv|jsonl|json`, `test.csv|jsonl|json`, `unstructured.csv` (texts
without labels or questions), `config.yaml` and `sources.yaml` (what to collect). The layout is that of the distil labs
task folders. What a task *type* does with its rows is in this package too, one file each, behind `TaskType`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ev_platform.errors import UserError
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.models import read_model
from ev_platform.tasks.sources import Sources

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class JobDescription(BaseModel):
    """`job_description.json`: the task in a sentence or two, as a model and a teacher will read it.

    Attributes:
        task_description: What the model is for.
        classes_description: What each label of a classification task means.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    task_description: str = Field(min_length=10)
    classes_description: dict[str, str] = {}


@dataclass(frozen=True)
class Task:
    """A task folder that exists; its files are read when they are asked for."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> TaskConfig:
        """`config.yaml`, or the defaults."""
        file = self.folder / "config.yaml"
        return read_model(TaskConfig, file) if file.exists() else TaskConfig()

    @cached_property
    def sources(self) -> Sources:
        """`sources.yaml`, or nothing to collect."""
        file = self.folder / "sources.yaml"
        return read_model(Sources, file) if file.exists() else Sources()

    @cached_property
    def job(self) -> JobDescription:
        """`job_description.json`.

        Raises:
            UserError: If it is missing or unusable.
        """
        file = self.folder / "job_description.json"
        if not file.exists():
            raise UserError(f'{file} is missing: write {{"task_description": "what the model is for"}} there.')
        return read_model(JobDescription, file)

    @property
    def description(self) -> str:
        """The task in words.

        Raises:
            UserError: If `job_description.json` is missing or unusable.
        """
        return self.job.task_description

    @cached_property
    def classes(self) -> dict[str, str]:
        """Label to its description; empty where the task type has no labels.

        The labels are those of `classes_description`, else those of the train rows, without descriptions.

        Raises:
            UserError: If they are to be found in the train rows and those cannot be read.
        """
        from ev_platform.tasks.rows import read_rows
        from ev_platform.tasks.types import get_task_type

        if not get_task_type(self.config.type).has_classes:
            return {}
        return self.job.classes_description or dict.fromkeys(sorted({r.answer for r in read_rows(self, "train")}), "")

    @property
    def instructions(self) -> str:
        """The system message of every prompt: the description, with the classes where there are any."""
        from ev_platform.tasks.types import get_task_type

        return get_task_type(self.config.type).instructions(self.description, self.classes)


def find_tasks(tasks_dir: Path) -> dict[str, Task]:
    """Return the embedded example and every folder of `tasks_dir` that holds a `job_description.json`, by name."""
    folders = [EXAMPLES / "ev_charging"]
    if tasks_dir.is_dir():
        folders += sorted(f.parent for f in tasks_dir.glob("*/job_description.json"))
    return {folder.name: Task(folder.name, folder) for folder in folders}


def get_task(name: str, tasks_dir: Path) -> Task:
    """Return a task by its name.

    Raises:
        UserError: If there is no such folder.
    """
    tasks = find_tasks(tasks_dir)
    if name not in tasks:
        raise UserError(
            f"There is no task {name!r}: make the folder {tasks_dir / name} with a job_description.json in it, "
            f"or choose one of {', '.join(tasks)}."
        )
    return tasks[name]
