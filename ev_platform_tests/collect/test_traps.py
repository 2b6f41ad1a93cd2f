import logging
import resource
import time

import pytest

from ev_platform.collect.links import MAX_LINKS, read_links, read_robots_header

from .conftest import by_path, page, versioned

BASE = "http://h.example/"


# ---- endless sites ----


def test_crawl_calendar_without_end_does_not_crowd_out_the_site(site, crawl, caplog):
    class Routes(dict):
        def get(self, path, default=None):
            if path.startswith("/calendar"):
                month = int(path.partition("=")[2] or 0)
                return page(*(f"/calendar?month={month + n}" for n in range(1, 40)), "/calendar/about")
            return super().get(path, default)

    real = [f"/{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    chain = {path: page(following) for path, following in zip(real, [*real[1:], "/"], strict=True)}
    site.routes = Routes({"/": page("/calendar?month=0", real[0])} | chain)
    with caplog.at_level(logging.INFO):
        rows = by_path(crawl(site.root, max_pages=300, max_depth=100), site.root)
    assert len(rows) == 300
    assert set(real) <= set(rows)
    assert "addresses like http://127.0.0.1" in caplog.text
    assert "max_pages is 300" in caplog.text


def test_crawl_numbered_pages_are_all_fetched(site, crawl):
    pages = [f"/page-{n}.html" for n in range(350)]
    site.routes = {"/": page(*pages), **dict.fromkeys(pages, page())}
    assert crawl(site.root, max_pages=500, max_depth=1).height == 351


def test_crawl_paths_that_repeat_and_long_addresses_not_followed(site, crawl, caplog):
    site.routes = {"/": page("a/b/a/b/x", "a/b/a/b/a/b/x", "2026/11/11/x", "/" + "long" * 600, "x/" * 50)}
    with caplog.at_level(logging.INFO):
        rows = by_path(crawl(site.root), site.root)
    assert set(rows) == {"/", "/a/b/a/b/x", "/2026/11/11/x"}
    assert "2 links not followed, because their paths repeat themselves" in caplog.text


# ---- one page, many spellings ----


def test_crawl_spellings_of_one_address_asked_once(site, crawl):
    site.routes = {
        "/": page(
            "/a?utm_source=x&q=1&gclid=5",
            "/a?q=1&fbclid=7",
            "/a;jsessionid=0AF1?PHPSESSID=3&q=1",
            "/b/../a?q=1",
            "/c%2fd?",
            "/c%2Fd",
            f"{site.root.upper().replace('HTTP', 'http')}/./c%2fd",
            "/ref?ref=1&sid=2",
        ),
    }
    crawl(site.root)
    assert sorted(site.asked()) == ["/", "/a?q=1", "/c%2Fd", "/ref?ref=1&sid=2"]


# ---- robots rules in pages ----


@pytest.mark.parametrize(
    ("head", "headers", "detail", "follows"),
    [
        ('<meta name="robots" content="NOINDEX">', {}, "meta robots: noindex", True),
        ('<META content="none" NAME="Robots">', {}, "meta robots: none", False),
        ('<meta name="ev-platform-test" content="noindex, nofollow">', {}, "meta ev-platform-test: noindex", False),
        ('<meta name="otherbot" content="noindex">', {}, None, True),
        ('<meta name="robots" content="index, nofollow">', {}, None, False),
        ("", {"X-Robots-Tag": "noindex"}, "X-Robots-Tag: noindex", True),
        ("", {"X-Robots-Tag": "nofollow"}, None, False),
        ("", {"X-Robots-Tag": "otherbot: noindex, nofollow"}, None, True),
    ],
)
def test_crawl_robots_rules_of_a_page_bind_also_the_second_time(site, crawl, head, headers, detail, follows):
    body = page("/behind", head=head)

    def answer(sent):
        known = sent.get("If-None-Match") == '"1"'
        # A 304 does not repeat the header here; servers need not.
        return (304, {"ETag": '"1"'}, b"") if known else (200, {"ETag": '"1"', **headers}, body)

    site.routes = {"/": page("/a"), "/a": answer, "/behind": page()}
    previous = None
    for _ in range(3):
        frame = crawl(site.root, max_pages=2 if not follows else 9, previous=previous)
        rows = by_path(frame, site.root)
        assert (rows["/a"]["drop_reason"], rows["/a"]["drop_detail"]) == ("noindex" if detail else None, detail)
        assert ("/behind" in rows) == follows
        previous = frame
    rows = by_path(crawl(site.root, obey_robots=False, previous=previous), site.root)
    assert rows["/a"]["drop_reason"] is None
    assert "/behind" in rows


def test_crawl_again_page_that_became_noindex_by_its_stored_body(site, crawl):
    site.routes = {"/": page("/a"), "/a": versioned(page(head='<meta name="robots" content="noindex">'), '"1"')}
    first = crawl(site.root, obey_robots=False)
    rows = by_path(crawl(site.root, previous=first), site.root)
    assert site.answers[304] == 1
    assert (rows["/a"]["status"], rows["/a"]["drop_reason"]) == (200, "noindex")
    assert rows["/a"]["path"]


def test_read_links_rel_nofollow_left_out_where_robots_bind():
    body = b'<a href=/a rel="noopener NoFollow">x</a><a href=/b rel=noopener>x</a>'
    assert read_links(body, BASE).links == [f"{BASE}b"]
    assert read_links(body, BASE, obey=False).links == [f"{BASE}a", f"{BASE}b"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (None, False)),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, nofollow", (None, True)),
        ("otherbot: nofollow, ours: noindex", ("X-Robots-Tag: noindex", False)),
        ("none", ("X-Robots-Tag: none", True)),
        ("max-snippet: 20, noindex", ("X-Robots-Tag: noindex", False)),
    ],
)
def test_read_robots_header_rules_for_us_read(header, expected):
    assert read_robots_header(header, agent="ours") == expected


