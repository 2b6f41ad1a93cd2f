import logging
import time

import pytest

from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint

from .conftest import PDF, by_path, page, versioned

# ---- the second time ----


def test_crawl_again_unchanged_transfers_no_bodies_and_gives_same_rows(site, crawl):
    site.routes = {
        "/": versioned(page("/a", "/paper.pdf"), '"1"'),
        "/a": versioned(page("/deep"), '"2"'),
        "/deep": versioned(page(), '"3"'),
        "/paper.pdf": versioned(PDF, '"4"'),
    }
    first = crawl(site.root)
    site.answers.clear()
    site.n_body_bytes = 0
    second = crawl(site.root, previous=first)
    assert site.answers[304] == 4
    assert site.answers[200] == 0
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)
    assert second["status"].to_list() == [200] * 4
    assert (second["checked_at"] > first["checked_at"]).all()
    third = crawl(site.root, previous=second)
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", third)


def test_crawl_again_without_validators_same_bytes_keep_their_hour(site, crawl):
    site.routes = {"/": page("/a", "/gone"), "/a": page()}
    first = crawl(site.root)
    second = crawl(site.root, previous=first)
    assert site.answers[304] == 0
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)


def test_crawl_again_changed_page_has_new_bytes_and_hour(site, crawl):
    site.routes = {"/": versioned(page("/a"), '"1"'), "/a": versioned(page(), '"2"')}
    first = crawl(site.root)
    site.routes["/a"] = versioned(page("/new"), '"3"')
    site.routes["/new"] = page()
    before, after = by_path(first, site.root), by_path(crawl(site.root, previous=first), site.root)
    assert after["/a"]["content_sha256"] != before["/a"]["content_sha256"]
    assert after["/a"]["fetched_at"] > before["/a"]["fetched_at"]
    assert after["/"]["fetched_at"] == before["/"]["fetched_at"]
    assert "/new" in after


def test_crawl_again_lost_blob_fetched_anew(site, crawl, store):
    site.routes = {"/": versioned(page(), '"1"')}
    first = crawl(site.root)
    blob = store.root / first["path"][0]
    blob.unlink()
    crawl(site.root, previous=first)
    assert site.answers[304] == 0
    assert blob.exists()


def test_crawl_again_redirected_page_asked_with_the_target_etag(site, crawl):
    site.routes = {"/": (302, {"Location": "/home"}, ""), "/home": versioned(page(), '"1"')}
    first = crawl(site.root)
    second = crawl(site.root, previous=first)
    assert site.answers[304] == 1
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)


# ---- a bad hour ----


def stalling(headers):
    time.sleep(0.8)
    return page()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((429, {"Retry-After": "0"}, ""), "http_429"),
        ((500, {"ETag": '"of the error"'}, "broken"), "http_500"),
        ((503, {"Retry-After": "0"}, ""), "http_503"),
        (stalling, "timeout"),
    ],
)
def test_crawl_again_page_failing_for_now_keeps_its_row_and_links(site, crawl, caplog, answer, reason):
    site.routes = {"/": page("/a"), "/a": versioned(page("/behind"), '"1"'), "/behind": page()}
    first = crawl(site.root, timeout_s=0.3)
    site.routes |= {"/a": answer}
    second = crawl(site.root, timeout_s=0.3, previous=first)
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)
    assert by_path(second, site.root)["/a"]["etag"] == '"1"'
    assert (second["checked_at"] > first["checked_at"]).all()
    (warning,) = [record for record in caplog.records if record.name == "ev_platform.collect.visit"]
    assert warning.levelno == logging.WARNING
    assert f"{site.root}/a: {reason}" in warning.getMessage()


def test_crawl_again_host_gone_for_now_keeps_its_rows(site, other_site, crawl, caplog):
    site.routes = {"/": page(f"{other_site.root}/far")}
    other_site.routes = {"/far": page("/farther"), "/farther": page()}
    hosts = [url.removeprefix("http://") for url in (site.root, other_site.root)]
    first = crawl(site.root, allowed_hosts=hosts)
    other_site.close()
    second = crawl(site.root, allowed_hosts=hosts, previous=first)
    assert second["drop_reason"].to_list() == [None] * 3
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)
    assert f"{other_site.root}/far: unreachable (robots.txt: COULDNT_CONNECT)" in caplog.text


