import asyncio
import gzip
import socket
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate
from itertools import pairwise

import pytest

from ev_platform.collect import pace
from ev_platform.collect.addresses import is_public, spelled_address
from ev_platform.collect.fetch import Fetcher
from ev_platform.collect.pace import retry_after_s
from ev_platform.collect.robots import MAX_ROBOTS_BYTES, Robots
from ev_platform.collect.site import Mirrors
from ev_platform.tasks.sources import Sources

from .conftest import AGENT, page

PACKED = gzip.compress(b"User-agent: *\nDisallow: /a")
# fmt: off
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",  # loopback, private
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3",  # link-local, shared, this network
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1",  # multicast, reserved
    "2130706433", "017700000001", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "10.1",  # other spellings
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",  # IPv4 within
    "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:c0a8:101::1", "2001:0:1:1::1",
]
PUBLIC = [
    "8.8.8.8", "134744072", "100.63.255.255", "172.32.0.1", "2606:4700::1", "64:ff9b::808:808", "2002:808:808::1",
]
# fmt: on


@asynccontextmanager
async def fetching(*allowed, user_agent=AGENT, **sources):
    """Give a fetcher for hosts, each a root such as `http://127.0.0.1:8000` or a plain host."""
    hosts = frozenset(host.removeprefix("http://") for host in allowed)
    fetcher = Fetcher(Sources.model_validate(sources), hosts, Mirrors({}), user_agent)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(fetcher.close)
        yield fetcher


def fetched(*urls, allowed, at_once=False, **kwargs):
    """Fetch addresses with one fetcher; give the answers."""

    async def run():
        async with fetching(*allowed, **kwargs) as fetcher:
            if at_once:
                return await asyncio.gather(*map(fetcher.fetch, urls))
            return [await fetcher.fetch(url) for url in urls]

    return asyncio.run(run())


def outcome(answer):
    return answer.status, answer.drop_reason, answer.drop_detail


def seconds_between(site, path):
    times = [moment for asked, _, moment in site.requests if asked == path]
    return [later - earlier for earlier, later in pairwise(times)]


class Crowd:
    """A route that counts how many requests are in it at the same time."""

    def __init__(self):
        self._lock = threading.Lock()
        self.n = self.most = 0

    def __call__(self, headers):
        with self._lock:
            self.n += 1
            self.most = max(self.most, self.n)
        time.sleep(0.05)
        with self._lock:
            self.n -= 1
        return page()


# ---- robots.txt ----


@pytest.mark.parametrize(
    ("robots", "decision", "reason"),
    [
        ("User-agent: *\nDisallow: /x\n", "allowed", None),
        ("User-agent: *\nDisallow: /a\n", "disallowed", "robots_disallowed"),
        (None, "none", None),
        ((403, {}, "no"), "none", None),
        ((500, {}, ""), "unreadable", "http_500"),
        ((429, {"Retry-After": "0"}, ""), "unreadable", "http_429"),
        ((302, {"Location": "/rules"}, ""), "disallowed", "robots_disallowed"),
        ((302, {"Location": "/robots.txt"}, ""), "none", None),
        ((200, {"Content-Encoding": "gzip"}, PACKED), "disallowed", "robots_disallowed"),
        (bytes(range(256)) * 100, "allowed", None),
        (b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /a", "disallowed", "robots_disallowed"),
    ],
)
def test_fetch_robots_decision_is_in_the_answer(site, robots, decision, reason):
    site.routes = {"/a": page(), "/rules": "User-agent: *\nDisallow: /a\n"}
    if robots is not None:
        site.routes["/robots.txt"] = robots
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root])
    assert (answer.robots, answer.drop_reason) == (decision, reason)
    assert ("/a" in site.asked()) == (reason is None)


def test_fetch_robots_ignored_when_the_sources_say_so(site):
    site.routes = {"/robots.txt": "User-agent: *\nDisallow: /\nCrawl-delay: 9\n", "/a": page()}
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root], obey_robots=False)
    assert (answer.robots, answer.drop_reason) == ("ignored", None)


