"""The journal: rows are kept on return, seen at once and once, found again, and cost little."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from ev_platform.serving.journal import Journal, find_request, read_journal, text_hash, tokens_today
from ev_platform.serving.segments import Segments
from ev_platform_tests.serving.rows import judged, served, wait_for


@pytest.fixture
def open_journal(tmp_path):
    """Return a function that opens a journal of the test's data folder; all are closed at its end."""
    journals = []

    def open_journal(table="requests", **options):
        journals.append(Journal(tmp_path, table, **options))
        return journals[-1]

    yield open_journal
    for journal in journals:
        journal.close()


def ids(root, **options):
    return read_journal(root, "requests", **options)["request_id"].to_list()


def test_row_is_read_at_once_and_as_it_was(tmp_path, open_journal):
    row = served(question="Ist das „gut“?\u2028\n\x00 \U0001f50c", similarity=None)
    open_journal().add(row)
    (found,) = read_journal(tmp_path, "requests").to_dicts()
    assert found == dataclasses.asdict(row)


def test_row_is_the_same_once_it_is_rolled(tmp_path):
    requests, feedback = Journal(tmp_path, "requests"), Journal(tmp_path, "feedback")
    row, said = served(), judged()
    requests.add(row)
    feedback.add(said)
    requests.close()
    feedback.close()
    day = f"{row.asked_at:%Y-%m-%d}"
    assert len(list((tmp_path / "serving" / "requests" / day).glob("*.parquet"))) == 1
    assert read_journal(tmp_path, "requests").to_dicts() == [dataclasses.asdict(row)]
    assert read_journal(tmp_path, "feedback").to_dicts() == [dataclasses.asdict(said)]


def test_nothing_logged_reads_as_no_rows(tmp_path):
    assert read_journal(tmp_path, "requests").is_empty()
    assert read_journal(tmp_path, "feedback").columns == [f.name for f in dataclasses.fields(judged())]
    assert find_request(tmp_path, "req_1") is None
    assert tokens_today(tmp_path) == {}


def test_what_json_and_utf8_cannot_say_costs_the_value_and_not_the_row(tmp_path, open_journal):
    open_journal().add(served(question="half \ud800 a pair", scores=[float("nan"), 0.5], similarity=float("inf")))
    (found,) = read_journal(tmp_path, "requests").to_dicts()
    assert (found["question"], found["scores"], found["similarity"]) == ("half ? a pair", [None, 0.5], None)


def test_rows_come_oldest_first_from_a_time_on(tmp_path, open_journal):
    journal, start = open_journal(), datetime.now(UTC) - timedelta(seconds=50)
    for n in (3, 1, 2):
        journal.add(served(f"req_{n}", start + timedelta(seconds=n)))
    assert ids(tmp_path) == ["req_1", "req_2", "req_3"]
    assert ids(tmp_path, since=start + timedelta(seconds=2)) == ["req_2", "req_3"]


def test_rows_are_never_missing_and_never_twice_while_they_are_rolled(tmp_path, open_journal):
    """Readers look all the time while 600 rows pass through 60 segments of two journals."""
    journals = [open_journal(max_rows=10), open_journal(max_rows=10)]
    added, wrong, is_over = [0, 0], [], threading.Event()

    def write(which):
        for n in range(300):
            journals[which].add(served(f"{which}-{n}"))
            added[which] = n + 1

    def look():
        while not is_over.is_set():
            before = list(added)
            seen = ids(tmp_path)
            if len(set(seen)) != len(seen):
                wrong.append("twice")
            for which, n in enumerate(before):
                if missing := {f"{which}-{i}" for i in range(n)} - set(seen):
                    wrong.append(f"missing {missing}")

    writers, reader = [threading.Thread(target=write, args=[n]) for n in (0, 1)], threading.Thread(target=look)
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    wait_for(lambda: len(list((tmp_path / "serving" / "requests").glob("2*/*.parquet"))) >= 58)
    is_over.set()
    reader.join()
    assert wrong == []
    assert len(ids(tmp_path)) == 600


