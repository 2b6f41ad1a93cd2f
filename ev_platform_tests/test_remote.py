import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pytest

from ev_platform import records, storage
from ev_platform.collect.bodies import blank_row
from ev_platform.errors import UserError
from ev_platform.files import write_atomic_at
from ev_platform.lineage.catalogue import show_query
from ev_platform.lineage.trace import trace
from ev_platform.registry import locked, read_aliases
from ev_platform.registry.promotion import rollback, settle
from ev_platform.registry.prune import prune
from ev_platform.remote import MovedError, Remote, one_view
from ev_platform.storage import Store
from ev_platform.tasks.sources import Sources
from ev_platform_tests.object_store import s3_server
from ev_platform_tests.registry.registered import PlainStore, add_version, conclude, gate
from ev_platform_tests.registry.test_prune import five_versions, train, upload
from ev_platform_tests.registry.test_prune import of as weights_of

s3fs = pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto is not installed")

VERSION = """
from ev_platform.records import Metric, to_frame

def version(k):
    return to_frame("eval_report", [Metric(f"s{i}", None, "f1", float(k), None, None, i) for i in range(k + 1)])
"""
exec(VERSION)
version = globals()["version"]


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def url(server, request):
    return f"{server}/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture
def machines(tmp_path, url):
    """Return two data folders of one object store, as two machines have them."""
    return Store(tmp_path / "one", url), Store(tmp_path / "two", url)


def files_of(store):
    return {str(f.relative_to(store.root)) for f in store.root.rglob("*") if f.is_file()}


# ---- tables ----


def test_what_one_machine_publishes_another_with_an_empty_folder_reads(machines):
    one, two = machines
    assert two.current("eval_report", "cars") is None
    first, second = (one.publish("eval_report", "cars", version(k)) for k in (1, 2))
    assert two.current("eval_report", "cars") == second
    assert two.read("eval_report", "cars").equals(version(2))
    assert two.read("eval_report", "cars", first.version).equals(version(1))
    assert two.history("eval_report", "cars") == [first, second]


def test_sql_on_another_machine_shows_all_versions_and_the_current_one(machines, capfd):
    one, two = machines
    for k in (1, 2):
        one.publish("eval_report", "cars", version(k))
    show_query(
        two,
        "SELECT count(*) AS n FROM eval_report_history",
        max_rows=5,
        max_width=80,
    )
    assert " 5 " in capfd.readouterr().out
    one.publish("eval_report", "cars", version(3))
    two.refresh()
    with duckdb.connect(str(two.catalogue), read_only=True) as connection:
        assert connection.execute("SELECT count(*), max(value) FROM eval_report").fetchone() == (4, 3.0)


def test_build_elsewhere_of_the_same_inputs_computes_nothing(machines):
    def build(store):
        return store.build(
            ["eval_report"], "cars", inputs={}, config={}, code="c", compute=lambda: {"eval_report": version(1)}
        )

    assert [build(store).is_unchanged for store in machines] == [False, True]


def test_of_two_machines_that_publish_from_the_same_state_one_wins_and_the_other_leaves_nothing(machines):
    one, two = machines
    one.publish("eval_report", "cars", version(0))
    with one_view():  # as the registry does: two reads now, and decides by it later
        two.current("eval_report", "cars")
        before = files_of(two)
        # Another process, so another view.
        subprocess.run(child("Store(root, url).publish('eval_report', 'cars', version(5))", one), check=True)
        with pytest.raises(MovedError, match="Another machine has changed tables/eval_report/cars/CURRENT"):
            two.publish("eval_report", "cars", version(2))
        assert files_of(two) == before
    assert two.read("eval_report", "cars").equals(version(5))
    assert len(two.history("eval_report", "cars")) == 2


def test_file_that_was_altered_in_the_store_is_refused(machines, url):
    one, two = machines
    record = one.publish("eval_report", "cars", version(1))
    key = f"{url}/tables/eval_report/cars/{record.version}.parquet"
    s3fs.S3FileSystem().pipe_file(key, b"other bytes")
    with pytest.raises(UserError, match="SHA-256 differs"):
        two.read("eval_report", "cars")
    assert not list(two.root.rglob("*.parquet"))


# ---- killed at any upload ----

PRELUDE = (
    VERSION
    + """
import os, signal, sys
from pathlib import Path
import s3fs
from ev_platform.storage import Store
root, url, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real = s3fs.S3FileSystem._call_s3

async def call(self, method, *args, **kwargs):
    global left
    if method == "put_object":
        left -= 1
        if left == 0:
            print(kwargs["Key"].rpartition("/")[2], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    return await real(self, method, *args, **kwargs)

s3fs.S3FileSystem._call_s3 = call
"""
)


def child(script, store, call=0):
    url = (store.root / "CACHE_OF").read_text()
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(store.root), url, str(call)]


BUILD = """
Store(root, url).build(
    ["eval_report"], "cars", inputs={}, config={"k": 2}, code="c", compute=lambda: {"eval_report": version(2)}
)
print("finished")
"""


