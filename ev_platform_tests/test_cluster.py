"""Work on Ray: the rows of a table on two nodes of this machine, one of which dies."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import polars as pl
import psutil
import pytest

from ev_platform import cluster
from ev_platform.cluster import here, on_ray
from ev_platform.corpus import chunk_documents, clean_documents, extract_documents
from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint
from ev_platform.retrieval import embed_chunks
from ev_platform.tasks.config import CorpusConfig
from ev_platform_tests.corpus.files import PROSE, bodies_of, page, pdf

RAY = Path(sys.executable).with_name("ray")
NUMBERS = pl.DataFrame({"n": range(40)})


def squared(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(n=pl.col("n") ** 2)


def on_node(frame: pl.DataFrame, seconds: float) -> pl.DataFrame:
    """Say on which node it is, after some seconds of work."""
    import ray

    time.sleep(seconds)
    return frame.with_columns(node=pl.lit(ray.get_runtime_context().get_node_id()))


def refusing(frame: pl.DataFrame) -> pl.DataFrame:
    raise UserError(f"Row {frame['n'][0]} is none: leave it out.")


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(cluster, "ROWS_PER_TASK", 4)


@pytest.fixture
def two_nodes(monkeypatch):
    """Yield the processes of a head and of a second node, each with one processor."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Another test may have started a Ray of this machine's own, which lets no other node in.
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    ways = (
        ["--head", f"--port={address.split(':')[1]}", f"--temp-dir={folder}", "--include-dashboard=false"],
        [f"--address={address}"],
    )
    nodes = []
    try:
        for way in ways:
            command = [RAY, "start", *way, "--num-cpus=1", "--node-ip-address=127.0.0.1", "--block"]
            nodes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
            until = time.monotonic() + 120
            while not any("raylet" in p.name() for p in psutil.Process(nodes[-1].pid).children(recursive=True)):
                assert nodes[-1].poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield nodes
    finally:
        for node in reversed(nodes):
            end(node, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def end(node: subprocess.Popen, number: signal.Signals) -> None:
    """End a node with all of its processes."""
    try:
        family = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    for process in psutil.wait_procs(family, timeout=20)[1]:
        process.kill()
    node.wait()


def test_few_rows_are_not_worth_a_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "connected", lambda: pytest.fail("Ray was asked"))
    assert on_ray(squared, NUMBERS).equals(here(squared, NUMBERS))


def test_missing_ray_is_told_with_the_extra_to_install(monkeypatch, small_tasks):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed .* pip install 'ev-platform\[cluster\]', or unset EV_ENGINE"):
        on_ray(squared, NUMBERS)


@pytest.mark.slow  # two Ray nodes
@pytest.mark.timeout(900)
def test_two_nodes_share_the_work_and_give_the_rows_of_one_process_though_one_dies(store, small_tasks, two_nodes):
    files = [(f"https://a.example/{n}.html", page(body=f"<p>{n}. {PROSE * (40 - n)}</p>")) for n in range(40)]
    files += [("https://a.example/b.pdf", pdf(PROSE, PROSE)), ("https://a.example/a.pdf", b"no PDF")]
    bodies = bodies_of(store, *files)

    assert on_ray(squared, NUMBERS).equals(squared(NUMBERS))  # in their order
    with pytest.raises(UserError, match=r"^Row 0 is none: leave it out\.$"):
        on_ray(refusing, NUMBERS)
    assert corpus_of(bodies, store, on_ray) == corpus_of(bodies, store, here)

    shares = Counter(on_ray(partial(on_node, seconds=0.5), NUMBERS)["node"])
    print(f"\nrows on each node: {sorted(shares.values())}")
    assert len(shares) == 2

    second = threading.Timer(4, end, (two_nodes[1], signal.SIGKILL))
    second.start()
    done = on_ray(partial(on_node, seconds=1.5), NUMBERS)
    second.join()
    assert two_nodes[1].poll() is not None
    assert done["n"].equals(NUMBERS["n"])
    assert corpus_of(bodies, store, on_ray) == corpus_of(bodies, store, here)


def corpus_of(bodies: pl.DataFrame, store, spread) -> dict[str, str]:
    """Return the fingerprints of a corpus."""
    config = CorpusConfig(min_words=20, min_relevance=0.0, near_duplicate_jaccard=1.0)
    tables = {"documents": extract_documents(bodies, store, spread=spread)}
    about = "Answer questions about electric vehicle charging stations, cables and connectors."
    tables |= clean_documents(tables["documents"], about, config, spread=spread)
    tables["chunks"] = chunk_documents(
        tables["clean_documents"], lambda texts: [len(text.split()) for text in texts], config
    )
    tables["chunk_vectors"] = embed_chunks(tables["chunks"], spread=spread)
    assert all(tables[table].height for table in ("documents", "clean_documents", "chunks", "chunk_vectors"))
    return {table: frame_fingerprint(table, frame) for table, frame in tables.items()}
