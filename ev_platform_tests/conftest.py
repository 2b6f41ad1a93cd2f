"""What several folders of tests share: a store, and the example's own pages and PDFs, collected and extracted once."""

import gc
import os
from pathlib import Path

# Two torch threads that spin beside another busy process slow each other down many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores are at work already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
import pytest

from ev_platform import settings
from ev_platform.collect import collect_pages, collect_pdfs
from ev_platform.corpus import clean_documents, extract_documents
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform.tasks import get_task

# What is imported and collected lives to the end: looking through all of it for garbage would take a sixth of the time.
gc.disable()


def pytest_collection_modifyitems(items):
    # What runs the whole path takes longest: it starts first, so that no process is left with it at the end.
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # else DuckDB complains at the end of objects that live on


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "data")


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Return a folder whose `data` and `tasks` are those of the settings."""
    monkeypatch.setenv("EV_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EV_TASKS_DIR", str(tmp_path / "tasks"))
    settings.get_settings.cache_clear()
    yield tmp_path
    settings.get_settings.cache_clear()


@pytest.fixture(scope="session")
def example_task():
    return get_task("ev_charging", Path("no-such-folder"))


@pytest.fixture(scope="session")
def example_store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="session")
def example_bodies(example_task, example_store):
    """Crawl the example's site over HTTP, PDFs included."""
    nothing = to_frame("raw_pages", [])
    return pl.concat(
        [
            collect_pages(example_task, example_store, previous=nothing, user_agent="ev-platform-test/1.0"),
            collect_pdfs(example_task, example_store, previous=nothing),
        ]
    )


@pytest.fixture(scope="session")
def example_documents(example_bodies, example_store):
    return extract_documents(example_bodies, example_store)


@pytest.fixture(scope="session")
def example_clean(example_documents, example_task):
    """Return the tables `clean_documents` and `dropped_documents`; embeds every page, which takes its time."""
    return clean_documents(example_documents, example_task.description, example_task.config.corpus)
