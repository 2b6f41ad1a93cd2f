"""The gateway's own end: stopped under load, killed, on IPv6; minutes, so `make test-slow`."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from ev_platform.serving import run
from ev_platform.serving.endpoint import Endpoint
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform_tests.ports import free_port
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.test_under_fire import TASK, Asker, Fleet
from ev_platform_tests.serving.versions import point

pytestmark = pytest.mark.slow

N_AT_ONCE = 8
_SERVE = """
import sys
from pathlib import Path
from functools import partial
from ev_platform.serving import run
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.endpoint import Endpoint
from ev_platform_tests.serving import fakes
run.serving = partial(run.serving, load=fakes.load_slow)
folder, endpoint = Path(sys.argv[1]), Endpoint("127.0.0.1", int(sys.argv[2]))
options = {"data_root": folder, "tasks_dir": folder, "endpoint": endpoint, "config": ServingConfig()}
run.serve(["fake_task"], on_ready=lambda url: print(url, flush=True), **options)
"""


def test_stopped_under_load_it_answers_what_is_under_way_and_refuses_what_comes(tmp_path):
    key, port = create_key(tmp_path, "tests", limits=UNLIMITED), free_port()
    point(tmp_path, TASK, champion=f"{TASK}@1")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(tmp_path), str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        asker = Asker(server.stdout.readline().strip(), key)
        processes = psutil.Process(server.pid).children(recursive=True)
        with ThreadPoolExecutor(N_AT_ONCE) as threads:
            asked = [threads.submit(asker.ask, number) for number in range(N_AT_ONCE)]  # whole ones and streams
            time.sleep(0.5)
            assert not any(one.done() for one in asked)
            server.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
            wait_until_refused(port)
            refused_s = time.monotonic() - stopped
            for one in asked:
                one.result()
        assert server.wait(60) == 0
        print(f"\nrefused after {refused_s:.1f} s, over after {time.monotonic() - stopped:.1f} s", asker.counts())
        # What takes longer than a server has for its stop, as on a machine under load, is told so.
        assert asker.counts().keys() <= {(200, None), (503, "unavailable"), (200, "interrupted")}
        assert asker.counts()[200, None] > N_AT_ONCE / 2
        assert not asker.wrong
        assert read_journal(tmp_path, "requests").height == N_AT_ONCE
        assert not [process for process in processes if process.is_running()]
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(60)


def wait_until_refused(port):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError("it goes on listening")


def test_killed_gateway_is_back_on_its_port_and_what_was_under_way_is_told_by_the_connection(tmp_path):
    key = create_key(tmp_path, "tests", limits=UNLIMITED)
    point(tmp_path, TASK, champion=f"{TASK}@1")
    fleet, lost = Fleet(), []
    with run.serving(
        [TASK],
        data_root=tmp_path,
        tasks_dir=tmp_path,
        endpoint=Endpoint("::1", free_port()),
        load=fakes.load_slow,
    ) as url:
        assert url.startswith("http://[::1]:")
        asker = Asker(url, key)
        asker.ask(1)

        def ask_and_lose():
            try:
                asker.ask(2)
            except httpx.TransportError as error:
                lost.append(error)

        under_way = threading.Thread(target=ask_and_lose)
        under_way.start()
        time.sleep(0.4)
        os.kill(fleet.gateway().pid, signal.SIGKILL)
        killed = time.monotonic()
        under_way.join(60)
        assert len(lost) == 1
        deadline = killed + 90
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5).is_success:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "no gateway"
            time.sleep(0.1)
        print(f"\nback {time.monotonic() - killed:.1f} s after SIGKILL of the gateway")
        asker.ask(3)
        assert asker.counts() == {(200, None): 2}
        assert not asker.wrong
