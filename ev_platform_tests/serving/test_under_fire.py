"""Ray Serve with two replicas: one killed, a version promoted and rolled back; minutes, so `make test-slow`."""

import collections
import itertools
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from ev_platform.serving import run
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.endpoint import Endpoint
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform_tests.ports import free_port
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.versions import point

pytestmark = pytest.mark.slow

N_REQUESTS = 5_000
CONCURRENCY = 32
TASK = "fake_task"
# What the gateway may answer when more is asked than can wait; all else but 200 is a fault.
BACKPRESSURE = {"overloaded", "unavailable", "interrupted"}


class Fleet:
    """The processes of the server that this process has started."""

    def _of(self, name):
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if f"ServeReplica:ev_platform:{name}" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def replicas(self, model=TASK):
        return self._of(model)

    def gateway(self):
        (gateway,) = self._of("ListeningGateway")
        return gateway

    def kill_one(self, model=TASK):
        victim = self.replicas(model)[0]
        os.kill(victim.pid, signal.SIGKILL)
        return victim.pid

    def await_replicas(self, n_replicas, without, model=TASK, within_s=90):
        deadline = time.monotonic() + within_s
        while len(found := [p for p in self.replicas(model) if p.pid != without]) < n_replicas:
            assert time.monotonic() < deadline, f"{len(found)} of {n_replicas} replicas are there"
            time.sleep(0.2)


class Asker:
    """Asks from many threads, and keeps how each request ended."""

    def __init__(self, url, key):
        self.url = url
        self.ended = []  # request id, status, code of a refusal, seconds
        self.wrong = []
        self._clients = threading.local()
        self._key = key

    def ask(self, number):
        """Ask a question whose answer shows whether it is right; every fourth one as a stream."""
        if not hasattr(self._clients, "client"):
            self._clients.client = httpx.Client(headers={"Authorization": f"Bearer {self._key}"}, timeout=150)
        request_id, question, is_streamed = f"req-{number}", f"Number {number}?", number % 4 == 0
        started = time.monotonic()
        reply = self._clients.client.post(
            f"{self.url}/v1/answers",
            json={"question": question, "stream": is_streamed},
            headers={"x-request-id": request_id},
        )
        try:
            code, said = self._read(reply, is_streamed)
        except (ValueError, KeyError, IndexError, AssertionError) as error:
            code, said = f"{type(error).__name__}: {reply.text[:300]}", None
        self.ended.append((request_id, reply.status_code, code, time.monotonic() - started))
        if said is not None and not self._is_right(said, question):
            self.wrong.append(said)

    def _read(self, reply, is_streamed):
        if reply.status_code != 200:
            return reply.json()["error"]["code"], None
        if not is_streamed:
            return None, reply.json()
        events = [part.split("\n") for part in reply.text.split("\n\n") if part.startswith("event: ")]
        name, data = events[-1][0][7:], json.loads(events[-1][1][6:])
        if name == "error":
            return data["error"]["code"], None
        assert name == "done", name
        pieces = [json.loads(event[1][6:])["text"] for event in events if event[0] == "event: delta"]
        assert "".join(pieces).strip() == data["answer"]
        return None, data

    def _is_right(self, said, question):
        """Tell whether the version that it names has answered this question from passages."""
        return (
            f"I am {said['model']}." in said["answer"]
            and said["answer"].endswith(f"Question: {question}")
            and len(said["citations"]) == 2
        )

    def counts(self):
        return collections.Counter((status, code) for _, status, code, _ in self.ended)


def assert_bounded(counts):
    """Check that there is nothing but answers and stated backpressure."""
    faults = {
        ended: n
        for ended, n in counts.items()
        if ended != (200, None) and not (ended[0] in (200, 503) and ended[1] in BACKPRESSURE)
    }
    assert not faults


