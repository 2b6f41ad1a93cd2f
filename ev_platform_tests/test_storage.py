import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta

import duckdb
import polars as pl
import pytest

from ev_platform import storage
from ev_platform.collect.bodies import blank_row
from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint
from ev_platform.records import Metric, to_frame
from ev_platform.storage import Store, now
from ev_platform.tasks.sources import Sources

# A version of the table `eval_report` whose rows all hold its own number, one row more each time, so that a reader
# can tell a whole version from a torn one.
VERSION = """
from ev_platform.records import Metric, to_frame

def version(k):
    return to_frame("eval_report", [Metric(f"s{i}", None, "f1", float(k), None, None, i) for i in range(k + 1)])
"""
exec(VERSION)  # the very text that the child processes run
version = globals()["version"]

COUNTS = "SELECT count(*), min(value), max(value) FROM eval_report WHERE task = 'cars'"


def child(script, *arguments):
    return [sys.executable, "-c", VERSION + textwrap.dedent(script), *map(str, arguments)]


def seen(store):
    """Return what a plain DuckDB client sees."""
    with duckdb.connect(str(store.catalogue), read_only=True) as connection:
        return connection.execute(COUNTS).fetchone()


def temporary_files(store):
    return [path for path in store.root.rglob("*") if path.name.startswith(".tmp")]


# ---- tables ----


def test_read_before_the_first_publication_gives_the_empty_table(store):
    assert store.read("eval_report", "cars").schema == version(0).schema
    assert store.read("eval_report", "cars").is_empty()
    assert store.current("eval_report", "cars") is None


def test_publish_keeps_every_version_readable_under_its_name(store):
    records = [store.publish("eval_report", "cars", version(k)) for k in range(3)]
    assert store.read("eval_report", "cars").equals(version(2))
    for k, record in enumerate(records):
        assert store.read("eval_report", "cars", record.version).equals(version(k))
        assert record.n_rows == k + 1
    assert store.history("eval_report", "cars") == records
    assert store.current("eval_report", "cars") == records[-1]


def test_publish_of_one_task_leaves_another_task_alone(store):
    store.publish("eval_report", "cars", version(1))
    store.publish("eval_report", "trains", version(4))
    assert store.read("eval_report", "cars").equals(version(1))
    assert seen(store) == (2, 1, 1)


def test_publish_of_a_frame_with_other_columns_is_refused_and_stores_nothing(store):
    store.publish("eval_report", "cars", version(1))
    for wrong in (
        version(2).drop("n_rows"),
        version(2).with_columns(pl.lit(1).alias("extra")),
        version(2).with_columns(pl.col("n_rows").cast(pl.Int32)),
        version(2).select(pl.all().reverse()).select(sorted(version(2).columns)),
    ):
        with pytest.raises(pl.exceptions.SchemaError, match="eval_report"):
            store.publish("eval_report", "cars", wrong)
    assert len(store.history("eval_report", "cars")) == 1


def test_publish_of_an_undeclared_table_is_refused(store):
    with pytest.raises(KeyError, match="leftovers"):
        store.publish("leftovers", "cars", version(1))


def test_publish_in_a_folder_with_odd_characters_is_readable_by_all_clients(tmp_path):
    store = Store(tmp_path / "it's env=prod")
    store.publish("eval_report", "cars", version(2))
    assert store.read("eval_report", "cars").equals(version(2))
    with duckdb.connect(str(store.catalogue), read_only=True) as connection:
        columns = [column for column, *_ in connection.execute("DESCRIBE eval_report").fetchall()]
    assert columns == ["task", *version(0).columns]
    assert seen(store) == (3, 2, 2)


KILLED = """
import os, signal, sys
from pathlib import Path
from ev_platform.storage import Store

left, real = int(sys.argv[2]), os.replace

def replace(source, target):
    global left
    left -= 1
    if left == 0:
        print(Path(target).name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)

os.replace = replace
Store(Path(sys.argv[1])).build(
    ["eval_report"], "cars", inputs={}, config={"k": 2}, code="c", compute=lambda: {"eval_report": version(2)}
)
print("finished")
"""


def build_second_version(store):
    return store.build(
        ["eval_report"],
        "cars",
        inputs={},
        config={"k": 2},
        code="c",
        compute=lambda: {"eval_report": version(2)},
    )


