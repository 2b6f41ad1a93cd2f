"""The journal's files: killed anywhere, compacted, deleted; readers see each row once throughout."""

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from ev_platform.serving import journal as journals
from ev_platform.serving import segments as files
from ev_platform.serving.journal import keep_up, read_journal
from ev_platform.serving.segments import GRACE_S, Segments
from ev_platform_tests.serving.rows import served

TODAY = datetime.now(UTC).replace(hour=12)
YESTERDAY = TODAY - timedelta(days=1)
TICKS = itertools.count()  # no two segments have the same name


def leave(root, at, *request_ids):
    """Leave a journal behind, as a process does that dies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "now", lambda: at + timedelta(microseconds=next(TICKS)))
        segment = Segments(root, "requests").begin()
    for request_id in request_ids:
        os.write(segment.handle, journals._encode(served(request_id, at)))
    os.close(segment.handle)
    return segment.path


def ids(root):
    return sorted(read_journal(root, "requests")["request_id"])


def age(*paths):
    """Make files older than readers may need them."""
    for path in paths:
        os.utime(path, (time.time() - GRACE_S - 60,) * 2)


def everything(root):
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


@pytest.fixture
def segments(tmp_path):
    segments = Segments(tmp_path, "requests")
    segments.ensure()
    return segments


def test_what_was_left_is_rolled_and_its_journal_goes_when_no_reader_needs_it(tmp_path, segments):
    path = leave(tmp_path, TODAY, "a", "b")
    segments.recover()
    (stored,) = segments.parquet(TODAY.date())
    assert stored.stem == path.stem
    assert path.exists()
    age(stored)
    segments.recover()
    assert not path.exists()
    assert ids(tmp_path) == ["a", "b"]


def test_journal_of_a_living_process_is_not_touched(tmp_path, segments):
    segment = segments.begin()
    os.write(segment.handle, journals._encode(served("a", TODAY)))
    before = everything(tmp_path)
    segments.recover()
    segments.prune(0)
    assert everything(tmp_path) == before
    os.close(segment.handle)


def test_journal_without_a_whole_row_goes_at_once(tmp_path, segments):
    path = leave(tmp_path, TODAY)
    path.write_bytes(b'{"request_id": "ha')
    segments.recover()
    assert not path.exists()
    assert ids(tmp_path) == []


def test_day_that_is_over_becomes_one_file_and_today_stays(tmp_path, segments):
    for at, name in ((YESTERDAY, "a"), (YESTERDAY, "b"), (TODAY, "c"), (TODAY, "d")):
        leave(tmp_path, at, name)
    segments.recover()
    age(*segments.parquet(YESTERDAY.date()))
    segments.recover()  # removes the journals, which compaction leaves alone while they are there
    segments.compact()
    assert [file.name for file in segments.parquet(YESTERDAY.date())][-1] == "day-000001.parquet"
    assert ids(tmp_path) == ["a", "b", "c", "d"]
    age(*segments.parquet(YESTERDAY.date()))
    segments.compact()
    (whole,) = segments.parquet(YESTERDAY.date())
    assert sorted(pl.read_parquet(whole)["request_id"]) == ["a", "b"]
    assert len(segments.parquet(TODAY.date())) == 2
    assert ids(tmp_path) == ["a", "b", "c", "d"]


def test_segment_that_comes_late_joins_the_file_of_its_day(tmp_path, segments):
    test_day_that_is_over_becomes_one_file_and_today_stays(tmp_path, segments)
    leave(tmp_path, YESTERDAY, "late")
    for _ in range(3):
        segments.recover()
        segments.compact()
        age(*segments.parquet(YESTERDAY.date()))
    assert [file.name for file in segments.parquet(YESTERDAY.date())] == ["day-000002.parquet"]
    assert ids(tmp_path) == ["a", "b", "c", "d", "late"]


def test_days_older_than_the_limit_are_deleted_with_their_journals(tmp_path, segments):
    for days in (0, 29, 30, 31, 400):
        leave(tmp_path, TODAY - timedelta(days=days), f"{days} days")
    gone = keep_up(segments, 30)
    assert gone == [(TODAY - timedelta(days=days)).date() for days in (400, 31)]
    assert ids(tmp_path) == ["0 days", "29 days", "30 days"]
    assert not [name for name in everything(tmp_path) if gone[0].strftime("%Y%m%d") in name]


def test_feedback_and_requests_without_a_limit_are_kept(tmp_path, segments):
    leave(tmp_path, TODAY - timedelta(days=4000), "old")
    assert keep_up(segments, None) == []
    assert ids(tmp_path) == ["old"]


def test_two_servers_do_not_keep_up_the_same_files_at_once(segments):
    with segments.upkeep() as first, segments.upkeep() as second:
        assert (first, second) == (True, False)
    with segments.upkeep() as third:
        assert third


def test_what_is_being_written_is_hidden_from_readers(tmp_path, segments, monkeypatch):
    """Other readers' patterns, DuckDB's and Python's, match names that begin with a dot."""
    seen = []

    def look(event, arguments):
        if event in ("os.link", "os.rename") and str(tmp_path) in str(arguments[0]):
            seen.append(os.path.basename(arguments[0]))  # noqa: PTH119 - may be text

    sys.addaudithook(look)
    for name in "ab":
        leave(tmp_path, YESTERDAY, name)
    segments.recover()
    for journal in segments.journals():
        journal.unlink()
    segments.compact()
    assert len(seen) == 2 + 2 + 1
    assert not [name for name in seen if name.endswith((".parquet", ".jsonl"))]