def test_nothing_is_lost_while_a_replica_is_killed_and_versions_change(tmp_path):
    key = create_key(tmp_path, "tests", limits=UNLIMITED)
    point(tmp_path, TASK, champion=f"{TASK}@1")
    fleet, megabytes = Fleet(), []
    with run.serving(
        [TASK],
        data_root=tmp_path,
        tasks_dir=tmp_path,
        endpoint=Endpoint("127.0.0.1", free_port()),
        config=ServingConfig(),
        replicas=2,
        load=fakes.load_written,
    ) as url:
        asker = Asker(url, key)
        numbers = itertools.count()

        def ask_many(n_requests):
            with ThreadPoolExecutor(CONCURRENCY) as threads:
                list(threads.map(asker.ask, itertools.islice(numbers, n_requests)))
            megabytes.append(sum(p.memory_info().rss for p in [fleet.gateway(), *fleet.replicas()]) / 2**20)

        started = time.monotonic()
        ask_many(N_REQUESTS // 5)
        moves = [
            fleet.kill_one,
            lambda: point(tmp_path, TASK, champion=f"{TASK}@2", previous=f"{TASK}@1"),
            lambda: point(tmp_path, TASK, champion=f"{TASK}@1"),
        ]
        results = []
        for move in moves:
            timer = threading.Timer(0.5, lambda move=move: results.append(move()))
            timer.start()
            ask_many(N_REQUESTS // 5)
            timer.join()
        fleet.await_replicas(2, without=results[0])
        ask_many(N_REQUESTS - len(asker.ended))
        seconds = time.monotonic() - started
    counts = asker.counts()
    versions = read_journal(tmp_path, "requests")
    print(
        f"\n{N_REQUESTS} requests at {CONCURRENCY} in {seconds:.0f} s ({N_REQUESTS / seconds:.0f}/s): {dict(counts)}; "
        f"longest {max(s for *_, s in asker.ended):.1f} s; gateway and replicas, MB: "
        + ", ".join(f"{value:.0f}" for value in megabytes)
    )
    assert not asker.wrong
    assert_bounded(counts)
    assert counts[200, None] > 0.9 * N_REQUESTS
    answered = versions.filter(versions["status"] == 200)
    assert {f"{TASK}@1", f"{TASK}@2"} <= set(answered["model_version"])
    # The log holds each of them once, with the status that its client saw.
    logged = dict(zip(versions["request_id"], versions["status"], strict=True))
    assert versions.height == len(logged) == N_REQUESTS
    assert {request_id: status for request_id, status, *_ in asker.ended} == logged
    assert max(megabytes[1:]) < megabytes[0] * 1.3 + 100


def test_only_replica_of_a_model_is_waited_for_when_it_dies(tmp_path):
    key = create_key(tmp_path, "tests", limits=UNLIMITED)
    point(tmp_path, TASK, champion=f"{TASK}@1")
    fleet = Fleet()
    with run.serving(
        [TASK],
        data_root=tmp_path,
        tasks_dir=tmp_path,
        endpoint=Endpoint("127.0.0.1", free_port()),
        load=fakes.load_slow,
    ) as url:
        asker = Asker(url, key)
        asker.ask(1)
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(asker.ask, number) for number in (3, 5, 7, 9)]  # whole answers
            time.sleep(0.3)  # until some of them are being written
            victim = fleet.kill_one()
            for one in asked:
                one.result()
        fleet.await_replicas(1, without=victim)
        assert asker.counts() == {(200, None): 5}
        assert not asker.wrong
        print(f"\nan only replica killed: answers after {max(s for *_, s in asker.ended):.1f} s")

        # A stream that has begun cannot be begun again: its reader is told.
        headers = {"Authorization": f"Bearer {key}"}
        body = {"question": "Number 4?", "stream": True}
        with httpx.stream("POST", f"{url}/v1/answers", json=body, headers=headers, timeout=60) as reply:
            lines = reply.iter_lines()
            while "event: delta" not in next(lines):
                pass
            fleet.kill_one()
            rest = list(lines)
        (error,) = [json.loads(line[6:]) for line in rest if '"error"' in line]
        assert error["error"]["code"] == "interrupted"


def test_client_that_goes_away_ends_the_generation_in_the_replica(tmp_path):
    key = create_key(tmp_path, "tests", limits=UNLIMITED)
    point(tmp_path, TASK, champion=f"{TASK}@1")
    headers = {"Authorization": f"Bearer {key}"}
    with run.serving(
        [TASK],
        data_root=tmp_path,
        tasks_dir=tmp_path,
        endpoint=Endpoint("127.0.0.1", free_port()),
        load=fakes.load_crawling,
    ) as url:
        for is_streamed in (True, False):
            # An answer takes half a minute, and one is written at a time: whoever comes next must not wait for it.
            with pytest.raises(httpx.TimeoutException):
                body = {"question": "Number 1?", "stream": is_streamed}
                with httpx.stream("POST", f"{url}/v1/answers", json=body, headers=headers, timeout=2) as reply:
                    for _ in reply.iter_lines():
                        time.sleep(1.2)
                        raise httpx.ReadTimeout("gone")
        started = time.monotonic()
        body = {"question": "Number 2?", "stream": True}
        with httpx.stream("POST", f"{url}/v1/answers", json=body, headers=headers, timeout=60) as reply:
            for line in reply.iter_lines():
                if "event: delta" in line:
                    break
        assert time.monotonic() - started < 8