def test_fetch_robots_asked_once_for_many_pages_at_once(site):
    site.routes = {f"/{n}": page() for n in range(8)}
    fetched(*(f"{site.root}/{n}" for n in range(8)), allowed=[site.root], at_once=True)
    assert Counter(path for path, _, _ in site.requests)["/robots.txt"] == 1


@pytest.mark.parametrize(
    ("user_agent", "group", "decision"),
    [
        ("name/1.0 (+https://name.example/bot)", "name", "disallowed"),
        ("Name/1.0 (+https://name.example/bot)", "NAME", "disallowed"),
        ("name/1.0 (research crawler)", "crawler", "allowed"),
        ("name/1.0 (+https://other.example)", "other", "allowed"),
        ("Mozilla/5.0 (compatible; Name/1.0; +https://name.example)", "name", "disallowed"),
        ("name", "name", "disallowed"),
        ("", "name", "allowed"),
    ],
)
def test_robots_group_matched_by_product_token(user_agent, group, decision):
    robots = Robots(f"User-agent: {group}\nDisallow: /\n\nUser-agent: *\nAllow: /\n".encode(), "http://a.b", user_agent)
    assert robots.decision("http://a.b/page") == decision


def test_robots_huge_file_read_up_to_its_limit_at_a_line_end():
    line = b"Disallow: /%09d\n"
    body = b"User-agent: *\n" + b"".join(line % n for n in range(100_000))
    start = time.perf_counter()
    robots = Robots(body, "http://a.b", AGENT)
    n_kept = (MAX_ROBOTS_BYTES - len(b"User-agent: *\n")) // len(line % 0)
    assert robots.decision(f"http://a.b/{n_kept - 1:09d}") == "disallowed"
    assert robots.decision(f"http://a.b/{n_kept:09d}") == "allowed"
    assert robots.decision("http://a.b/0") == "allowed"
    assert time.perf_counter() - start < 5


def test_fetch_robots_beyond_limit_harmless(site):
    site.routes = {
        "/robots.txt": "User-agent: *\nDisallow: /no\n" + "# filler\n" * 200_000,
        "/a": page(),
        "/no": page(),
    }
    good, bad = fetched(f"{site.root}/a", f"{site.root}/no", allowed=[site.root])
    assert (good.robots, bad.robots) == ("allowed", "disallowed")


def test_fetch_redirect_hop_checked_against_its_own_hosts_robots(site, other_site):
    site.routes = {
        "/a": (302, {"Location": f"{other_site.root}/b"}, ""),
        "/c": (307, {"Location": "/d"}, ""),
        "/d": page(),
    }
    other_site.routes = {"/robots.txt": "User-agent: *\nDisallow: /b\n", "/b": page()}
    off, good = fetched(f"{site.root}/a", f"{site.root}/c", allowed=[site.root, other_site.root])
    assert (off.url, off.drop_reason, off.robots) == (f"{other_site.root}/b", "robots_disallowed", "disallowed")
    assert (good.url, good.status, good.robots) == (f"{site.root}/d", 200, "none")
    assert other_site.asked() == []


def test_fetch_sitemaps_those_of_allowed_hosts(site):
    site.routes = {
        "/robots.txt": f"Sitemap: /one.xml\nSITEMAP: {site.root}/two.xml#x\nSitemap: https://else.example/s.xml\n"
        "Sitemap: /one.xml\nSitemap: ftp://127.0.0.1/s.xml\n"
    }

    async def run():
        async with fetching(site.root) as fetcher:
            return await fetcher.sitemaps(site.root)

    assert asyncio.run(run()) == [f"{site.root}/one.xml", f"{site.root}/two.xml"]


# ---- pace ----


def test_fetch_host_gets_no_more_requests_at_once_than_allowed(site, other_site):
    crowds = {site: Crowd(), other_site: Crowd()}
    for one, crowd in crowds.items():
        one.routes = {f"/{n}": crowd for n in range(8)}
    urls = [f"{one.root}/{n}" for n in range(8) for one in crowds]
    roots = [site.root, other_site.root]
    fetched(*urls, allowed=roots, at_once=True, per_host_concurrency=3, concurrency=16)
    assert [crowd.most for crowd in crowds.values()] == [3, 3]


