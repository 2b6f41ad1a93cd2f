import pytest

from .harness import run_undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A full run of the tiny task by `ev-platform run`, which nothing disturbed; nothing may change it."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))
