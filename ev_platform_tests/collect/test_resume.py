"""A crawl that is killed goes on where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta

import pytest

from ev_platform.collect import collect_pages
from ev_platform.collect.journal import MAX_AGE, Journal
from ev_platform.errors import UserError
from ev_platform.records import to_frame
from ev_platform.storage import Store, now

from .conftest import AGENT, page, versioned

CONCURRENCY = 3
CRAWL = """
import sys
from pathlib import Path
from ev_platform.collect import collect_pages
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.sources import Sources
root, folder, agent, concurrency = sys.argv[1:]
task = Task("a_task", Path(folder))
task.__dict__["sources"] = Sources(seeds=[root], concurrency=int(concurrency))
collect_pages(task, Store(Path(folder)), previous=to_frame("raw_pages", []), user_agent=agent)
"""
TIMES = ("fetched_at", "checked_at")


def slowly(body):
    def answer(headers):
        time.sleep(0.01)
        return body

    return answer


def tree(n_pages):
    """Return routes of a tree whose pages link to two more each and back, with robots rules and failures among them."""
    routes = {}
    for n in range(n_pages):
        head = '<meta name="robots" content="noindex">' if n % 17 == 5 else ""
        body = page("/p0", f"/p{2 * n + 1}", f"/p{2 * n + 2}", f"/missing{n}", head=head)
        headers = {"X-Robots-Tag": "nofollow"} if n % 13 == 7 else {}
        routes[f"/p{n}"] = slowly((200, headers, body))
    return routes | {"/": page("/p0")}


def unlike_times(frame):
    return frame.drop(TIMES).to_dicts()


@pytest.mark.parametrize("seed", range(5))
def test_crawl_killed_at_a_random_moment_goes_on_without_asking_again(site, make_task, tmp_path, seed):
    site.routes = tree(60)
    sources = {"seeds": [site.root], "max_depth": 9, "concurrency": CONCURRENCY}
    nothing = to_frame("raw_pages", [])
    undisturbed = collect_pages(make_task(**sources), Store(tmp_path / "other"), previous=nothing, user_agent=AGENT)
    n_bodies = sum(1 for path in set(site.asked()) if not path.startswith("/missing"))
    site.requests.clear()
    folder = tmp_path / "data"
    code = CRAWL.replace("concurrency=int(concurrency)", "concurrency=int(concurrency), max_depth=9")
    process = subprocess.Popen([sys.executable, "-c", code, site.root, str(folder), AGENT, str(CONCURRENCY)])
    moment = random.Random(seed).randrange(2, n_bodies)
    while len(site.asked()) < moment:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    journal = folder / "journal" / "a_task.jsonl"
    assert journal.exists()
    frame = collect_pages(make_task(**sources), Store(folder), previous=nothing, user_agent=AGENT)
    assert unlike_times(frame) == unlike_times(undisturbed)
    twice = {path: n for path, n in Counter(site.asked()).items() if n > 1}
    assert max(twice.values(), default=2) == 2
    # Under way, or in memory on the way to the journal.
    assert len(twice) <= 2 * CONCURRENCY
    assert not journal.exists()


@pytest.fixture
def cut_off(site, crawl, store, monkeypatch):
    """Cut a crawl of `/`, `/a` and `/b` off before its second level is done; return its journal."""
    site.routes = {"/": page("/a", "/b"), "/a": page(), "/b": page()}

    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "sync_blobs", fail)
        crawl(site.root)
    site.requests.clear()
    return store.root / "journal" / "a_task.jsonl"


def test_crawl_journal_torn_last_line_passed_over(site, crawl, cut_off):
    lines = cut_off.read_bytes().splitlines(keepends=True)
    cut_off.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    torn = json.loads(lines[-1])["url"]
    assert crawl(site.root).height == 3
    assert site.asked() == [torn.removeprefix(site.root)]


def test_crawl_journal_of_other_sources_or_too_old_discarded(site, crawl, cut_off):
    kept = cut_off.read_bytes()
    crawl(site.root, licence="CC0-1.0")
    assert sorted(site.asked()) == ["/", "/a", "/b"]
    site.requests.clear()
    head, _, rest = kept.partition(b"\n")
    old = json.loads(head) | {"started_at": (now() - MAX_AGE - timedelta(seconds=1)).isoformat()}
    cut_off.write_bytes(json.dumps(old).encode() + b"\n" + rest)
    crawl(site.root)
    assert sorted(site.asked()) == ["/", "/a", "/b"]
    site.requests.clear()
    cut_off.write_bytes(kept)
    crawl(site.root)
    assert site.asked() == []


def test_crawl_journal_body_that_was_not_synced_fetched_again(site, crawl, store, cut_off):
    rows = [json.loads(line) for line in cut_off.read_bytes().splitlines()[1:]]
    blob = store.root / next(row["path"] for row in rows if row["url"].endswith("/"))
    whole = blob.read_bytes()
    blob.write_bytes(b"")  # what a file system may leave of a new file when the power goes
    crawl(site.root)
    assert site.asked() == ["/"]
    assert blob.read_bytes() == whole


def test_crawl_journal_failing_seed_and_failure_of_the_hour_asked_again(site, crawl, store):
    site.routes = {"/": page("/a"), "/a": (500, {}, ""), "/other": (500, {}, "")}
    with pytest.raises(UserError):
        crawl(site.root, f"{site.root}/other")
    site.routes |= {"/a": page(), "/other": page()}
    assert crawl(site.root, f"{site.root}/other")["drop_reason"].to_list() == [None] * 3


def test_crawl_journal_second_crawl_cut_off_keeps_what_was_unchanged(site, crawl, store, monkeypatch):
    site.routes = {"/": versioned(page("/a"), '"1"'), "/a": versioned(page(), '"2"')}
    first = crawl(site.root)

    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "sync_blobs", fail)
        crawl(site.root, previous=first)
    site.requests.clear()
    second = crawl(site.root, previous=first)
    assert site.asked() == []
    assert second.drop("checked_at").equals(first.drop("checked_at"))


def test_crawl_beside_another_of_the_same_task_is_told(site, crawl, store):
    with Journal(store.root / "journal" / "a_task.jsonl", "key"), pytest.raises(UserError, match="is under way: wait"):
        Journal(store.root / "journal" / "a_task.jsonl", "key")