def killed(script, store, call):
    answer = subprocess.run(child(script, store, call), capture_output=True, text=True)
    assert answer.returncode == (-signal.SIGKILL if "finished" not in answer.stdout else 0), answer.stderr
    return answer.stdout.strip()


def some_slow(*calls):
    return [pytest.param(call, marks=() if call == 3 else pytest.mark.slow) for call in calls]


@pytest.mark.parametrize("call", some_slow(1, 2, 3, 4, 5))
def test_publish_killed_at_any_upload_shows_the_earlier_version_and_a_rerun_publishes(machines, call):
    one, two = machines
    first = one.publish("eval_report", "cars", version(1))
    name = killed(BUILD, one, call)
    # Parquet file and sidecar go up side by side; then the word that they are complete, then the pointer.
    wanted = {1: (".json", ".parquet"), 2: (".json", ".parquet"), 4: "CURRENT", 5: "finished"}
    assert name.endswith(wanted[call]) if call != 3 else "." not in name
    assert two.read("eval_report", "cars").equals(version(1 if call < 5 else 2))
    assert two.read("eval_report", "cars", first.version).equals(version(1))
    assert all(two.read("eval_report", "cars", it.version).height for it in two.history("eval_report", "cars"))
    if call < 5:
        subprocess.run(child(BUILD, one), check=True, capture_output=True)
    two.refresh()
    for store in (one, two):
        assert store.read("eval_report", "cars").equals(version(2))
        with duckdb.connect(str(store.catalogue), read_only=True) as connection:
            assert connection.execute("SELECT count(*) FROM eval_report").fetchone() == (3,)


ARTIFACT = """
with Store(root, url).artifact("adapter", lambda: "a1") as folder:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "sub").mkdir()
    (folder / "sub" / "config").write_text("{}")
print("finished")
"""


@pytest.mark.parametrize("call", some_slow(1, 2, 3, 4))
def test_artifact_killed_at_any_upload_is_not_there_elsewhere_until_it_is_whole(machines, call):
    one, two = machines
    assert (killed(ARTIFACT, one, call) == "finished") == (call == 4)
    assert two.local("artifacts/adapter/a1").exists() == (call == 4)
    if call < 4:
        assert killed(ARTIFACT, one, 0) == "finished"
    folder = two.local("artifacts/adapter/a1")
    assert (folder / "weights").read_bytes() == b"w" * 1000 and (folder / "sub" / "config").read_text() == "{}"


BODIES = """
store = Store(root, url)
for n in range(3):
    store.put_blob(b"body %d" % n, sync=False)
store.sync_blobs()
print("finished")
"""


def test_bodies_of_a_killed_upload_go_up_with_the_next_ones_though_they_are_stored_here_already(machines):
    one, two = machines
    killed(BODIES, one, 2)
    store = Store(one.root, (one.root / "CACHE_OF").read_text())
    _, path = store.put_blob(b"body 1")  # is here, and was not asked to go up by this process
    assert two.local(path).read_bytes() == b"body 1"
    store.sync_blobs()
    two.bring(store.put_blob(b"body %d" % n, sync=False)[1] for n in range(3))
    assert len([f for f in (two.root / "blobs").rglob("*") if f.is_file()]) == 3
    assert not list((one.root / "blobs" / "waiting").iterdir())