@pytest.mark.parametrize(("call", "replaced"), [(1, ".parquet"), (2, ".json"), (3, "CURRENT"), (4, "ev.duckdb")])
def test_build_killed_at_any_replacement_leaves_the_earlier_version_and_a_rerun_publishes(store, call, replaced):
    first = store.publish("eval_report", "cars", version(1))
    answer = subprocess.run(child(KILLED, store.root, call), capture_output=True, text=True)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert answer.stdout.strip().endswith(replaced)

    # The earlier version is whole under its name, and the catalogue shows it until the new one is complete.
    assert store.read("eval_report", "cars", first.version).equals(version(1))
    assert seen(store) == (2, 1, 1)
    # The pointer is what publishes: before it moves readers get the old rows, after it the new ones, never a mixture.
    assert store.read("eval_report", "cars").equals(version(1 if call <= 3 else 2))

    built = build_second_version(store)
    assert built.is_unchanged == (call == 4)
    assert store.read("eval_report", "cars").equals(version(2))
    assert seen(store) == (3, 2, 2), "the rerun left the catalogue behind"
    assert store.read("eval_report", "cars", first.version).equals(version(1))


def test_build_that_is_not_killed_moves_four_files(store):
    """Says that the numbers of the test above name every replacement there is."""
    store.publish("eval_report", "cars", version(1))
    answer = subprocess.run(child(KILLED, store.root, 5), capture_output=True, text=True)
    assert answer.stdout.strip() == "finished", answer.stderr
    assert seen(store) == (3, 2, 2)
    assert not temporary_files(store)


WRITER = """
import sys
from pathlib import Path
from ev_platform.storage import Store
store = Store(Path(sys.argv[1]))
for k in range(1, 31):
    store.publish("eval_report", "cars", version(k))
"""


def test_catalogue_is_readable_and_whole_at_every_moment_while_another_process_publishes(store):
    store.publish("eval_report", "cars", version(0))
    writer = subprocess.Popen(child(WRITER, store.root), stderr=subprocess.PIPE, text=True)
    answers = []
    while writer.poll() is None:
        answers.append(seen(store))
    assert writer.returncode == 0, writer.stderr.read()
    assert all(n == low + 1 == high + 1 for n, low, high in answers), answers
    assert answers == sorted(answers), "a reader went back to an earlier version"
    assert len(set(answers)) > 5, "the reader met too few versions to say anything"
    assert seen(store) == (31, 30, 30)


PUBLISH_ONE = """
import sys
from pathlib import Path
from ev_platform.storage import Store
Store(Path(sys.argv[1])).publish("eval_report", "trains", version(4))
"""


def test_catalogue_shows_what_another_process_published_while_it_was_being_written(store, monkeypatch):
    store.publish("eval_report", "cars", version(0))
    real, others = os.replace, []

    def replace_late(source, target):
        if target == store.catalogue and not others:
            others.append(subprocess.Popen(child(PUBLISH_ONE, store.root)))
            assert others[0].wait(timeout=60) == 0
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    store.publish("eval_report", "cars", version(1))
    with duckdb.connect(str(store.catalogue), read_only=True) as connection:
        counts = connection.execute("SELECT task, count(*) FROM eval_report GROUP BY ALL ORDER BY ALL").fetchall()
    assert counts == [("cars", 2), ("trains", 5)]


# ---- build ----


class Computation:
    """Counts its calls and gives the rows it is told to."""

    def __init__(self):
        self.n_calls = 0
        self.k = 1

    def __call__(self):
        self.n_calls += 1
        return {"eval_report": version(self.k)}


@pytest.fixture
def computation():
    return Computation()


def build(store, computation, **changes):
    arguments = {"inputs": {"chunks": "f1"}, "config": {"top_k": 2}, "code": "c1"} | changes
    return store.build(["eval_report"], "cars", compute=computation, **arguments)


def test_build_with_the_same_inputs_computes_once(store, computation):
    assert not build(store, computation).is_unchanged
    again = build(store, computation)
    assert again.is_unchanged
    assert computation.n_calls == 1
    assert again.records["eval_report"] == store.current("eval_report", "cars")