def test_what_a_killed_process_was_writing_is_removed_after_a_while(tmp_path, segments):
    left = segments.root / "journal" / ".tmp-x"
    left.touch()
    segments.recover()
    assert left.exists()
    os.utime(left, (time.time() - 4000,) * 2)
    segments.recover()
    assert not left.exists()


# ---- killed anywhere ----

CHANGES = {"open", "os.rename", "os.remove", "os.link", "os.chmod", "os.rmdir", "os.truncate"}


def upkeep(root):
    keep_up(Segments(root, "requests"), 30)


def die_at(root, nth):
    """Keep up, and be killed right before the nth time that Python touches a file below the data folder."""
    n = 0

    def count(event, arguments):
        nonlocal n
        if event in CHANGES and str(root) in str(arguments[0]):
            n += 1
            if n == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    upkeep(root)


def prepare_roll(root):
    leave(root, TODAY, "a", "b")
    leave(root, TODAY, "c")


def prepare_removal(root):
    prepare_roll(root)
    upkeep(root)
    age(*Segments(root, "requests").parquet(TODAY.date()))


def prepare_compaction(root):
    for name in "abc":
        leave(root, YESTERDAY, name)
    segments = Segments(root, "requests")
    segments.ensure()
    segments.recover()
    age(*segments.parquet(YESTERDAY.date()))


def prepare_the_end_of_a_compaction(root):
    prepare_compaction(root)
    upkeep(root)
    upkeep(root)
    age(*Segments(root, "requests").parquet(YESTERDAY.date()))


@pytest.mark.parametrize(
    ("prepare", "wanted", "n_files"),
    [
        (prepare_roll, "abc", 2),
        (prepare_removal, "abc", 2),
        (prepare_compaction, "abc", 1),
        (prepare_the_end_of_a_compaction, "abc", 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_killed_at_any_point_no_row_is_lost_or_doubled(tmp_path, prepare, wanted, n_files):
    prepare(tmp_path / "prepared")
    context = multiprocessing.get_context("forkserver")  # a fork of this process would have its polars' locks
    context.set_forkserver_preload([__name__])
    n_killed = 0
    for nth in range(1, 200):
        root = tmp_path / str(nth)
        shutil.copytree(tmp_path / "prepared", root)
        child = context.Process(target=die_at, args=(root, nth))
        child.start()
        child.join(60)
        assert ids(root) == list(wanted)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        n_killed += 1
        # The next start finishes the work; twice, since what readers may be reading goes later.
        for _ in range(3):
            upkeep(root)
            assert ids(root) == list(wanted)
            age(
                *(file for day in Segments(root, "requests").days() for file in Segments(root, "requests").parquet(day))
            )
        stored = [file for day in Segments(root, "requests").days() for file in Segments(root, "requests").parquet(day)]
        assert len(stored) == n_files
        assert Segments(root, "requests").journals() == []
        shutil.rmtree(root)
    assert n_killed >= 3
    assert nth < 199


def test_prune_killed_at_any_point_is_finished_by_the_next_start(tmp_path):
    leave(tmp_path / "prepared", TODAY - timedelta(days=40), "old")
    keep_up(Segments(tmp_path / "prepared", "requests"), None)
    leave(tmp_path / "prepared", TODAY, "new")
    context = multiprocessing.get_context("forkserver")
    for nth in range(1, 200):
        root = tmp_path / str(nth)
        shutil.copytree(tmp_path / "prepared", root)
        child = context.Process(target=die_at, args=(root, nth))
        child.start()
        child.join(60)
        upkeep(root)
        assert ids(root) == ["new"]
        assert [day for day in Segments(root, "requests").days() if day < date.today() - timedelta(days=5)] == []
        if child.exitcode == 0:
            break
    assert 4 < nth < 199
