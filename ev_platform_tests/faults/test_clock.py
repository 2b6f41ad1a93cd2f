"""A clock that is moved back by a day, between two runs and in the middle of one."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ev_platform_tests.tiny import PAGES, page

from .harness import LONGEST_RUN_S, NOTHING, TASK, Place, ended_afterwards, moments

CC = shutil.which("cc")
DAY_S = 24 * 3600
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(CC is None or sys.platform != "linux", reason="needs Linux and a C compiler"),
]


def clock(place):
    """Return a function that moves the clock of processes by seconds, and the environment of those processes."""
    library, file = place.root / "clock.so", place.root / "clock"
    subprocess.run(
        [CC, "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("clock.c")],
        check=True,
    )

    def move(seconds):
        with file.open("r+b" if file.exists() else "wb") as opened:
            opened.write(struct.pack("=q", seconds))

    move(0)
    return move, {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(file)}


def test_clock_of_a_process_moves_while_it_runs(tmp_path):
    move, environment = clock(Place(tmp_path))
    code = "import sys, time; print(time.time(), flush=True); sys.stdin.readline(); print(time.time())"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        before = float(process.stdout.readline())
        move(-DAY_S)
        after = float(process.communicate("\n")[0])
    assert -DAY_S <= after - before < 60 - DAY_S


def change_page(place):
    file = place.root / "tasks" / TASK / "site" / "index.html"
    later = file.stat().st_mtime + 10
    file.write_text(page("index.html", PAGES["index.html"][2] + " A hook beside the station holds the cable."))
    os.utime(file, (later, later))


def test_second_run_a_day_before_the_first_ends_as_one_a_moment_after_it(undisturbed, tmp_path):
    states = []
    for name, offset in (("after", 0), ("before", -DAY_S)):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / name)) as place:
            move, environment = clock(place)
            place.run(**environment)
            assert place.state() == undisturbed.state
            change_page(place)
            move(offset)
            seconds = place.run(**environment)
            print(f"\nsecond run with the clock at {offset} s: {seconds:.0f} s")
            states.append(place.state())
            assert place.unfinished() == NOTHING
            place.run(**environment)
            assert place.state() == states[-1]
    assert states[0] == states[1]
    assert states[0]["tables"]["chunks"] != undisturbed.state["tables"]["chunks"]


def test_clock_moved_back_in_the_middle_of_a_run_changes_nothing(undisturbed, tmp_path):
    for n, moment in enumerate(moments("clock")[:3]):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / f"middle-{n}")) as place:
            move, environment = clock(place)
            process = place.start_run(**environment)
            try:
                process.wait(moment * undisturbed.seconds)
            except psutil.TimeoutExpired:
                move(-DAY_S)
            n_tables = place.n_tables()
            assert process.wait(LONGEST_RUN_S) == 0, place.told()
            print(f"{moment:.2f}: moved back by a day at {n_tables} tables", flush=True)
            assert place.state() == undisturbed.state
            place.run(**environment)
            assert place.state() == undisturbed.state
            # Prefect orders the states of a stage by the clock: one that ended before it began shows as running.
            assert place.unfinished() | {"task runs": []} == NOTHING