def test_crawl_again_kept_page_takes_licence_and_place_of_this_crawl(site, crawl):
    site.routes = {"/": page("/a"), "/a": page("/b"), "/b": page()}
    first = crawl(site.root, licence="CC-BY-4.0", publisher="Somebody")
    site.routes |= {"/": page("/a", "/b"), "/b": (500, {}, "")}
    before = by_path(first, site.root)["/b"]
    after = by_path(crawl(site.root, licence="CC0-1.0", publisher="Somebody else", previous=first), site.root)["/b"]
    fresh = {"licence": "CC0-1.0", "publisher": "Somebody else", "depth": 1, "referrer": f"{site.root}/"}
    assert after == before | fresh | {"checked_at": after["checked_at"]}


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        ({"/a": (302, {"Location": "https://elsewhere.example/"}, "")}, "redirect_off_site"),
        ({"/robots.txt": "User-agent: *\nDisallow: /a\n"}, "robots_disallowed"),
    ],
)
def test_crawl_again_page_out_of_bounds_is_dropped(site, crawl, routes, reason):
    site.routes = {"/": page("/a"), "/a": page()}
    first = crawl(site.root)
    site.routes |= routes
    row = by_path(crawl(site.root, previous=first), site.root)["/a"]
    assert (row["drop_reason"], row["path"]) == (reason, None)


def test_crawl_again_failing_page_with_lost_blob_is_dropped(site, crawl, store):
    site.routes = {"/": page("/a"), "/a": page("/behind")}
    first = crawl(site.root)
    (store.root / by_path(first, site.root)["/a"]["path"]).unlink()
    site.routes |= {"/a": (500, {}, "")}
    assert by_path(crawl(site.root, previous=first), site.root)["/a"]["drop_reason"] == "http_500"


def test_crawl_again_failing_seed_named(site, crawl):
    site.routes = {"/": page()}
    first = crawl(site.root)
    site.routes |= {"/": (500, {}, "")}
    with pytest.raises(UserError, match=f"The seed {site.root}/ answers HTTP status 500"):
        crawl(site.root, previous=first)


# ---- gone ----


@pytest.mark.parametrize("status", [404, 410])
def test_crawl_again_missing_page_is_gone_and_names_its_last_bytes(site, crawl, status):
    site.routes = {"/": page("/a"), "/a": versioned(page("/behind"), '"1"'), "/behind": page("/farther")}
    first = crawl(site.root, max_depth=2)
    site.routes |= {"/a": (status, {}, "")}
    second = crawl(site.root, max_depth=2, previous=first)
    before, after = (by_path(frame, site.root) for frame in (first, second))
    hour = f"{before['/a']['fetched_at']:%Y-%m-%dT%H:%MZ}"
    assert (after["/a"]["drop_reason"], after["/a"]["drop_detail"]) == (
        "gone",
        f"HTTP status {status}; last fetched {hour}",
    )
    kept = ("content_sha256", "path", "fetched_at", "n_bytes")
    assert [after["/a"][name] for name in kept] == [before["/a"][name] for name in kept]
    # Nothing leads to /behind any longer, but it still answers; what it links to is not looked for.
    stays = {"checked_at": after["/behind"]["checked_at"]}
    assert after["/behind"] == before["/behind"] | stays
    third = crawl(site.root, max_depth=2, previous=second)
    assert frame_fingerprint("raw_pages", second) == frame_fingerprint("raw_pages", third)


def test_crawl_again_gone_page_comes_back(site, crawl):
    site.routes = {"/": page("/a"), "/a": versioned(page("/behind"), '"1"'), "/behind": page()}
    first = crawl(site.root)
    back = site.routes["/a"]
    site.routes |= {"/a": (404, {}, "")}
    second = crawl(site.root, previous=first)
    site.routes |= {"/a": back}
    third = crawl(site.root, previous=second)
    assert site.answers[304] == 1
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", third)


