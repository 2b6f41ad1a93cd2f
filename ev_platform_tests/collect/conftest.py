"""A small site on loopback whose answers a test writes down, and which remembers what it was asked."""

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ev_platform.collect import collect_pages
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform.tasks.sources import Sources

AGENT = "ev-platform-test/1.0"
PDF = b"%PDF-1.7\n1 0 obj\n"


class Site:
    """Answers from `routes`: path -> body, or (status, headers, body), or a function of the request's headers."""

    def __init__(self):
        self.routes = {}
        self.requests = []  # (path, headers, time)
        self.answers = Counter()  # status -> n
        self.n_body_bytes = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, time.monotonic()))
                route = site.routes.get(self.path, (404, {}, b"<html><body>no such page</body></html>"))
                if callable(route):
                    route = route(dict(self.headers))
                if isinstance(route, bytes | str):
                    route = (200, {}, route)
                status, headers, body = route
                body = body.encode() if isinstance(body, str) else body
                site.answers[status] += 1
                self.send_response(status)
                for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for start in range(0, len(body), 65536):
                        site.n_body_bytes += self.wfile.write(body[start : start + 65536])
                except ConnectionError:
                    pass

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def asked(self):
        return [path for path, _, _ in self.requests if path not in ("/robots.txt", "/sitemap.xml")]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def other_site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "data")


@pytest.fixture
def make_task(tmp_path):
    """Return a function that makes a task of the given sources."""

    def make(**sources):
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        task = Task("a_task", folder)
        task.__dict__["sources"] = Sources.model_validate(sources)  # what the cached property would hold
        return task

    return make


@pytest.fixture
def crawl(store, make_task):
    """Return a function that crawls and gives the rows by the path of their address."""

    def run(*seeds, previous=None, **sources):
        task = make_task(seeds=seeds, **sources)
        return collect_pages(
            task, store, previous=to_frame("raw_pages", []) if previous is None else previous, user_agent=AGENT
        )

    return run


def by_path(frame, root):
    return {row["url"].removeprefix(root): row for row in frame.iter_rows(named=True)}


def page(*hrefs, head=""):
    links = "".join(f'<a href="{href}">a link</a>' for href in hrefs)
    return f"<!DOCTYPE html><html><head>{head}</head><body><h1>A page</h1>{links}</body></html>"


def versioned(body, tag):
    """Return a route that answers 304 to whoever has the version already."""

    def answer(headers):
        if headers.get("If-None-Match") == tag:
            return 304, {"ETag": tag}, b""
        return 200, {"ETag": tag}, body

    return answer