def test_fetch_all_hosts_together_stay_within_concurrency(site, other_site):
    crowd = Crowd()
    site.routes = other_site.routes = {f"/{n}": crowd for n in range(6)}
    urls = [f"{one.root}/{n}" for n in range(6) for one in (site, other_site)]
    fetched(*urls, allowed=[site.root, other_site.root], at_once=True, per_host_concurrency=4, concurrency=5)
    assert crowd.most == 5


def test_fetch_delay_spaces_one_host_and_not_the_other(site, other_site):
    site.routes = other_site.routes = {"/": page()}
    urls = [f"{one.root}/" for one in (site, other_site, site, other_site)]
    start = time.monotonic()
    fetched(*urls, allowed=[site.root, other_site.root], at_once=True, obey_robots=False, delay_s=0.3)
    assert min(seconds_between(site, "/") + seconds_between(other_site, "/")) > 0.28
    assert time.monotonic() - start < 0.85  # one after the other, the four would take 0.9


def test_fetch_crawl_delay_beyond_bound_makes_host_unusable(site):
    site.routes = {"/robots.txt": "User-agent: *\nCrawl-delay: 86400\n", "/a": page()}
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root])
    detail = "robots.txt asks for 86400 s between requests, more than 60"
    assert outcome(answer) == (None, "crawl_delay_too_long", detail)
    assert site.asked() == []


# ---- retries ----


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_fetch_busy_server_asked_again_with_growing_pauses(site, status):
    answers = [(status, {}, ""), (status, {}, "")]
    site.routes = {"/a": lambda headers: answers.pop() if answers else page()}
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root])
    assert outcome(answer) == (200, None, None)
    first, second = seconds_between(site, "/a")
    assert first >= 0.25
    assert second >= 0.5


@pytest.mark.parametrize("status", [400, 404, 410, 501])
def test_fetch_final_statuses_not_asked_again(site, status):
    site.routes = {"/a": (status, {}, "")}
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root])
    assert outcome(answer) == (status, f"http_{status}", None)
    assert site.asked() == ["/a"]


def test_fetch_retry_after_holds_up_the_whole_host(site):
    answers = [(503, {"Retry-After": "1"}, "")]
    site.routes = {"/a": lambda headers: answers.pop() if answers else page(), "/b": page()}

    async def run():
        async with fetching(site.root) as fetcher:
            busy = asyncio.create_task(fetcher.fetch(f"{site.root}/a"))
            while not site.asked():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            return await asyncio.gather(busy, fetcher.fetch(f"{site.root}/b"))

    assert [answer.status for answer in asyncio.run(run())] == [200, 200]
    first, *rest = [moment for path, _, moment in site.requests if path != "/robots.txt"]
    assert min(rest) - first > 0.95


def test_fetch_retry_after_beyond_bound_is_a_no(site):
    site.routes = {"/a": (503, {"Retry-After": "3600"}, "")}
    start = time.monotonic()
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root])
    assert (outcome(answer), site.asked()) == ((503, "http_503", None), ["/a"])
    assert time.monotonic() - start < 5


def test_fetch_retry_after_waits_of_one_host_are_bounded_in_all(site, monkeypatch):
    monkeypatch.setattr(pace, "MAX_WAITED_S", 1.0)
    bad = (503, {"Retry-After": "1"}, "")
    site.routes = {"/a": bad, "/b": bad, "/ok": page()}
    answers = fetched(*(f"{site.root}{path}" for path in ("/a", "/ok", "/b")), allowed=[site.root])
    assert [answer.status for answer in answers] == [503, 200, 503]
    assert Counter(site.asked()) == {"/a": 2, "/ok": 1, "/b": 1}