def test_body_of_which_only_the_waiting_name_was_written_does_not_keep_the_others_from_going_up(machines, monkeypatch):
    one, two = machines

    def full(folder, *rest, **options):
        if not folder.endswith("waiting"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomic_at(folder, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomic_at", full)
        with pytest.raises(UserError, match="is full"):
            one.put_blob(b"no room", sync=False)
    (orphan,) = (one.root / "blobs" / "waiting").iterdir()
    _, path = one.put_blob(b"another")
    assert two.local(path).read_bytes() == b"another"
    assert orphan.exists()  # a process that is between its two writes at this moment needs the name

    an_hour_ago = orphan.stat().st_mtime - 3601
    os.utime(orphan, (an_hour_ago, an_hour_ago))
    one.sync_blobs()
    assert not orphan.exists()

    _, path = one.put_blob(b"no room")
    assert two.local(path).read_bytes() == b"no room"


def test_body_that_is_dropped_before_it_went_up_leaves_no_copy_that_waits(machines):
    one, _ = machines
    _, path = one.put_blob(b"taken down", sync=False)
    one.drop(path)
    assert not list((one.root / "blobs" / "waiting").iterdir())


# ---- pointers ----


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_pointer_that_moved_since_it_was_read_is_not_overwritten(url, tmp_path, kind):
    address = url if kind == "s3" else f"file://{tmp_path / 'shared'}"
    one, two = Remote(address), Remote(address)
    assert one.read("registry/cars.json") is None and two.read("registry/cars.json") is None
    one.write("registry/cars.json", b"1")
    with pytest.raises(MovedError):
        two.write("registry/cars.json", b"2")
    assert two.read("registry/cars.json") == b"1"
    two.write("registry/cars.json", b"3")
    with pytest.raises(MovedError):
        one.write("registry/cars.json", b"4")
    assert one.read("registry/cars.json") == b"3"
    assert one.pointers("registry") == {"registry/cars.json": b"3"}


# ---- what cannot work says so ----


def test_store_that_cannot_be_reached_is_said_in_a_sentence_and_the_rerun_publishes(machines, monkeypatch, url):
    one, two = machines
    one.publish("eval_report", "cars", version(1))

    async def broken(self, method, *args, **kwargs):
        if method == "put_object":
            raise OSError(5, "connection reset")
        return await real(self, method, *args, **kwargs)

    real = s3fs.S3FileSystem._call_s3
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", broken)
        with pytest.raises(UserError, match=r"did not upload .*connection reset.*run this again"):
            one.publish("eval_report", "cars", version(2))
    assert two.read("eval_report", "cars").equals(version(1))
    one.publish("eval_report", "cars", version(2))
    assert two.read("eval_report", "cars").equals(version(2))


def test_outage_while_weights_are_looked_for_is_not_taken_for_their_absence(machines, monkeypatch):
    one, two = machines
    with one.artifact("adapter", lambda: "a1") as folder:
        (folder / "weights").write_bytes(b"w")

    async def refused(self, method, *args, **kwargs):
        if "/complete/" in kwargs.get("Key", ""):
            raise PermissionError(13, "Forbidden")
        return await real(self, method, *args, **kwargs)

    real = s3fs.S3FileSystem._call_s3
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", refused)
        with pytest.raises(UserError, match=r"did not read what is complete .*Forbidden.*run this again"):
            two.local("artifacts/adapter/a1")
    assert not two.local("artifacts/adapter/a2").exists()
    assert (two.local("artifacts/adapter/a1") / "weights").read_bytes() == b"w"


def test_store_in_a_folder_that_fails_is_not_taken_for_one_that_lacks_the_file(tmp_path, monkeypatch):
    remote = Remote(f"file://{tmp_path / 'shared'}")
    assert not remote.has("artifacts/adapter/a1") and not remote.has_file("blobs/aa/aa")

    def fails(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", fails)
    for look in (remote.has, remote.has_file):
        with pytest.raises(UserError, match=r"did not look for blobs/aa/aa .*Input/output error"):
            look("blobs/aa/aa")


def test_data_folder_is_the_cache_of_one_store_only(tmp_path, url):
    Store(tmp_path / "local", "").publish("eval_report", "cars", version(1))
    with pytest.raises(UserError, match="filled without EV_STORE_URL"):
        Store(tmp_path / "local", url)
    Store(tmp_path / "cache", url)
    with pytest.raises(UserError, match="is the cache of"):
        Store(tmp_path / "cache", "")
    with pytest.raises(UserError, match="is the cache of"):
        Store(tmp_path / "cache", url + "/other")


def test_address_that_nothing_reads_names_the_extra(tmp_path):
    with pytest.raises(UserError, match="EV_STORE_URL is strange://bucket"):
        Store(tmp_path / "data", "strange://bucket")


def test_store_without_an_address_does_not_import_fsspec(tmp_path):
    script = (
        "import sys; from pathlib import Path; from ev_platform.storage import Store; "
        f"Store(Path({str(tmp_path)!r})).put_blob(b'x'); sys.exit('fsspec' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "EV_STORE_URL": ""})


# ---- the registry ----


def test_of_two_machines_that_decide_at_once_one_wins_and_the_other_sees_what_was_decided(tmp_path, url):
    one, two = machines = PlainStore(tmp_path / "one", url), PlainStore(tmp_path / "two", url)
    for model, champion in (("m1", None), ("m2", "tiny@1")):
        conclude(one, gate(add_version(one, model), champion))
    shutil.copytree(one.root / "artifacts", two.root / "artifacts")
    with locked(two, "tiny"):
        settle(two, "tiny")  # what every decision reads first
        with ThreadPoolExecutor() as pool:  # the other machine has a view of its own
            pool.submit(rollback, one, "tiny", reason="It is worse.", by="one").result()
        with pytest.raises(MovedError, match="promotions"):
            rollback(two, "tiny", reason="It is worse.", by="two")
    for store in machines:
        assert store.read("promotions", "tiny")["decided_by"].to_list() == ["gate", "gate", "one"]
        assert read_aliases(store, "tiny") == {"candidate": "tiny@2", "champion": "tiny@1"}


def test_trace_on_another_machine_follows_what_the_first_published(machines):
    one, two = machines
    row = blank_row("https://a.example/page", "web", Sources())
    one.publish("raw_pages", "cars", records.to_frame("raw_pages", [row]))
    assert [found.task for found in trace(two, "https://a.example/page")] == ["cars"]


def test_prune_on_another_machine_takes_what_no_task_on_any_machine_uses(tmp_path, url):
    one, two, three = (PlainStore(tmp_path / name, url) for name in ("one", "two", "three"))
    five_versions(one)
    upload(one)
    train(two, "m3", task="other")
    assert set(prune(three, "tiny", keep_last=1, apply=True).folders) == weights_of("m4")
    assert Remote(url).has("artifacts/serving_model/m3") and not Remote(url).has("artifacts/serving_model/m4")
