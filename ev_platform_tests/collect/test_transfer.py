"""What requests share: connections and handles of curl, and nothing that one of them said or was told."""

import asyncio
import gc
import socket
import threading

import pytest
from curl_cffi import Curl

from ev_platform.collect import fetch

from .test_fetch import fetching
from .test_hostile_fetch import GOOD, HEAD, RawSite, whole


class KeptSite(RawSite):
    """Answers many requests on one connection, writing down each whole request; `n_connections` were made."""

    def __init__(self):
        self.n_connections = 0
        self.requests = []
        super().__init__()

    def _answer(self, connection):
        self.n_connections += 1
        with connection:
            while data := connection.recv(65536):
                self.requests.append(data.decode().lower())
                route = self.routes.get(data.split(b" ")[1].decode(), whole(GOOD))
                try:
                    connection.sendall(route) if isinstance(route, bytes) else route(connection)
                except OSError:
                    return


@pytest.fixture
def kept_site():
    site = KeptSite()
    yield site
    site.close()


def fetched(site, *asked, **sources):
    """Fetch paths one after the other, each alone or with conditions."""

    async def run():
        async with fetching(site.root, obey_robots=False, timeout_s=1, **sources) as fetcher:
            answers = []
            for path in asked:
                path, conditions = path if isinstance(path, tuple) else (path, {})
                answers.append(await fetcher.fetch(site.root + path, {site.root + path: conditions}))
            return answers

    return asyncio.run(run())


def test_request_connection_kept_for_the_next_also_after_a_bad_answer(kept_site):
    kept_site.routes["/bad"] = whole(b"no gzip", b"Content-Encoding: gzip")
    answers = fetched(kept_site, "/a", "/b", "/bad", "/c")
    assert [answer.drop_reason for answer in answers] == [None, None, "broken_answer", None]
    assert kept_site.n_connections == 1


def test_request_connection_not_kept_after_a_body_that_was_broken_off(kept_site):
    kept_site.routes["/large"] = whole(bytes(5_000))
    answers = fetched(kept_site, "/a", "/large", "/b", max_bytes=1_000)
    assert [answer.drop_reason for answer in answers] == [None, "too_large", None]
    assert answers[2].body == GOOD
    assert kept_site.n_connections == 2


def test_request_headers_of_the_one_before_not_sent_again(kept_site):
    kept_site.routes["/a"] = whole(GOOD, b"Set-Cookie: who=you; Path=/")
    fetched(kept_site, "/a", ("/a", {"If-None-Match": '"1"'}), "/a", ("/b", {"If-Modified-Since": "then"}), "/b")
    conditions = [[line for line in ("if-none-match", "if-modified-since") if line in r] for r in kept_site.requests]
    assert conditions == [[], ["if-none-match"], [], ["if-modified-since"], []]
    assert not any("cookie" in request for request in kept_site.requests)
    assert all(request.count("user-agent:") == request.count("accept:") == 1 for request in kept_site.requests)


def test_request_headers_of_the_answer_itself_read(kept_site):
    kept_site.routes |= {
        "/early": b"HTTP/1.1 103 Early Hints\r\nETag: early\r\nLink: </x>\r\n\r\n" + whole(GOOD, b"ETag: late"),
        "/trailer": HEAD + b"ETag: head\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nETag: end\r\n\r\n",
        "/folded": whole(GOOD, b"X-Robots-Tag: noindex,\r\n\tnofollow", b"x-robots-tag:none "),
        "/utf-8": whole(GOOD, "ETag: \u00fc".encode()),
        "/latin-1": whole(GOOD, b"ETag: \xfc"),
        "/line": whole(GOOD, "ETag: a\u2028\u0085b".encode()),
    }
    early, trailer, folded, utf_8, latin_1, line = (answer.headers for answer in fetched(kept_site, *kept_site.routes))
    assert (early["etag"], "link" in early) == ("late", False)
    assert trailer["etag"] == "head"
    assert folded["x-robots-tag"] == "noindex, nofollow, none"
    assert utf_8["etag"] == latin_1["etag"] == "\u00fc"
    assert line["etag"] == "a\u2028\u0085b"


def test_request_name_checked_after_the_handle_was_made_is_pinned(kept_site, monkeypatch):
    resolve = socket.getaddrinfo
    names = ("one.example", "two.example")
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)  # a second one would have a new handle
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kwargs: resolve("127.0.0.1" if host in names else host, *args, **kwargs),
    )

    async def run():
        async with fetching(*names, "127.0.0.1", obey_robots=False) as fetcher:
            roots = [kept_site.root.replace("127.0.0.1", name) for name in names]
            return [await fetcher.fetch(root + "/") for root in (*roots, *roots)]

    assert [answer.status for answer in asyncio.run(run())] == [200] * 4


def test_request_no_longer_waited_for_leaves_no_handle_and_the_next_is_good(kept_site):
    asked, end = threading.Event(), threading.Event()

    def wait(connection):
        asked.set()
        end.wait(5)

    kept_site.routes["/slow"] = wait

    def n_handles():
        gc.collect()
        return sum(isinstance(thing, Curl) and thing._curl is not None for thing in gc.get_objects())

    async def run():
        before = n_handles()
        async with fetching(kept_site.root, obey_robots=False) as fetcher:
            slow = asyncio.create_task(fetcher.fetch(f"{kept_site.root}/slow"))
            while not asked.is_set():
                await asyncio.sleep(0.01)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert n_handles() == before
            assert (await fetcher.fetch(f"{kept_site.root}/a")).body == GOOD
            left = asyncio.create_task(fetcher.fetch(f"{kept_site.root}/slow"))
            await asyncio.sleep(0.1)
        with pytest.raises(asyncio.CancelledError):
            await left
        assert n_handles() == before

    asyncio.run(run())
    end.set()
