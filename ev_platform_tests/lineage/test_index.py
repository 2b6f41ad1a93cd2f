"""The stored edges: built once for each version, anew where one was rewritten, gone with it."""

from types import SimpleNamespace

import polars as pl
import pytest

from ev_platform.lineage.index import Index, key_of
from ev_platform.records import to_frame
from ev_platform_tests.evaluation.stored import LazyStore, chunk

TASK = "charging"


@pytest.fixture
def store(tmp_path):
    store = LazyStore(tmp_path / "it's")
    store.publish("chunks", TASK, to_frame("chunks", [chunk(0), chunk(1)]))
    return store


def opened(store):
    """Open the index; say what had to be read for it."""
    read = []
    index = Index(store, TASK, lambda sources: (read.append(source) or source for source in sources))
    return SimpleNamespace(index=index, read=[source.version for source in read])


def passages_of(index, document):
    keys = pl.Series([key_of(document)], dtype=pl.UInt64).to_numpy()
    return set(index.follow("document", "chunk", keys, down=True).far.tolist())


def test_version_is_read_once_and_new_ones_beside_it(store):
    first = store.current("chunks", TASK).version
    assert opened(store).read == [first]
    assert opened(store).read == []
    second = store.publish("chunks", TASK, to_frame("chunks", [chunk(2)])).version
    again = opened(store)
    assert again.read == [second]
    assert passages_of(again.index, "doc_2") == {key_of("chk_2")}
    assert passages_of(again.index, "doc_0") == {key_of("chk_0")}


def test_version_rewritten_in_its_place_is_read_anew(store):
    opened(store)
    version = store.current("chunks", TASK).version
    file = store.root / "tables" / "chunks" / TASK / f"{version}.parquet"
    pl.read_parquet(file).filter(pl.col("chunk_id") != "chk_0").write_parquet(file)
    again = opened(store)
    assert again.read == [version]
    assert passages_of(again.index, "doc_0") == set()
    assert passages_of(again.index, "doc_1") == {key_of("chk_1")}


def test_edges_go_with_their_version_and_hold_no_text(store):
    opened(store)
    (stored,) = (store.root / "lineage").rglob("*.npy")
    assert b"chk_" not in stored.read_bytes()
    assert stored.stat().st_mode & 0o077 == 0
    for file in (store.root / "tables" / "chunks" / TASK).iterdir():
        file.unlink()
    opened(store)
    assert list((store.root / "lineage").rglob("*.npy")) == []