@pytest.mark.parametrize(
    "change",
    [{"inputs": {"chunks": "f2"}}, {"config": {"top_k": 3}}, {"code": "c2"}],
    ids=lambda change: next(iter(change)),
)
def test_build_computes_again_when_what_it_depends_on_changed(store, computation, change):
    build(store, computation)
    computation.k = 2
    assert not build(store, computation, **change).is_unchanged
    assert computation.n_calls == 2
    assert store.read("eval_report", "cars").equals(version(2))
    record = store.current("eval_report", "cars")
    assert (record.inputs, record.config, record.code_version) == tuple(
        ({"inputs": {"chunks": "f1"}, "config": {"top_k": 2}, "code": "c1"} | change)[name]
        for name in ("inputs", "config", "code")
    )


def test_build_of_a_changed_input_that_gives_equal_rows_says_unchanged_and_is_known_next_time(store, computation):
    build(store, computation)
    built = build(store, computation, inputs={"chunks": "f2"})
    assert built.is_unchanged
    build(store, computation, inputs={"chunks": "f2"})
    assert computation.n_calls == 2


def test_build_forced_with_equal_rows_stores_nothing_new(store, computation):
    build(store, computation)
    assert build(store, computation, force=True).is_unchanged
    assert computation.n_calls == 2
    assert len(store.history("eval_report", "cars")) == 1


def test_build_forced_with_other_rows_publishes_them(store, computation):
    build(store, computation)
    computation.k = 5
    assert not build(store, computation, force=True).is_unchanged
    assert store.read("eval_report", "cars").equals(version(5))


def test_build_whose_computation_fails_leaves_the_earlier_version_and_tries_again(store, computation):
    build(store, computation)

    def broken():
        raise RuntimeError("no such page")

    with pytest.raises(RuntimeError, match="no such page"):
        build(store, broken, code="c2")
    assert store.read("eval_report", "cars").equals(version(1))
    build(store, computation, code="c2")
    assert computation.n_calls == 2


def test_build_interrupted_between_two_tables_computes_both_again(store):
    def frames():
        return {"training_log": to_frame("training_log", []), "eval_report": version(3)}

    def run(compute):
        return store.build(["training_log", "eval_report"], "cars", inputs={}, config={}, code="c", compute=compute)

    class Torn(dict):
        def __getitem__(self, table):
            if table == "eval_report":
                raise KeyboardInterrupt
            return super().__getitem__(table)

    with pytest.raises(KeyboardInterrupt):
        run(lambda: Torn(frames()))
    assert store.current("training_log", "cars") is not None and store.current("eval_report", "cars") is None
    assert not run(frames).is_unchanged
    assert len(store.history("training_log", "cars")) == 1
    assert store.read("eval_report", "cars").equals(version(3))


def test_build_that_finds_nothing_to_do_makes_a_missing_catalogue_again(store, computation):
    build(store, computation)
    store.catalogue.unlink()
    assert build(store, computation).is_unchanged
    assert seen(store) == (2, 1, 1)


# ---- bodies, weights ----


def test_put_blob_stores_equal_bytes_once(store):
    sha, path = store.put_blob(b"bytes")
    stamp = (store.root / path).stat().st_mtime_ns
    assert store.put_blob(b"bytes") == (sha, path)
    assert (store.root / path).read_bytes() == b"bytes"
    assert (store.root / path).stat().st_mtime_ns == stamp
    assert store.put_blob(b"other")[1] != path


def fill(store, text):
    with store.artifact("adapter", lambda: "a1") as folder:
        assert list(folder.iterdir()) == []
        (folder / "weights").write_text(text)


def test_artifact_that_is_there_is_never_replaced(store):
    fill(store, "old")
    fill(store, "new")
    assert {f.name: f.read_text() for f in store.artifact_path("adapter", "a1").iterdir()} == {"weights": "old"}
    assert not temporary_files(store)


def test_artifact_is_not_there_before_its_block_ends(store):
    with store.artifact("adapter", lambda: "a1"):
        assert not store.artifact_path("adapter", "a1").exists()
    assert store.artifact_path("adapter", "a1").is_dir()


@pytest.mark.parametrize("is_first", [True, False])
def test_artifact_whose_block_raises_leaves_nothing_and_keeps_the_earlier_one(store, is_first):
    if not is_first:
        fill(store, "old")
    with pytest.raises(RuntimeError, match="out of memory"), store.artifact("adapter", lambda: "a1") as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError("out of memory")
    assert not temporary_files(store)
    path = store.artifact_path("adapter", "a1")
    assert not path.exists() if is_first else (path / "weights").read_text() == "old"


