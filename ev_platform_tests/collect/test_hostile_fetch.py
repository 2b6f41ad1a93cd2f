"""Servers that do what no server should: each ends in a recorded reason, within its limits, and the next page comes."""

import asyncio
import gzip
import resource
import socket
import struct
import threading
import time
import zlib

import pytest

from ev_platform.collect.transfer import unpack

from .test_fetch import fetching, outcome

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
GOOD = b"<html>good</html>"
MAX_BYTES = 1_000_000
TOO_LARGE = f"more than {MAX_BYTES} bytes"


def whole(body, *headers, head=HEAD):
    lines = b"".join(header + b"\r\n" for header in (*headers, b"Content-Length: %d" % len(body)))
    return head + lines + b"\r\n" + body


def packed_zeros(n_megabytes, window_bits):
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(n_megabytes)) + packer.flush()


def endless_body(connection):
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(bytes(65536))


def five_gigabytes(connection):
    connection.sendall(HEAD + b"Content-Length: 5368709120\r\n\r\n")
    for _ in range(5368709120 // 65536):
        connection.sendall(bytes(65536))


def dripping_body(connection):
    connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def dripping_head(connection):
    for byte in HEAD * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def silence(connection):
    time.sleep(3)


def endless_continue(connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.001)


def endless_head(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-A: " + b"y" * 1000 + b"\r\n")


def reset_in_mid_body(connection):
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf")
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN, UNREACHABLE = "broken_answer", "unreachable"
NO_HTTP = (None, BROKEN, "UNSUPPORTED_PROTOCOL")
WEIRD = (None, BROKEN, "WEIRD_SERVER_REPLY")
LONG_HEAD = (None, BROKEN, "TOO_LARGE")
CUT_SHORT = (None, UNREACHABLE, "PARTIAL_FILE")
LATE = (None, "timeout", "no complete answer within 0.6 s")
LARGE = (200, "too_large", TOO_LARGE)
PAGE = gzip.compress(b"<html>" + bytes(range(256)) * 50)

CASES = {
    "bomb of gzip": (whole(packed_zeros(50, 31), b"Content-Encoding: gzip"), LARGE),
    "bomb of deflate": (whole(packed_zeros(50, 15), b"Content-Encoding: deflate"), LARGE),
    "bomb within a bomb": (
        whole(gzip.compress(packed_zeros(50, 31)), b"Content-Encoding: gzip, gzip"),
        LARGE,
    ),
    "bomb of br, which was not asked for": (
        whole(b"\xcf\xff\xff\x7f\xf8\x27\x00", b"Content-Encoding: br"),
        (None, BROKEN, "content encoding br, which was not asked for"),
    ),
    "bomb of zstd, which was not asked for": (
        whole(b"\x28\xb5\x2f\xfd", b"Content-Encoding: zstd"),
        (None, BROKEN, "content encoding zstd, which was not asked for"),
    ),
    "many encodings": (
        whole(PAGE, b"Content-Encoding: " + b", ".join([b"gzip"] * 20)),
        (None, BROKEN, "more than 2 content encodings"),
    ),
    "many gzip members": (
        whole(gzip.compress(b"") * 30_000, b"Content-Encoding: gzip"),
        (None, BROKEN, "more than 100 gzip members"),
    ),
    "gzip that is none": (whole(b"abc", b"Content-Encoding: gzip"), (None, BROKEN, "the packed body is spoilt")),
    "gzip cut short": (
        whole(PAGE[: len(PAGE) // 2], b"Content-Encoding: gzip"),
        (None, BROKEN, "the packed body is cut short"),
    ),
    "body without end": (endless_body, LARGE),
    "body of 5 GB": (five_gigabytes, LARGE),
    "body that drips": (dripping_body, LATE),
    "head that drips": (dripping_head, LATE),
    "nothing but silence": (silence, LATE),
    "100 Continue without end": (endless_continue, LATE),
    "head without end": (endless_head, (None, UNREACHABLE, "RECV_ERROR")),
    "many headers": (whole(GOOD, *(b"X-%d: y" % n for n in range(20_000))), LONG_HEAD),
    "long header": (whole(GOOD, b"X: " + b"y" * 400_000), LONG_HEAD),
    "5 GB announced and not sent": (HEAD + b"Content-Length: 5368709120\r\n\r\nabc", CUT_SHORT),
    "length too long": (HEAD + b"Content-Length: 10\r\n\r\nabc", CUT_SHORT),
    "length below zero": (HEAD + b"Content-Length: -5\r\n\r\nabc", WEIRD),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", WEIRD),
    "chunks cut short": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab", CUT_SHORT),
    "chunks that are none": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n",
        (None, UNREACHABLE, "RECV_ERROR"),
    ),
    "reset in mid body": (reset_in_mid_body, (None, UNREACHABLE, "RECV_ERROR")),
    "closed at once": (b"", (None, UNREACHABLE, "GOT_NOTHING")),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", NO_HTTP),
    "status that is no number": (b"HTTP/1.1 banana\r\n\r\nabc", NO_HTTP),
    "HTTP of the future": (whole(GOOD, head=b"HTTP/9.9 200 OK\r\n"), NO_HTTP),
    "status of four figures": (whole(GOOD, head=b"HTTP/1.1 9999 What\r\n"), (999, "http_999", None)),
    "status 101": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        (None, UNREACHABLE, "GOT_NOTHING"),
    ),
    "NUL in a header": (whole(GOOD, b"X-A: a\0b"), WEIRD),
    "redirect to nowhere": (whole(b"", b"Location: ", head=b"HTTP/1.1 302 Found\r\n"), (302, "http_302", None)),
    "redirect to two places": (
        whole(b"", b"Location: /good", b"Location: /other", head=b"HTTP/1.1 302 Found\r\n"),
        WEIRD,
    ),
}
HARMLESS = {
    "bytes in headers that are no text": whole(GOOD, b"X-\xff\xfe: \x81", head=b"HTTP/1.1 200 \xff\r\n"),
    "charset that does not exist": whole(GOOD, b"Content-Type: text/html; charset=no-such"),
    "5,000 cookies": whole(GOOD, *(b"Set-Cookie: a%d=v" % n for n in range(4_900))),
    "more than its length": HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD + b"more",
    "content encoding that names a charset": whole(GOOD, b"Content-Encoding: utf-8"),
    "content encoding that names nothing": whole(GOOD, b"Content-Encoding: "),
}


class RawSite:
    """Sends what a test writes down, byte for byte: `routes` gives bytes or a function of the connection."""

    def __init__(self):
        self.routes = {}
        self.asked = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.root = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection:
            try:
                path = connection.recv(65536).split(b" ")[1].decode()
                self.asked.append(path)
                route = self.routes.get(path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                if callable(route):
                    route(connection)
                else:
                    connection.sendall(route)
            except (OSError, IndexError):
                pass

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def raw_site():
    site = RawSite()
    site.routes["/good"] = whole(GOOD)
    yield site
    site.close()


def fetched(site, *paths, **sources):
    async def run():
        async with fetching(site.root, timeout_s=0.6, max_bytes=MAX_BYTES, **sources) as fetcher:
            return [await fetcher.fetch(site.root + path) for path in paths]

    return asyncio.run(run())


@pytest.mark.parametrize("name", CASES)
def test_hostile_answer_ends_in_its_reason_and_the_next_is_good(raw_site, name):
    raw_site.routes["/bad"], expected = CASES[name]
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad, good = fetched(raw_site, "/bad", "/good")
    assert outcome(bad) == expected
    assert bad.body == b""
    assert (good.drop_reason, good.body) == (None, GOOD)
    assert time.monotonic() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("name", HARMLESS)
def test_hostile_answer_that_can_be_read_is_read(raw_site, name):
    raw_site.routes["/odd"] = HARMLESS[name]
    start = time.monotonic()
    odd, good = fetched(raw_site, "/odd", "/good")
    assert (odd.drop_reason, odd.body, good.body) == (None, GOOD, GOOD)
    assert time.monotonic() - start < 2


def test_hostile_redirects_end(raw_site):
    found = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\n"

    def onwards(connection):
        connection.sendall(found + b"Location: /next?%d\r\n\r\n" % len(raw_site.asked))

    raw_site.routes |= {
        "/self": found + b"Set-Cookie: seen=1\r\nLocation: /self\r\n\r\n",
        "/there": found + b"Location: /back\r\n\r\n",
        "/back": found + b"Location: /there\r\n\r\n",
        "/endless": onwards,
        **{f"/next?{n}": onwards for n in range(200)},
        "/long": found + b"Location: http://else.example/" + b"y" * 50_000 + b"\r\n\r\n",
    }
    *endless, far, good = fetched(raw_site, "/self", "/there", "/endless", "/long", "/good")
    assert [outcome(answer) for answer in endless] == [(None, "too_many_redirects", "more than 10")] * 3
    assert (far.drop_reason, len(far.drop_detail)) == ("redirect_off_site", 500)
    assert good.body == GOOD
    assert len(raw_site.asked) == 1 + 3 * 11 + 2


def test_hostile_robots_txt_without_end_counts_up_to_its_limit(raw_site):
    def endless(connection):
        connection.sendall(HEAD + b"\r\nUser-agent: *\nDisallow: /bad\n")
        while True:
            connection.sendall(b"# more\n" * 10_000)

    raw_site.routes |= {"/robots.txt": endless, "/bad": whole(GOOD)}
    bad, good = fetched(raw_site, "/bad", "/good")
    assert (bad.drop_reason, good.body) == ("robots_disallowed", GOOD)


def test_hostile_robots_txt_that_is_no_http_closes_the_site(raw_site):
    raw_site.routes["/robots.txt"] = b"hello"
    (answer,) = fetched(raw_site, "/good")
    assert (outcome(answer), answer.robots) == (
        (None, BROKEN, "robots.txt: UNSUPPORTED_PROTOCOL"),
        "unreadable",
    )
    assert raw_site.asked == ["/robots.txt"]


def test_hostile_body_broken_off_once_is_asked_for_again(raw_site):
    answers = [HEAD + b"Content-Length: 10\r\n\r\nabc", b""]
    raw_site.routes["/shaky"] = lambda connection: connection.sendall(answers.pop() if answers else whole(GOOD))
    (answer,) = fetched(raw_site, "/shaky")
    assert (answer.drop_reason, answer.body) == (None, GOOD)
    assert raw_site.asked.count("/shaky") == 3


def test_hostile_bodies_at_once_stay_within_memory(raw_site):
    bomb = whole(packed_zeros(300, 31), b"Content-Encoding: gzip")
    assert len(bomb) < 400_000
    raw_site.routes = {**{f"/{n}": bomb for n in range(16)}, "/endless": endless_body, "/good": whole(GOOD)}
    urls = [*(f"{raw_site.root}/{n}" for n in range(16)), *[f"{raw_site.root}/endless"] * 16, f"{raw_site.root}/good"]

    async def run():
        async with fetching(raw_site.root, max_bytes=5_000_000, concurrency=8, per_host_concurrency=8) as fetcher:
            return await asyncio.gather(*map(fetcher.fetch, urls))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    *bad, good = asyncio.run(run())
    assert [answer.drop_reason for answer in bad] == ["too_large"] * 32
    assert good.body == GOOD
    # 8 at once, each with a body of 5 MB at most, held twice while it is unpacked or copied.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 2 * 5_000 + 50_000  # kB


@pytest.mark.parametrize(
    ("packed", "encodings"),
    [
        (gzip.compress(GOOD), "gzip"),
        (gzip.compress(GOOD[:5]) + gzip.compress(GOOD[5:]), "x-gzip"),
        (gzip.compress(GOOD) + b"\0\0\0\0", "GZIP"),
        (zlib.compress(GOOD), "deflate"),
        (zlib.compress(GOOD)[2:-4], "deflate"),
        (gzip.compress(zlib.compress(GOOD)), "deflate, gzip"),
        (GOOD, "identity"),
        (GOOD, " , "),
    ],
    # named, because gzip writes the second into its header and pytest-xdist wants one id in all workers
    ids=["gzip", "two_members", "zero_padded", "zlib", "raw_deflate", "twice", "identity", "empty_list"],
)
def test_unpack_every_form_gives_the_body(packed, encodings):
    assert unpack(packed, encodings, 1000) == GOOD


@pytest.mark.parametrize("n_bytes", [999, 1000, 1001])
def test_unpack_limit_is_exact(n_bytes):
    assert len(unpack(gzip.compress(bytes(n_bytes)), "gzip", 1000)) == n_bytes
    assert len(unpack(gzip.compress(bytes(10 * n_bytes)), "gzip", 1000)) == 1001