def test_retry_after_header_in_seconds_or_date_or_nonsense():
    assert retry_after_s("7") == 7.0
    assert 8 <= retry_after_s(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert retry_after_s(formatdate(0, usegmt=True)) == 0.0
    nonsense = [
        None,
        "",
        "-5",
        "nan",
        "inf",
        "1e9",
        "soon",
        "²",
        "Mon, 99 Foo 2026",
        f"Mon, 01 Jan {10**20} 00:00:00 GMT",
    ]
    assert [retry_after_s(header) for header in nonsense] == [None] * len(nonsense)


def test_fetch_failing_host_is_left_alone_and_others_are_not(site, other_site, monkeypatch):
    site.routes = {**{f"/{n}": (503, {}, "") for n in range(20)}, "/good": page()}
    other_site.routes = {"/": page()}

    async def run():
        async with fetching(site.root, other_site.root) as fetcher:
            answers = [await fetcher.fetch(f"{site.root}/{n}") for n in range(20)]
            answers.append(await fetcher.fetch(f"{other_site.root}/"))
            monkeypatch.setattr(pace, "monotonic", lambda: time.monotonic() + pace.CLOSED_S)
            return [*answers, await fetcher.fetch(f"{site.root}/good"), await fetcher.fetch(f"{site.root}/1")]

    *answers, other, good, after = asyncio.run(run())
    assert [answer.drop_reason for answer in answers] == ["http_503"] * 10 + ["unreachable"] * 10
    assert answers[-1].drop_detail == "not asked: 10 addresses of the host in a row failed, the last with http_503"
    # Three addresses were tried three times, seven once; after the pause a good answer opens the host again.
    assert [site.asked().count(f"/{n}") for n in range(12)] == [3, 3 + 3, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert (other.status, good.status, after.drop_reason) == (200, 200, "http_503")


def test_fetch_failing_host_with_many_waiting_is_soon_done_with(site):
    def slow(headers):
        time.sleep(1)
        return page()

    site.routes = {f"/{n}": slow for n in range(60)}
    start = time.monotonic()
    urls = [f"{site.root}/{n}" for n in range(60)]
    answers = fetched(*urls, allowed=[site.root], at_once=True, timeout_s=0.3, delay_s=0.1)
    reasons = Counter(answer.drop_reason for answer in answers)
    assert reasons["timeout"] == len(site.asked()) < 15
    assert reasons["unreachable"] == 60 - len(site.asked())
    assert time.monotonic() - start < 4


# ---- addresses ----


@pytest.mark.parametrize("address", PRIVATE)
def test_address_private_in_any_spelling_is_not_public(address):
    ip = spelled_address(address)
    assert ip is not None
    assert not is_public(ip)


@pytest.mark.parametrize("address", PUBLIC)
def test_address_public_is_public(address):
    assert is_public(spelled_address(address))


@pytest.mark.parametrize(
    "host", ["example.org", "1.2.3.4.example", "::ffff:zz", "", "face.b00c.example", "256.1.1.1.1"]
)
def test_address_names_are_no_addresses(host):
    assert spelled_address(host) is None


@pytest.fixture
def resolver(monkeypatch):
    """Names and the list of their answers, the next for each lookup and the last for ever; other names as usual."""
    names = {}
    resolve = socket.getaddrinfo

    def look_up(host, port=None, *args, **kwargs):
        if host not in names:
            return resolve(host, port, *args, **kwargs)
        address = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port or 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


def test_fetch_connects_to_the_very_address_that_was_checked(site, resolver):
    # curl knows no such name: what it connects to can only be what was looked up here.
    resolver["pinned.example"] = ["127.0.0.1"]
    site.routes = {"/a": lambda headers: page(headers["Host"])}
    host = site.root.replace("127.0.0.1", "pinned.example")
    (answer,) = fetched(f"{host}/a", allowed=["pinned.example", "127.0.0.1"])
    assert outcome(answer) == (200, None, None)
    assert host.removeprefix("http://") in answer.body.decode()


def test_fetch_name_that_flips_between_public_and_own_address_reaches_nothing(resolver):
    name = socket.gethostname()  # a name that curl itself would find to be this machine
    try:
        own = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        server = socket.create_server((own, 0))
    except OSError:
        pytest.skip("this machine's own name leads nowhere")
    with server:
        server.settimeout(0.2)
        # 192.88.99.0/24 counts as public, and no one is there (RFC 7526).
        resolver[name.lower()] = ["192.88.99.1", own]
        url = f"http://{name.lower()}:{server.getsockname()[1]}/"
        answers = fetched(url, url, allowed=[name.lower()], obey_robots=False, timeout_s=0.4)
        assert {answer.drop_reason for answer in answers} <= {"timeout", "unreachable"}
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.0.0.8", "224.0.0.1"]
)
def test_fetch_redirect_to_a_name_with_a_private_address_refused(site, other_site, resolver, address):
    resolver["inside.example"] = [address]
    inside = other_site.root.replace("127.0.0.1", "inside.example")
    site.routes = {"/a": (302, {"Location": f"{inside}/secret"}, "")}
    (answer,) = fetched(f"{site.root}/a", allowed=[site.root, "inside.example"])
    assert (answer.url, answer.robots) == (f"{inside}/secret", "not_applicable")
    assert outcome(answer) == (None, "private_address", f"inside.example resolves to {address}")
    assert other_site.requests == []


def test_fetch_redirect_to_this_machine_in_any_spelling_refused(site, other_site):
    port = other_site.root.rpartition(":")[2]
    hosts = ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "017700000001", "127.1", "[::ffff:127.0.0.1]"]
    targets = [f"http://{host}:{port}/" for host in [*hosts, "a.localhost", "u:p@127.0.0.1"]]
    targets += [f"{scheme}://127.0.0.1:{port}/" for scheme in ("ftp", "gopher", "dict", "ws")]
    targets += [
        f"//127.0.0.1:{port}/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://[broken/",
    ]
    site.routes = {f"/{n}": (302, {"Location": target}, "") for n, target in enumerate(targets)}
    answers = fetched(*(f"{site.root}/{n}" for n in range(len(targets))), allowed=[site.root])
    assert [outcome(answer) for answer in answers] == [(302, "redirect_off_site", target) for target in targets]
    assert other_site.requests == []