def test_segment_is_rolled_after_its_time_without_another_row(tmp_path, open_journal):
    open_journal(roll_after_s=0.05).add(served())
    wait_for(lambda: list((tmp_path / "serving" / "requests").glob("2*/*.parquet")))
    assert ids(tmp_path) == ["req_1"]


def test_closed_journal_takes_no_more(tmp_path):
    journal = Journal(tmp_path, "requests")
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.add(served())


DIES = """
import os, signal, sys
from pathlib import Path
from ev_platform.serving.journal import Journal
from ev_platform_tests.serving.rows import served
journal = Journal(Path(sys.argv[1]), "requests")
for n in range(50):
    journal.add(served(f"req_{n}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_of_a_killed_process_are_read_and_rolled_at_the_next_start(tmp_path, open_journal):
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path], check=False)
    assert died.returncode == -9
    wanted = sorted(f"req_{n}" for n in range(50))
    assert sorted(ids(tmp_path)) == wanted
    open_journal()
    wait_for(lambda: list((tmp_path / "serving" / "requests").glob("2*/*.parquet")))
    assert sorted(ids(tmp_path)) == wanted


def test_line_that_a_process_was_writing_when_it_died_is_no_row(tmp_path, open_journal):
    subprocess.run([sys.executable, "-c", DIES, tmp_path], check=False)
    (journal,) = Segments(tmp_path, "requests").journals()
    lines = journal.read_bytes()
    journal.write_bytes(lines[:-30])
    assert len(ids(tmp_path)) == 49
    journal.write_bytes(b"\x00" * 512 + b"\n" + lines)  # as a power cut may leave it
    assert len(ids(tmp_path)) == 50


FULL = """
import json, resource, sys
from pathlib import Path
from ev_platform.serving.journal import Journal
from ev_platform_tests.serving.rows import served
journal = Journal(Path(sys.argv[1]), "requests")
journal.add(served("before"))
(file,) = (Path(sys.argv[1]) / "serving/requests/journal").glob("2*.jsonl")
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
# The kernel writes the part of the next line that fits, then refuses: just what a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, unlimited[1]))
try:
    journal.add(served("lost"))
