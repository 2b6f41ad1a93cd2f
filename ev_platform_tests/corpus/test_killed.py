"""SIGKILL while a corpus is built: what was published can be read, and a rerun ends where an undisturbed run does."""

import random
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import forkserver, get_context
from pathlib import Path

import polars as pl
import pymupdf  # noqa: TID253 - this test makes a PDF; loading the graph is no concern here
import pytest

from ev_platform.collect.bodies import blank_row
from ev_platform.records import stable_columns, to_frame
from ev_platform.storage import Store
from ev_platform.tasks.config import CorpusConfig
from ev_platform.tasks.sources import Sources
from ev_platform_tests.tiny import PAGES, page

N_KILLS = 5
TABLES = ("documents", "clean_documents", "dropped_documents", "chunks", "chunk_vectors", "corpus_report")
ABOUT = "Answer questions about electric vehicle charging stations, cables and connectors."
GUIDE = (
    "An electric vehicle charging station at work shares one supply among many charging points. The controller reads "
    "the meter of the building every second and gives each charging car what is left, at least six amperes each.",
    "Drivers start a charging session with a card. The charging station asks the operator whether the card is valid, "
    "closes the contactor, and sends the energy that the electric car has taken to the operator at the end.",
)
PRELOADED = ["ev_platform_tests.corpus.test_killed", "sentence_transformers", "trafilatura", "pebble"]


def words(texts):
    return [len(text.split()) for text in texts]


def build_corpus(root: Path) -> None:
    """Bodies to report through the store, as the assets do it."""
    from ev_platform import corpus, retrieval

    store = Store(root)

    def build(*tables, inputs, compute):
        prints = {name: store.current(name, "t").fingerprint for name in inputs}
        store.build(tables, "t", inputs=prints, config={}, code="1", compute=compute)
        return [store.read(name, "t") for name in tables]

    bodies = store.read("raw_pages", "t")
    config = CorpusConfig(min_words=20, chunk_tokens=40, chunk_min_tokens=10)
    (documents,) = build(
        "documents",
        inputs=["raw_pages"],
        compute=lambda: {"documents": corpus.extract_documents(bodies, store, workers=2)},
    )
    clean, dropped = build(
        "clean_documents",
        "dropped_documents",
        inputs=["documents"],
        compute=lambda: corpus.clean_documents(documents, ABOUT, config),
    )
    (chunks,) = build(
        "chunks",
        inputs=["clean_documents"],
        compute=lambda: {"chunks": corpus.chunk_documents(clean, words, config)},
    )
    build("chunk_vectors", inputs=["chunks"], compute=lambda: {"chunk_vectors": retrieval.embed_chunks(chunks)})
    build(
        "corpus_report",
        inputs=["clean_documents", "dropped_documents", "chunks"],
        compute=lambda: {"corpus_report": corpus.summarise_corpus(clean, dropped, chunks)},
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A store that holds collected pages and a PDF, and nothing else."""
    root = tmp_path_factory.mktemp("killed") / "collected"
    store = Store(root)
    document = pymupdf.open()
    for text in GUIDE:
        document.new_page().insert_textbox((72, 120, 500, 700), text)
    bodies = {f"https://a.example/{name}": ("web", page(name).encode()) for name in PAGES}
    bodies["https://a.example/cables.pdf"] = ("pdf", document.tobytes(no_new_id=True))
    rows = []
    for url, (kind, data) in bodies.items():
        sha, path = store.put_blob(data)
        rows.append(replace(blank_row(url, kind, Sources()), content_sha256=sha, path=path, status=200))
    store.publish("raw_pages", "t", to_frame("raw_pages", rows))
    return root


@pytest.fixture(scope="module")
def start(collected):
    # The libraries are loaded once, in the server that the processes are forked from: a kill then meets work. A server
    # that other tests have started would not load them.
    context = get_context("forkserver")
    forkserver._forkserver._stop()
    context.set_forkserver_preload(PRELOADED)

    def start(root):
        process = context.Process(target=build_corpus, args=(root,))
        process.start()
        return process

    yield start
    forkserver._forkserver._stop()


def rows_of(root):
    store = Store(root)
    return {table: store.read(table, "t").select(stable_columns(table)) for table in TABLES}


def children_of(pid):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found += [int(folder.name), *children_of(int(folder.name))]
    return found


def is_running(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(900)  # up to twelve builds; beside other work each takes several times as long
@pytest.mark.slow  # `test_storage` and `test_workers` kill what it is made of
def test_corpus_killed_at_any_moment_ends_as_an_undisturbed_one(collected, start, tmp_path):
    for calm in (tmp_path / "first", tmp_path / "second"):  # the first also brings everything into the page cache
        shutil.copytree(collected, calm)
        started = time.monotonic()
        undisturbed = start(calm)
        undisturbed.join()
        duration = time.monotonic() - started
        assert undisturbed.exitcode == 0
    expected = rows_of(calm)
    assert expected["chunks"].height > 5 and "pdf" in expected["clean_documents"]["kind"].to_list()

    chance, n_killed, orphans = random.Random(11), 0, []
    for n in range(N_KILLS):
        root = shutil.copytree(collected, tmp_path / f"killed-{n}")
        victim = start(root)
        time.sleep(chance.uniform(0.05, 0.95) * duration)
        orphans += children_of(victim.pid)
        victim.kill()
        victim.join()
        n_killed += victim.exitcode == -signal.SIGKILL
        for frame in rows_of(root).values():  # whatever is current can be read
            assert isinstance(frame, pl.DataFrame)
        again = start(root)
        again.join()
        assert again.exitcode == 0
        for table, frame in rows_of(root).items():
            assert frame.equals(expected[table]), table
    assert n_killed >= N_KILLS - 1
    deadline = time.monotonic() + 10
    while any(map(is_running, orphans)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in orphans if is_running(pid)], "workers outlive the process that started them"