# ---- hostile pages ----

LINK = b"<a href=/x>x</a>"


@pytest.mark.parametrize(
    ("body", "n_links"),
    [
        (b"<html><body>" + b"<div>" * 200_000 + LINK, 1),
        (b"<html><body>" + b"<b><i>" * 200_000 + LINK, 1),
        (b"<html><body>" + b"".join(b"<a href=/%d>" % n for n in range(1_000_000)), MAX_LINKS),
        (b"<html><body>" + LINK * 1_000_000, 1),
        (b"<html><body><a " + b" ".join(b"a%d=1" % n for n in range(200_000)) + b" href=/x>", 1),
        (b"<html><body><a href='" + b"x" * 20_000_000 + b"'>", 0),
        (b"<" * 5_000_000, 0),
        (b"&" * 5_000_000, 0),
        (b"<!--" + b"-" * 5_000_000, 0),
        (b"<html>" + b"\x00" * 100_000 + LINK, 1),
        (b"<html>\xff\xfe\x81" + LINK, 1),
        (("<html>" + LINK.decode()).encode("utf-16"), 1),
        ("<html>\u2028<a href='/\u2028x'>x</a>".encode(), 1),
        (b"<html>" + b"<a href='/" + b"a/b/" * 400 + b"'>", 1),
    ],
)
def test_read_links_hostile_page_ends_in_time_and_memory(body, n_links):
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    assert len(read_links(body, BASE).links) == n_links
    assert time.process_time() - started < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_crawl_hostile_pages_leave_the_rest_unharmed(site, crawl):
    bodies = {
        "/deep": b"<html><body>" + b"<div>" * 200_000 + b"<a href=/behind>x</a>",
        "/links": b"<html><body>" + b"".join(b"<a href=/links/%d>" % n for n in range(700_000)),
        "/broken": b"<html>\xff\x00\xfe<a href=/behind>x</a>",
    }
    site.routes = {"/": page(*bodies, "/good"), "/good": page(), "/behind": page(), **bodies}
    rows = by_path(crawl(site.root, max_pages=20), site.root)
    assert len(rows) == 20
    assert {rows[path]["drop_reason"] for path in ("/", "/good", "/behind", *bodies)} == {None}