except OSError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
journal.add(served("after"))
journal.close()
"""


def test_row_that_the_disk_does_not_take_is_told_and_spoils_no_other(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert ids(tmp_path) == ["before", "after"]


def test_fault_of_rolling_is_told_and_the_rows_stay_readable(tmp_path, caplog):
    faults = []
    journal = Journal(tmp_path, "requests", on_fault=faults.append)
    journal.add(served(question="a secret question"))
    wait_for(lambda: (tmp_path / "serving" / "requests" / "empty" / "empty.parquet").exists())
    (tmp_path / "serving" / "requests" / f"{datetime.now(UTC):%Y-%m-%d}").write_text("in the way of the folder")
    with caplog.at_level(logging.WARNING):
        journal.close()
    assert [type(fault) for fault in faults] == [FileExistsError] or [type(f) for f in faults] == [NotADirectoryError]
    assert "secret" not in caplog.text
    (tmp_path / "serving" / "requests" / f"{datetime.now(UTC):%Y-%m-%d}").unlink()
    assert ids(tmp_path) == ["req_1"]


def test_request_is_found_by_its_id_in_journals_and_in_parquet(tmp_path, open_journal):
    old = Journal(tmp_path, "requests")
    for n in range(5):
        old.add(served(f"old_{n}"))
    old.close()
    journal = open_journal()
    for n in range(5):
        journal.add(served(f"new_{n}", key_id="00000002", question='It says "request_id": "old_9".'))
    assert find_request(tmp_path, "old_3")["request_id"] == "old_3"
    assert find_request(tmp_path, "new_3")["key_id"] == "00000002"
    assert find_request(tmp_path, "new_3", "00000002")["request_id"] == "new_3"
    assert find_request(tmp_path, "new_3", "00000001") is None
    assert find_request(tmp_path, "new_") is None
    assert find_request(tmp_path, "old_9") is None


def test_only_what_is_asked_for_is_read(tmp_path, open_journal):
    journal = open_journal()
    for request_id in "ab":
        journal.add(served(request_id))
    found = read_journal(
        tmp_path, "requests", query=lambda rows: rows.filter(pl.col("request_id") == "b").select("asked_at", "key_id")
    )
    assert (found.columns, found.height) == (["asked_at", "key_id"], 1)


def test_request_found_is_the_newest_of_its_id(tmp_path, open_journal):
    now = datetime.now(UTC)
    old = Journal(tmp_path, "requests")
    old.add(served("mine", now - timedelta(milliseconds=9), answer="second"))
    old.add(served("mine", now - timedelta(milliseconds=10), answer="first"))
    old.close()
    assert find_request(tmp_path, "mine")["answer"] == "second"
    open_journal().add(served("mine", now, answer="third"))
    assert find_request(tmp_path, "mine")["answer"] == "third"


def test_request_found_among_the_answered_ones_is_the_newest_of_them(tmp_path, open_journal):
    now = datetime.now(UTC)
    old = Journal(tmp_path, "requests")
    for days, answer in ((3, "first"), (2, "second")):
        old.add(served("mine", now - timedelta(days=days), answer=answer))
    old.close()
    for ms, missing in enumerate(("answer_hash", "task", "model_version")):
        open_journal().add(served("mine", now + timedelta(milliseconds=ms), **{missing: None}))
    assert find_request(tmp_path, "mine")["model_version"] is None
    assert find_request(tmp_path, "mine", is_answered=True)["answer"] == "second"


def test_tokens_are_summed_by_key_since_midnight(tmp_path, open_journal):
    journal = open_journal()
    journal.add(served("yesterday", datetime.now(UTC) - timedelta(days=1)))
    journal.add(served(n_prompt_tokens=7, n_completion_tokens=3))
    journal.add(served(n_prompt_tokens=7, n_completion_tokens=None))
    journal.add(served(key_id="00000002", n_prompt_tokens=None, n_completion_tokens=None))
    assert tokens_today(tmp_path) == {"00000001": 17, "00000002": 0}


def test_files_are_for_their_owner_only(tmp_path, open_journal):
    open_journal().add(served())
    (journal,) = Segments(tmp_path, "requests").journals()
    assert journal.stat().st_mode & 0o077 == 0


def test_row_costs_less_than_a_fifth_of_a_millisecond(tmp_path, open_journal):
    journal = open_journal()
    rows = [served(f"req_{n}", answer="a word " * 100) for n in range(500)]
    times = []
    for row in rows:
        start = time.perf_counter()
        journal.add(row)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.0002


HASHES = """
import pathlib, sys
from ev_platform.serving.journal import text_hash
print(text_hash(pathlib.Path(sys.argv[1]), sys.argv[2]))
"""


def test_hash_is_of_the_text_and_of_a_key_that_stays(tmp_path):
    one = text_hash(tmp_path, "What is a CCS plug?")
    assert one == text_hash(tmp_path, "What is a CCS plug?") != text_hash(tmp_path, "What is a CCS plug")
    assert len(one) == 32
    key = tmp_path / "serving" / "hash.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    elsewhere = [sys.executable, "-c", HASHES, str(tmp_path), "What is a CCS plug?"]
    assert subprocess.run(elsewhere, capture_output=True, text=True, check=True).stdout.strip() == one
    assert text_hash(tmp_path / "other", "What is a CCS plug?") != one


def test_journal_line_is_one_json_object(tmp_path, open_journal):
    row = served(question="two\nlines")
    open_journal().add(row)
    (file,) = Segments(tmp_path, "requests").journals()
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["question"] == "two\nlines"
    assert str(os.getpid()) in file.name
