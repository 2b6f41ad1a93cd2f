import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest
from typer.testing import CliRunner

from ev_platform import backup
from ev_platform.backup import MANIFEST, create, restore
from ev_platform.cli import app
from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.storage import Store
from ev_platform_tests.test_storage import child, seen, version

# Publishes a version after the other, as a run does, moves an alias after each, as a promotion does, and counts in a
# database in WAL mode, as Dagster's is.
BUSY = """
import json, sqlite3, sys
from pathlib import Path
from ev_platform.files import write_atomic
from ev_platform.storage import Store
root = Path(sys.argv[1])
store = Store(root)
(root / "dagster").mkdir(parents=True)
db = sqlite3.connect(root / "dagster" / "runs.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE runs (k INTEGER)")
for k in range(1000):
    record = store.publish("eval_report", "cars", version(k))
    write_atomic(root / "registry" / "cars.json", json.dumps({"champion": record.version}).encode())
    db.execute("INSERT INTO runs VALUES (?)", [k])
    print(k, flush=True)
"""

# Takes a backup, or brings one back, by the command, and goes no further than the first file.
STUCK = """
import sys, time
from ev_platform import backup
from ev_platform.cli import app
copy = backup._copy
def stuck(*arguments, **options):
    copy(*arguments, **options)
    print("stuck", flush=True)
    time.sleep(300)
backup._copy = stuck
app(["backup", *sys.argv[1:]])
"""


@contextlib.contextmanager
def busy(root):
    with subprocess.Popen(child(BUSY, root), stdout=subprocess.PIPE, text=True) as process:
        try:
            while process.stdout.readline().strip() != "2":
                assert process.poll() is None
            yield
            assert process.poll() is None  # it was busy all the time
        finally:
            process.kill()


