"""A clock that is moved back by a day, between two runs and in the middle of one."""

import os
from pathlib import Path

import psutil
import pytest

from ev_platform_tests.tiny import PAGES, page

from .harness import LONGEST_RUN_S, NOTHING, TASK, ended_afterwards, moments

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime: apt-get install faketime"),
]


def clock(place):
    """Return the environment of a process whose clock a file of the place moves, and that file."""
    file = place.root / "clock"
    file.write_text("+0")
    return file, {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        # A clock that an administrator moves leaves these as they are.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def change_page(place):
    file = place.root / "tasks" / TASK / "site" / "index.html"
    later = file.stat().st_mtime + 10
    file.write_text(page("index.html", PAGES["index.html"][2] + " A hook beside the station holds the cable."))
    os.utime(file, (later, later))


def test_second_run_a_day_before_the_first_ends_as_one_a_moment_after_it(undisturbed, tmp_path):
    states = []
    for name, offset in (("after", "+0"), ("before", "-1d")):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / name)) as place:
            file, environment = clock(place)
            place.run(**environment)
            assert place.state() == undisturbed.state
            change_page(place)
            file.write_text(offset)
            seconds = place.run(**environment)
            print(f"\nsecond run with the clock at {offset}: {seconds:.0f} s")
            states.append(place.state())
            assert place.unfinished() == NOTHING
            place.run(**environment)
            assert place.state() == states[-1]
    assert states[0] == states[1]
    assert states[0]["tables"]["chunks"] != undisturbed.state["tables"]["chunks"]


def test_clock_moved_back_in_the_middle_of_a_run_changes_nothing(undisturbed, tmp_path):
    for n, moment in enumerate(moments("clock")[:3]):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / f"middle-{n}")) as place:
            file, environment = clock(place)
            process = place.start_run(**environment)
            try:
                process.wait(moment * undisturbed.seconds)
            except psutil.TimeoutExpired:
                file.write_text("-1d")
            n_tables = place.n_tables()
            assert process.wait(LONGEST_RUN_S) == 0, place.told()
            print(f"{moment:.2f}: moved back by a day at {n_tables} tables", flush=True)
            assert place.state() == undisturbed.state
            place.run(**environment)
            assert place.state() == undisturbed.state
            assert place.unfinished() == NOTHING
