"""SIGKILL of `ev-platform run`, flow and graph in one process, and two of it at once."""

import signal
import time

import psutil
import pytest

from .harness import LONGEST_RUN_S, NOTHING, ended_afterwards, moments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_run_killed_at_any_moment_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    for n, moment in enumerate(moments("ev-platform run")):
        with ended_afterwards(undisturbed.place.fresh(tmp_path / f"killed-{n}")) as place:
            victim = place.start_run()
            try:
                victim.wait(moment * undisturbed.seconds)
            except psutil.TimeoutExpired:
                victim.kill()
            ended, n_tables = victim.wait(), place.n_tables()
            seconds = place.run()
            assert place.left_after(15) == [], "processes outlive the runs that started them"
            print(f"{moment:.2f}: exit {ended} at {n_tables} tables; rerun {seconds:.0f} s")
            assert place.state() == undisturbed.state
            assert place.unfinished() == NOTHING
        assert ended in (-signal.SIGKILL, 0)


def test_two_runs_started_at_once_both_pass_and_do_the_work_once(undisturbed, tmp_path):
    with ended_afterwards(undisturbed.place.fresh(tmp_path / "two")) as place:
        started = time.monotonic()
        both = [place.start_run(), place.start_run()]
        assert [process.wait(LONGEST_RUN_S) for process in both] == [0, 0], place.told()
        print(f"\ntwo at once: {time.monotonic() - started:.0f} s")
        assert place.state() == undisturbed.state
        assert place.unfinished() == NOTHING


GRAPH = """
from ev_platform.defs.run import materialize
from ev_platform.definitions import defs
from ev_platform.settings import get_settings
materialize(defs, get_settings().data_root, "tiny")
"""


def test_two_graphs_without_the_flow_started_at_once_end_as_one(undisturbed, tmp_path):
    with ended_afterwards(undisturbed.place.fresh(tmp_path / "two")) as place:
        both = [place.start("python", "-c", GRAPH), place.start("python", "-c", GRAPH)]
        assert [process.wait(LONGEST_RUN_S) for process in both] == [0, 0], place.told()
        place.run()
        assert place.state() == undisturbed.state
        assert place.unfinished() == NOTHING