@contextlib.contextmanager
def stuck(*arguments):
    with subprocess.Popen(child(STUCK, *arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().strip() == "stuck"
            yield process
        finally:
            process.kill()


def hidden(folder):
    return [path.name for path in folder.glob(".*-*")]


def count(database):
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (ok,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert ok == "ok"
        return connection.execute("SELECT count(*) FROM runs").fetchone()[0]


def test_backups_taken_while_another_process_publishes_come_back_with_every_version_readable(tmp_path):
    with busy(tmp_path / "data"):
        made = []
        for _ in range(2):
            made.append(create(tmp_path / "data", tmp_path / "backups"))
            time.sleep(1.5)  # they are named by the second, and something is to happen between them
    n_versions = []
    for number, each in enumerate(made):
        restore(each.folder, tmp_path / f"restored-{number}")
        store = Store(tmp_path / f"restored-{number}")
        history = store.history("eval_report", "cars")
        n_versions.append(len(history))
        for k, record in enumerate(history):
            assert store.read("eval_report", "cars", record.version).equals(version(k))
        # What a pointer or an alias names is there: neither is newer than the files.
        current = store.current("eval_report", "cars")
        assert current in history
        alias = (store.root / "registry" / "cars.json").read_text()
        assert any(record.version in alias for record in history)
        assert seen(store) == (current.n_rows, current.n_rows - 1, current.n_rows - 1)
        assert count(store.root / "dagster" / "runs.db") >= 3
    assert 3 <= n_versions[0] < n_versions[1]
    assert made[1].n_linked >= 2 * n_versions[0]  # Parquet and sidecars of the one before take no place again


def test_what_was_restored_is_published_into_as_before(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    (store.root / "keys.json").write_text("{}")
    (store.root / "keys.json").chmod(0o600)
    made = create(store.root, tmp_path / "backups")
    restore(made.folder, tmp_path / "restored")
    again = Store(tmp_path / "restored")
    again.publish("eval_report", "cars", version(1))
    assert seen(again) == (2, 1.0, 1.0)
    assert seen(store) == (1, 0.0, 0.0)
    assert (again.root / "keys.json").stat().st_mode & 0o777 == 0o600
    checked = subprocess.run(["sha256sum", "--check", "--quiet", MANIFEST], cwd=made.folder, check=False)
    assert checked.returncode == 0  # the standard program reads the list


def test_file_that_vanishes_between_listing_and_copying_is_replaced_by_what_took_its_place(tmp_path, monkeypatch):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    segment, day = (
        store.root / "serving" / "requests" / "a.parquet",
        store.root / "serving" / "requests" / "day.parquet",
    )
    write_atomic(segment, b"rows")
    copy = backup._copy

    def rolling(source, target):
        if source == segment:
            write_atomic(day, segment.read_bytes())
            segment.unlink()
        return copy(source, target)

    monkeypatch.setattr(backup, "_copy", rolling)
    made = create(store.root, tmp_path / "backups")
    assert (made.folder / "serving" / "requests" / "day.parquet").read_bytes() == b"rows"
    assert not (made.folder / "serving" / "requests" / "a.parquet").exists()


def test_version_that_is_pruned_under_the_backup_is_told_and_nothing_half_stays(tmp_path, monkeypatch):
    store = Store(tmp_path / "data")
    record = store.publish("eval_report", "cars", version(0))
    copy = backup._copy

    def pruning(source, target):
        (store.root / "tables" / "eval_report" / "cars" / f"{record.version}.parquet").unlink(missing_ok=True)
        return copy(source, target)

    monkeypatch.setattr(backup, "_copy", pruning)
    with pytest.raises(UserError, match="was deleted while it was copied"):
        create(store.root, tmp_path / "backups")
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [".lock"]


@pytest.mark.parametrize("damage", ["altered", "missing", "unfinished"])
def test_backup_that_is_not_whole_is_refused_and_leaves_nothing(tmp_path, damage):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    made = create(store.root, tmp_path / "backups")
    (file,) = made.folder.glob("tables/eval_report/cars/*.parquet")
    if damage == "altered":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        file.unlink()
    else:
        (made.folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"SHA-256|no whole backup"):
        restore(made.folder, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "data"]


def test_nothing_is_written_over_nor_into_itself(tmp_path):
    store = Store(tmp_path / "data")
    with pytest.raises(UserError, match="is no data folder"):
        create(store.root, tmp_path / "backups")
    store.publish("eval_report", "cars", version(0))
    with pytest.raises(UserError, match="in the data folder itself"):
        create(store.root, store.root / "backups")
    made = create(store.root, tmp_path / "backups")
    with pytest.raises(UserError, match="is not empty"):
        restore(made.folder, store.root)


def test_commands_back_up_and_bring_back(own_folders):
    store = Store(own_folders / "data")
    assert CliRunner().invoke(app, ["prepare"]).exit_code == 0
    assert (store.root / "dagster" / "dagster.yaml").exists()
    store.publish("eval_report", "cars", version(0))
    made = CliRunner().invoke(app, ["backup", "create", str(own_folders / "backups")])
    assert made.exit_code == 0, made.output
    folder = made.output.partition(": ")[0]
    store.root.rename(own_folders / "lost")
    back = CliRunner().invoke(app, ["backup", "restore", folder])
    assert back.exit_code == 0, back.output
    assert seen(store) == (1, 0.0, 0.0)
    assert CliRunner().invoke(app, ["backup", "restore", folder]).exit_code == 1


def test_folder_that_lies_on_another_disk_is_copied_and_comes_back_as_a_folder(tmp_path):
    store, disk = Store(tmp_path / "data"), tmp_path / "disk"
    store.publish("eval_report", "cars", version(0))
    (disk / "artifacts" / "adapters").mkdir(parents=True)
    (disk / "artifacts" / "adapters" / "weights.bin").write_bytes(b"weights")
    (disk / "artifacts" / "all").symlink_to(store.root)  # leads back
    (disk / "artifacts" / "itself").symlink_to("itself")
    (store.root / "artifacts").symlink_to(disk / "artifacts")
    made = create(store.root, tmp_path / "backups")
    restore(made.folder, tmp_path / "restored")
    shutil.rmtree(disk)
    assert not (tmp_path / "restored" / "artifacts").is_symlink()
    assert (tmp_path / "restored" / "artifacts" / "adapters" / "weights.bin").read_bytes() == b"weights"
    assert [path.name for path in (tmp_path / "restored" / "artifacts").iterdir()] == ["adapters"]
    assert seen(Store(tmp_path / "restored")) == (1, 0.0, 0.0)


def test_disk_that_is_not_there_stops_the_backup_and_a_dead_link_within_the_data_folder_does_not(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    (store.root / "wandb").mkdir()
    (store.root / "wandb" / "latest-run").symlink_to("run-that-was-deleted")
    create(store.root, tmp_path / "backups")
    (store.root / "artifacts").symlink_to(tmp_path / "disk" / "artifacts")
    with pytest.raises(UserError, match=r"data/artifacts leads to .*disk/artifacts, which is not there"):
        create(store.root, tmp_path / "others")
    assert hidden(tmp_path / "others") == []


def test_folder_that_cannot_be_read_stops_the_backup(tmp_path, monkeypatch):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    (store.root / "inbox").mkdir()
    scandir = os.scandir

    def denied(path):
        if path == store.root / "inbox":  # the tests may run as root, whom no mode keeps out
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"data/inbox cannot be read or written \(Permission denied\)"):
        create(store.root, tmp_path / "backups")


def test_backups_are_not_kept_in_a_folder_that_the_data_folder_leads_to(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    (tmp_path / "disk").mkdir()
    (store.root / "artifacts").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"data/artifacts leads to"):
        create(store.root, tmp_path / "disk" / "backups")


def test_every_name_that_a_file_may_have_is_stored_linked_checked_and_brought_back(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    inbox = store.root / "inbox" / "cars"
    inbox.mkdir(parents=True)
    names = {b"Ger\xe4t.pdf", "a\u2028b\x85c.pdf".encode(), b"two\nlines \\n.pdf", b"Icon\r", b"  a\\b", b"\\c"}
    for name in names:
        (inbox / os.fsdecode(name)).write_bytes(name)
    create(store.root, tmp_path / "backups")
    time.sleep(1.1)  # backups are named by the second
    made = create(store.root, tmp_path / "backups")
    assert made.n_linked >= len(names)
    checked = subprocess.run(["sha256sum", "--check", "--quiet", MANIFEST], cwd=made.folder, check=False)
    assert checked.returncode == 0
    restore(made.folder, tmp_path / "restored")
    back = tmp_path / "restored" / "inbox" / "cars"
    assert {os.fsencode(path.name): path.read_bytes() for path in back.iterdir()} == {name: name for name in names}


def test_database_is_what_begins_as_one_whatever_its_name(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    thumbs = store.root / "inbox" / "Thumbs.db"
    thumbs.parent.mkdir()
    thumbs.write_bytes(b"\xd0\xcf\x11\xe0 of Windows")
    (store.root / "inbox" / "empty.db").touch()
    odd = store.root / os.fsdecode(b"runs?of#100%20\xe4")
    with contextlib.closing(sqlite3.connect(odd, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (k INTEGER)")
        database.execute("INSERT INTO runs VALUES (1)")  # is in the file beside it until that is closed
        made = create(store.root, tmp_path / "backups")
    restore(made.folder, tmp_path / "restored")
    assert (tmp_path / "restored" / "inbox" / "Thumbs.db").read_bytes() == thumbs.read_bytes()
    assert (tmp_path / "restored" / "inbox" / "empty.db").read_bytes() == b""
    assert count(tmp_path / "restored" / odd.name) == 1


def test_damaged_database_stops_the_backup_with_a_sentence_that_names_it(tmp_path):
    store = Store(tmp_path / "data")
    store.publish("eval_report", "cars", version(0))
    (store.root / "runs.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    with pytest.raises(UserError, match=r"SQLite cannot copy .*data/runs\.db"):
        create(store.root, tmp_path / "backups")


def test_command_that_is_asked_to_stop_leaves_no_copy_behind(own_folders):
    store = Store(own_folders / "data")
    store.publish("eval_report", "cars", version(0))
    made = create(store.root, own_folders / "earlier")
    with stuck("create", own_folders / "backups") as process:
        assert hidden(own_folders / "backups")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert hidden(own_folders / "backups") == []
    store.root.rename(own_folders / "lost")
    with stuck("restore", made.folder) as process:
        assert hidden(own_folders)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert hidden(own_folders) == []


def test_copy_of_a_killed_backup_is_removed_by_the_next_one_and_that_of_one_under_way_is_not(own_folders):
    store, backups = Store(own_folders / "data"), own_folders / "backups"
    store.publish("eval_report", "cars", version(0))
    backups.mkdir()
    (backups / ".partial-of-somebody-else").mkdir()
    with stuck("create", backups) as process:
        under_way = hidden(backups)
        with pytest.raises(UserError, match=r"Another backup into .* is going on"):
            create(store.root, backups)
        assert hidden(backups) == under_way and len(under_way) == 2
        process.kill()
    create(store.root, backups)
    assert hidden(backups) == [".partial-of-somebody-else"]