def test_crawl_again_unlinked_page_asked_and_gone_one_carried_without_a_request(site, crawl):
    site.routes = {"/": page("/a", "/b"), "/a": page(), "/b": page()}
    first = crawl(site.root)
    site.routes = {"/": page(), "/b": page()}
    second = crawl(site.root, previous=first)
    rows = by_path(second, site.root)
    assert {path: row["drop_reason"] for path, row in rows.items()} == {"/": None, "/a": "gone", "/b": None}
    site.requests.clear()
    third = crawl(site.root, previous=second)
    assert site.asked() == ["/", "/b"]
    assert by_path(third, site.root)["/a"] == rows["/a"]
    assert frame_fingerprint("raw_pages", second) == frame_fingerprint("raw_pages", third)


def test_crawl_again_unlinked_page_outside_present_bounds_not_carried(site, other_site, crawl):
    site.routes = {"/": page("/a", f"{other_site.root}/far"), "/a": page("/deep"), "/deep": page()}
    other_site.routes = {"/far": page()}
    hosts = [url.removeprefix("http://") for url in (site.root, other_site.root)]
    first = crawl(site.root, allowed_hosts=hosts)
    assert first.height == 4
    site.routes["/"] = page()
    assert set(by_path(crawl(site.root, max_depth=1, previous=first), site.root)) == {"/", "/a"}
    unasked = crawl(site.root, max_pages=1, previous=first, allowed_hosts=hosts)  # the linked ones come first
    assert set(unasked["url"]) == set(first["url"])


def test_crawl_again_validators_everywhere_transfers_not_one_byte_of_a_body(site, crawl):
    site.routes = {
        "/": versioned(page("/a"), '"1"'),
        "/a": versioned(page(), '"2"'),
        "/listed": versioned(page(), '"3"'),
        "/robots.txt": "",  # asked for anew each time, and so is the sitemap: they are the crawl's map, not its pages
        "/sitemap.xml": f"{site.root}/listed",
    }
    first = crawl(site.root)
    site.answers.clear()
    site.n_body_bytes = 0
    crawl(site.root, previous=first)
    assert site.answers == {304: 3, 200: 2}
    assert site.n_body_bytes == len(site.routes["/sitemap.xml"])


def test_crawl_again_robots_header_that_is_lifted_is_heard_though_the_page_is_the_same(site, crawl):
    def answer(headers):
        if headers.get("If-None-Match") == '"1"':
            return 304, {"ETag": '"1"'}, b""
        return 200, {"ETag": '"1"', **rules}, page("/b")

    site.routes = {"/": page("/a"), "/a": answer, "/b": page()}
    rules = {"X-Robots-Tag": "noindex, nofollow"}
    first = crawl(site.root)
    rules_again = crawl(site.root, previous=first)
    assert {row["url"] for row in rules_again.to_dicts()} == {f"{site.root}/", f"{site.root}/a"}
    assert by_path(rules_again, site.root)["/a"]["drop_reason"] == "noindex"
    rules = {}
    lifted = by_path(crawl(site.root, previous=rules_again), site.root)
    assert lifted["/a"]["drop_reason"] is None and "/b" in lifted


def test_crawl_again_charset_of_the_header_is_kept(site, crawl):
    body = '<html><body><p>Зарядка <a href="/a">a</a></p></body></html>'.encode("cp1251")
    site.routes = {"/": (200, {"Content-Type": "text/html; charset=windows-1251"}, body), "/a": page()}
    assert by_path(crawl(site.root), site.root)["/"]["charset"] == "cp1251"


def test_crawl_pages_that_fail_by_themselves_do_not_close_their_host(site, crawl):
    site.routes = {"/": page(*(f"/bad{n}" for n in range(12)), "/good")} | {"/good": page()}
    site.routes |= {f"/bad{n}": (500, {}, b"broken") for n in range(12)}
    rows = by_path(crawl(site.root, concurrency=1), site.root)
    assert rows["/good"]["drop_reason"] is None and rows["/bad11"]["drop_reason"] == "http_500"


def test_crawl_again_nofollow_header_holds_while_the_page_fails(site, crawl):
    rules = {"X-Robots-Tag": "nofollow"}
    site.routes = {"/": page("/a"), "/a": (200, rules, page("/b")), "/b": page()}
    first = crawl(site.root)
    site.routes["/a"] = (500, {}, b"")
    assert set(by_path(crawl(site.root, previous=first), site.root)) == {"/", "/a"}