def test_record_on_disk_is_plain_json_with_the_fingerprint_of_its_rows(store):
    record = store.publish("eval_report", "cars", version(2), inputs={"chunks": "f1"}, config={"a": [1]})
    (file,) = (store.root / "tables").rglob(f"{record.version}.json")
    data = json.loads(file.read_text())
    assert data["fingerprint"] == frame_fingerprint("eval_report", store.read("eval_report", "cars"))
    assert data["inputs"] == {"chunks": "f1"} and data["config"] == {"a": [1]}
    assert Metric(**store.read("eval_report", "cars").row(0, named=True)) == Metric(
        "s0", None, "f1", 2.0, None, None, 0
    )


def test_version_of_an_older_release_is_read_with_what_it_lacks_empty(store):
    frame = to_frame("raw_pages", [blank_row("https://a.example/", "web", Sources())])
    record = store.publish("raw_pages", "t", frame)
    file = store.root / "tables" / "raw_pages" / "t" / f"{record.version}.parquet"
    pl.read_parquet(file).drop("charset").with_columns(old=1).write_parquet(file)
    assert store.read("raw_pages", "t").equals(frame)


# ---- a clock that was moved back, a disk that is full ----


def test_version_published_after_the_clock_was_moved_back_sorts_last_and_is_the_current_one(store, monkeypatch):
    first = store.publish("eval_report", "cars", version(1))
    monkeypatch.setattr(storage, "now", lambda: now() - timedelta(days=400))
    second = store.publish("eval_report", "cars", version(2))
    third = store.publish("eval_report", "cars", version(3))
    assert store.current("eval_report", "cars") == third
    assert store.history("eval_report", "cars") == [first, second, third]
    assert first.finished_at < second.finished_at < third.finished_at


def test_catalogue_that_a_killed_process_left_behind_is_made_again_though_the_clock_was_moved_back(store, monkeypatch):
    store.publish("eval_report", "cars", version(1))
    os.utime(store.catalogue, (time.time() + 3600,) * 2)  # built before the clock was moved back by an hour
    with monkeypatch.context() as patch:
        patch.setattr(store, "rebuild_catalogue", lambda: None)
        build_second_version(store)
    assert seen(store) == (2, 1, 1)
    assert build_second_version(store).is_unchanged
    assert seen(store) == (3, 2, 2)
    stamp = store.catalogue.stat().st_mtime_ns
    assert build_second_version(store).is_unchanged
    assert store.catalogue.stat().st_mtime_ns == stamp, "made again though nothing is missing"


@pytest.mark.parametrize("replaced", [".parquet", ".json", "CURRENT", "ev.duckdb"])
def test_disk_that_is_full_at_any_file_is_said_and_a_rerun_goes_on(store, monkeypatch, replaced):
    store.publish("eval_report", "cars", version(1))
    real = os.replace

    def full(source, target):
        if str(target).endswith(replaced):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=f"The disk of {store.root} is full: there is no room for .*run this again"):
            build_second_version(store)
    assert not temporary_files(store)
    assert seen(store) == (2, 1, 1)
    is_published = replaced == "ev.duckdb"
    assert store.read("eval_report", "cars").equals(version(2 if is_published else 1))
    assert build_second_version(store).is_unchanged == is_published
    assert seen(store) == (3, 2, 2)


def test_disk_that_is_full_while_the_catalogue_is_written_is_said(tmp_path):
    # DuckDB has an error of its own for it, so a process that may write no large file stands for the full disk.
    script = """
    import resource, signal, sys
    from pathlib import Path
    from ev_platform.storage import Store
    store = Store(Path(sys.argv[1]))
    store.publish("eval_report", "cars", version(1))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        store.publish("eval_report", "cars", version(2))
    except Exception as error:
        print(type(error).__name__, error)
    """
    answer = subprocess.run(child(script, tmp_path / "data"), capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("UserError The disk of"), answer.stdout + answer.stderr
    assert "eval_report is published, and the next run shows it" in answer.stdout


def test_body_that_finds_no_room_is_said(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="no room for a fetched body"):
        store.put_blob(b"bytes")
    assert not temporary_files(store)


def test_weights_that_find_no_room_are_said_whoever_writes_them(store):
    with (
        pytest.raises(UserError, match=r"is full: there is no room for the files of adapter"),
        store.artifact("adapter", lambda: "adapter_1"),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not list(store.root.glob("artifacts/adapter/*"))
