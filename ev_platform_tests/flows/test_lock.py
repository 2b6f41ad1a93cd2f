"""One run at a time for each task, held by processes that may be killed."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from ev_platform.errors import UserError
from ev_platform.flows.lock import one_run

HOLDER = """
import sys, time
from pathlib import Path
from ev_platform.flows.lock import one_run
with one_run(Path(sys.argv[1]), "tiny", print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_run_of_a_task_is_told_who_holds_it_and_gives_up_in_the_end(tmp_path, holder):
    told = []
    said = rf"still going on after 0\.2 seconds \(process {holder.pid} on .*, since 20"
    with pytest.raises(UserError, match=said), one_run(tmp_path, "tiny", told.append, wait_s=0.2):
        pytest.fail("two runs at once")
    assert len(told) == 1 and f"process {holder.pid} on " in told[0]


def test_another_task_does_not_wait(tmp_path, holder):
    with one_run(tmp_path, "other", pytest.fail, wait_s=0):
        assert holder.poll() is None


def test_lock_of_a_killed_process_is_free(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with one_run(tmp_path, "tiny", pytest.fail, wait_s=0):
        assert f'"pid": {os.getpid()}' in (tmp_path / "runs" / "tiny.json").read_text()


def test_waiting_run_goes_on_when_the_other_has_ended(tmp_path):
    order, is_waiting = [], threading.Event()

    def second():
        with one_run(tmp_path, "tiny", lambda _: is_waiting.set(), wait_s=30):
            order.append("second")

    waiting = threading.Thread(target=second)
    with one_run(tmp_path, "tiny", pytest.fail):
        waiting.start()
        assert is_waiting.wait(30)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
