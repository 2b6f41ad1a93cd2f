"""A bare task folder, and what is said of a training file of some content in it."""

import json

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks import Task
from ev_platform.tasks.rows import read_rows


@pytest.fixture
def task(tmp_path):
    return Task("cars", tmp_path)


@pytest.fixture
def read(task):
    """Return a function that reads a training file of the given content, and config.yaml beside it."""

    def read(content, name="train.csv", config=""):
        (task.folder / "config.yaml").write_text(config)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        (task.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_rows(Task("cars", task.folder), "train")

    return read


@pytest.fixture
def refused(task, read):
    """Return a function that gives the one sentence which a content is refused with, after its file's path."""

    def refused(content, name="train.csv", config=""):
        with pytest.raises(UserError) as error:
            read(content, name, config)
        said = str(error.value)
        assert said.startswith(str(task.folder / name))
        assert said.endswith(".") and "\n" not in said
        return said.removeprefix(str(task.folder / name)).strip()

    return refused