def test_fetch_address_off_the_allowed_hosts_refused(site, other_site):
    (answer,) = fetched(f"{other_site.root}/", allowed=[site.root])
    assert outcome(answer) == (None, "host_not_allowed", None)
    assert other_site.requests == []


@pytest.mark.parametrize("url", ["file://127.0.0.1/etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/"])
def test_fetch_other_schemes_refused_on_an_allowed_host(url):
    (answer,) = fetched(url, allowed=["127.0.0.1"])
    assert outcome(answer) == (None, "host_not_allowed", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
def test_fetch_private_host_listed_in_that_spelling_fetched(site, host):
    site.routes = {"/a": page()}
    port = site.root.rpartition(":")[2]
    (answer,) = fetched(f"http://{host}:{port}/a", allowed=[host])
    assert outcome(answer) == (200, None, None)


def test_fetch_name_server_that_is_busy_asked_again(site, monkeypatch):
    resolve = socket.getaddrinfo
    asked = []

    def look_up(host, port=None, *args, **kwargs):
        if host != "busy.example":
            return resolve(host, port, *args, **kwargs)
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        return resolve("127.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    site.routes = {"/a": page()}
    url = site.root.replace("127.0.0.1", "busy.example") + "/a"
    (answer,) = fetched(url, allowed=["busy.example", "127.0.0.1"])
    assert outcome(answer) == (200, None, None)


def test_fetch_unknown_name_unreachable(resolver):
    (answer,) = fetched("http://no-such-host.invalid/", allowed=["no-such-host.invalid"], obey_robots=False)
    assert outcome(answer) == (None, "unreachable", "COULDNT_RESOLVE_HOST")


def test_fetch_behind_a_proxy_names_are_left_to_it(other_site, monkeypatch):
    monkeypatch.setenv("http_proxy", other_site.root)
    monkeypatch.setenv("no_proxy", "")
    other_site.routes = {"http://only-there.invalid/a": page()}
    (answer,) = fetched("http://only-there.invalid/a", allowed=["only-there.invalid"])
    assert outcome(answer) == (200, None, None)


def test_fetch_many_at_once_all_pinned(site, resolver):
    resolver["pinned.example"] = ["127.0.0.1"]
    site.routes = {f"/{n}": page() for n in range(6)}
    host = site.root.replace("127.0.0.1", "pinned.example")
    urls = [f"{host}/{n}" for n in range(6)]
    answers = fetched(*urls, allowed=["pinned.example", "127.0.0.1"], at_once=True)
    assert [answer.status for answer in answers] == [200] * 6
