import gzip
import logging
import socket
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from ev_platform.collect import collect_pages
from ev_platform.collect.site import serve_folder
from ev_platform.errors import UserError
from ev_platform.identity import frame_fingerprint
from ev_platform.records import RawBody, schema_of, to_frame
from ev_platform.tasks import get_task
from ev_platform_tests.ports import free_port

from .conftest import AGENT, PDF, by_path, page

EV_WEB = Path(__file__).parents[2].parent / "shared" / "data" / "ev_web"


# ---- links ----


def test_crawl_links_followed_to_max_depth(site, crawl):
    site.routes = {"/": page("a.html"), "/a.html": page("b.html"), "/b.html": page("c.html"), "/c.html": page()}
    rows = by_path(crawl(site.root, max_depth=2), site.root)
    assert {path: (row["depth"], row["referrer"]) for path, row in rows.items()} == {
        "/": (0, None),
        "/a.html": (1, f"{site.root}/"),
        "/b.html": (2, f"{site.root}/a.html"),
    }
    assert "/c.html" not in site.asked()


def test_crawl_links_duplicates_fragments_and_assets_each_page_asked_once(site, crawl):
    hrefs = ["/a?y=2&x=1", "/a?x=1&y=2", "/a?y=2&x=1#part", "/s.css", "/p.PNG", "mailto:a@b.c", "javascript:f()", "/"]
    site.routes = {"/": page(*hrefs), "/a?y=2&x=1": page("/", "http://[broken/", "http://u:p@127.0.0.1/")}
    crawl(site.root)
    assert site.asked() == ["/", "/a?y=2&x=1"]


def test_crawl_links_resolved_against_base_element(site, crawl):
    site.routes = {"/": page("x.html", head='<base href="/deep/er/">'), "/deep/er/x.html": page()}
    assert by_path(crawl(site.root), site.root)["/deep/er/x.html"]["status"] == 200


def test_crawl_max_pages_stops_and_says_so(site, crawl, caplog):
    site.routes = {"/": page(*(f"/{n}" for n in range(9)))}
    with caplog.at_level(logging.WARNING):
        rows = crawl(site.root, max_pages=4)
    assert rows.height == 4
    assert "max_pages is 4; 6 more are left out" in caplog.text


def test_crawl_other_host_only_when_allowed(site, other_site, crawl):
    site.routes = {"/": page(f"{other_site.root}/far.html")}
    other_site.routes = {"/far.html": page()}
    assert crawl(site.root)["url"].to_list() == [f"{site.root}/"]
    assert other_site.requests == []
    both = [url.removeprefix("http://") for url in (site.root, other_site.root)]
    assert f"{other_site.root}/far.html" in crawl(site.root, allowed_hosts=both)["url"].to_list()


def test_crawl_rows_are_sorted_typed_and_carry_sources_licence(site, crawl):
    site.routes = {"/": page("z", "b", "m"), "/z": page(), "/b": page(), "/m": page()}
    frame = crawl(site.root, licence="CC-BY-4.0", publisher="Somebody")
    assert frame.schema == schema_of("raw_pages")
    assert frame["url"].to_list() == sorted(frame["url"].to_list())
    assert set(frame["licence"]) == {"CC-BY-4.0"}
    assert set(frame["publisher"]) == {"Somebody"}


def test_crawl_no_seeds_gives_empty_table(crawl):
    assert crawl().equals(to_frame("raw_pages", []))


# ---- manners ----


def test_crawl_robots_disallowed_page_recorded_and_not_asked(site, crawl):
    site.routes = {
        "/robots.txt": f"User-agent: *\nDisallow: /\n\nUser-agent: {AGENT.split('/')[0]}\nDisallow: /internal/\n",
        "/": page("/internal/x.html", "/open.html"),
        "/open.html": (302, {"Location": "/internal/y.html"}, ""),
    }
    rows = by_path(crawl(site.root), site.root)
    assert rows["/internal/x.html"]["drop_reason"] == "robots_disallowed"
    assert (rows["/open.html"]["drop_reason"], rows["/open.html"]["final_url"]) == (
        "robots_disallowed",
        f"{site.root}/internal/y.html",
    )
    assert site.asked() == ["/", "/open.html"]
    assert "/internal/x.html" in by_path(crawl(site.root, obey_robots=False), site.root)
    assert "/internal/x.html" in site.asked()


def test_crawl_robots_crawl_delay_spaces_requests(site, crawl):
    site.routes = {
        "/robots.txt": "User-agent: *\nCrawl-delay: 0.3\n",
        "/": page("/a", "/b"),
        "/a": page(),
        "/b": page(),
    }
    crawl(site.root, delay_s=0.01)
    times = [moment for path, _, moment in site.requests if path != "/robots.txt"]
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.25


def test_crawl_robots_failing_fetches_nothing(site, crawl):
    site.routes = {"/robots.txt": (500, {}, ""), "/": page()}
    with pytest.raises(UserError, match=r"answers HTTP status 500 \(robots.txt\)"):
        crawl(site.root)
    assert site.asked() == []


def test_crawl_request_carries_own_user_agent_and_no_browser_disguise(site, crawl):
    site.routes = {"/": (200, {"Set-Cookie": "id=1"}, page("/a")), "/a": page()}
    crawl(site.root)
    assert {headers["user-agent"] for _, headers, _ in site.requests} == {AGENT}
    assert not any({"referer", "cookie", "sec-ch-ua"} & headers.keys() for _, headers, _ in site.requests)


def test_crawl_busy_server_asked_again_after_retry_after(site, crawl):
    answers = [(503, {"Retry-After": "1"}, ""), (429, {"Retry-After": formatdate(0, usegmt=True)}, "")]
    site.routes = {"/": page("/a"), "/a": lambda headers: answers.pop(0) if answers else page()}
    assert by_path(crawl(site.root), site.root)["/a"]["status"] == 200
    times = [moment for path, _, moment in site.requests if path == "/a"]
    assert times[1] - times[0] >= 1.0
    assert times[2] - times[1] < 0.5


# ---- redirects ----


def test_crawl_redirect_in_site_followed_and_links_count_from_there(site, crawl):
    site.routes = {
        "/": page("/old"),
        "/old": (301, {"Location": "/new/page.html"}, ""),
        "/new/page.html": page("next.html"),
        "/new/next.html": page(),
    }
    rows = by_path(crawl(site.root), site.root)
    assert (rows["/old"]["status"], rows["/old"]["final_url"]) == (200, f"{site.root}/new/page.html")
    assert rows["/new/next.html"]["referrer"] == f"{site.root}/old"


def test_crawl_redirect_off_site_refused(site, other_site, crawl):
    target = f"{other_site.root}/secret"
    site.routes = {
        "/": page("/out", "/file"),
        "/out": (302, {"Location": target}, ""),
        "/file": (302, {"Location": "file:///etc/passwd"}, ""),
    }
    rows = by_path(crawl(site.root), site.root)
    assert (rows["/out"]["drop_reason"], rows["/out"]["drop_detail"]) == ("redirect_off_site", target)
    assert (rows["/file"]["drop_reason"], rows["/file"]["status"]) == ("redirect_off_site", 302)
    assert other_site.requests == []


def test_crawl_redirect_loop_ends(site, crawl):
    site.routes = {"/": page("/loop"), "/loop": (302, {"Location": "/loop"}, "")}
    assert by_path(crawl(site.root), site.root)["/loop"]["drop_reason"] == "too_many_redirects"
    assert site.asked().count("/loop") == 11


# ---- bad pages are rows ----


def test_crawl_bad_pages_are_rows_with_their_reason(site, crawl):
    bodies = {
        "/missing": None,
        "/gone": (410, {}, "gone"),
        "/empty": b"",
        "/large": b"<html>" + b"x" * 30_000_000,
        "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"<html>" + b"x" * 2_000_000)),
        "/image": b"\x89PNG\r\n\x1a\n\x00\x00",
        "/data": b'{"html": "<p>"}',
        "/charset": (200, {"Content-Type": "text/html; charset=no-such-thing"}, page()),
        "/latin": b"<html><body>caf\xe9 \xff\xfe \x81<a href='/behind-latin'>x</a></body></html>",
        "/blank": b"<html>",
        "/unasked": (304, {}, b""),
        "/page.pdf": page("/from-pdf"),
        "/paper": (200, {"Content-Type": "text/html"}, PDF),
    }
    site.routes = {"/": page(*bodies), **{path: body for path, body in bodies.items() if body is not None}}
    rows = by_path(crawl(site.root, max_bytes=100_000), site.root)
    reasons = {path: (row["status"], row["drop_reason"], row["drop_detail"], row["kind"]) for path, row in rows.items()}
    assert reasons == {
        "/": (200, None, None, "web"),
        "/missing": (404, "http_404", None, "web"),
        "/gone": (410, "http_410", None, "web"),
        "/empty": (200, "empty_body", None, "web"),
        "/large": (200, "too_large", "more than 100000 bytes", "web"),
        "/bomb": (200, "too_large", "more than 100000 bytes", "web"),
        "/image": (200, "unsupported_type", "image/png", "web"),
        "/data": (200, "unsupported_type", "application/json", "web"),
        "/charset": (200, None, None, "web"),
        "/latin": (200, None, None, "web"),
        "/behind-latin": (404, "http_404", None, "web"),
        "/blank": (200, None, None, "web"),
        "/unasked": (304, "http_304", None, "web"),
        "/page.pdf": (200, None, None, "web"),
        "/from-pdf": (404, "http_404", None, "web"),
        "/paper": (200, None, None, "pdf"),
    }
    assert site.n_body_bytes < 15_000_000  # the large body was not read to its end


def test_crawl_stored_bytes_are_those_served(site, crawl, store):
    body = b"<html><body>caf\xe9 \xff\x00\x81</body></html>"
    site.routes = {"/": body}
    row = by_path(crawl(site.root), site.root)["/"]
    assert (store.root / row["path"]).read_bytes() == body
    assert row["n_bytes"] == len(body)


def test_crawl_slow_page_times_out_and_others_arrive(site, crawl):
    def slow(headers):
        time.sleep(0.8)
        return page()

    site.routes = {"/": page("/slow", "/quick"), "/slow": slow, "/quick": page()}
    rows = by_path(crawl(site.root, timeout_s=0.3), site.root)
    assert (rows["/slow"]["drop_reason"], rows["/slow"]["drop_detail"]) == (
        "timeout",
        "no complete answer within 0.3 s",
    )
    assert rows["/quick"]["status"] == 200


def test_crawl_dead_linked_host_is_a_row_that_stays_the_same(site, crawl):
    dead = f"127.0.0.1:{free_port()}"
    site.routes = {"/": page(f"http://{dead}/x")}
    hosts = [site.root.removeprefix("http://"), dead]
    first = crawl(site.root, allowed_hosts=hosts)
    row = first.row(by_predicate=pl.col("url") == f"http://{dead}/x", named=True)
    assert (row["drop_reason"], row["drop_detail"], row["status"]) == (
        "unreachable",
        "robots.txt: COULDNT_CONNECT",
        None,
    )
    second = crawl(site.root, allowed_hosts=hosts, previous=first)
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)


def test_crawl_name_that_leads_to_loopback_refused(site, crawl, monkeypatch):
    port = site.root.rsplit(":", 1)[1]
    resolve = socket.getaddrinfo

    def poisoned(host, *args, **kwargs):
        return resolve("127.0.0.1" if host == "public.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", poisoned)
    site.routes = {"/": page(f"http://public.example:{port}/metadata")}
    hosts = ["127.0.0.1", "public.example"]
    row = crawl(site.root, allowed_hosts=["localhost", f"127.0.0.1:{port}", "public.example"]).row(0, named=True)
    assert row["drop_reason"] is None  # the seed, an address that the user spelled out
    frame = crawl(f"http://localhost:{port}/", allowed_hosts=["localhost", "public.example"])
    refused = frame.row(by_predicate=pl.col("url").str.contains("metadata"), named=True)
    assert (refused["drop_reason"], refused["drop_detail"]) == (
        "private_address",
        "public.example resolves to 127.0.0.1",
    )
    # With the address itself listed the user has said so; the name then fails by itself, as it does not exist.
    frame = crawl(site.root, allowed_hosts=hosts)
    assert (
        frame.row(by_predicate=pl.col("url").str.contains("metadata"), named=True)["drop_reason"] != "private_address"
    )


# ---- seeds must answer ----


def test_crawl_unreachable_seed_named(crawl):
    seed = f"http://127.0.0.1:{free_port()}/start"
    with pytest.raises(UserError, match=f"The seed {seed} cannot be fetched .unreachable: .*COULDNT_CONNECT"):
        crawl(seed)


def test_crawl_unknown_host_seed_named(crawl):
    with pytest.raises(UserError, match=r"The seed http://no-such-host.invalid/ cannot be fetched"):
        crawl("http://no-such-host.invalid/", obey_robots=False)


def test_crawl_missing_seed_named_with_status(site, crawl):
    with pytest.raises(UserError, match=f"The seed {site.root}/nowhere answers HTTP status 404"):
        crawl(f"{site.root}/nowhere")


def test_crawl_seed_outside_allowed_hosts_named(site, crawl):
    with pytest.raises(UserError, match=f"the seed {site.root}/ is not on an allowed host: add 127.0.0.1:"):
        crawl(site.root, allowed_hosts=["somewhere.example"])


# ---- mirrors ----


def test_crawl_mirror_keeps_own_addresses(tmp_path, crawl):
    folder = tmp_path / "task"
    (folder / "site" / "docs").mkdir(parents=True)
    (folder / "papers").mkdir()
    (folder / "site" / "index.html").write_text(page("/docs", "/papers/p.pdf", "https://a.example/end.html"))
    (folder / "site" / "docs" / "index.html").write_text(page("more.html"))
    (folder / "site" / "docs" / "more.html").write_text(page())
    (folder / "site" / "end.html").write_text(page())
    (folder / "papers" / "p.pdf").write_bytes(PDF)
    mirrors = [
        {"base_url": "https://a.example/", "folder": "site"},
        {"base_url": "https://a.example/papers/", "folder": "papers"},
    ]
    first = crawl("https://a.example", mirrors=mirrors)
    rows = by_path(first, "https://a.example")
    assert {path: (row["final_url"].removeprefix("https://a.example"), row["kind"]) for path, row in rows.items()} == {
        "/": ("/", "web"),
        "/docs": ("/docs/", "web"),  # the server's redirect, in the site's own terms
        "/docs/more.html": ("/docs/more.html", "web"),
        "/end.html": ("/end.html", "web"),
        "/papers/p.pdf": ("/papers/p.pdf", "pdf"),
    }
    second = crawl("https://a.example", mirrors=mirrors, previous=first)
    assert frame_fingerprint("raw_pages", first) == frame_fingerprint("raw_pages", second)


def test_crawl_mirror_reached_past_a_proxy_of_the_environment(tmp_path, crawl, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    (tmp_path / "task" / "site").mkdir(parents=True)
    (tmp_path / "task" / "site" / "index.html").write_text(page())
    rows = crawl("http://a.example", mirrors=[{"base_url": "http://a.example/", "folder": "site"}])
    assert rows["status"].to_list() == [200]


def test_crawl_mirror_folder_missing_named(crawl):
    with pytest.raises(UserError, match=r"names the folder .*nowhere, which does not exist"):
        crawl("https://a.example", mirrors=[{"base_url": "https://a.example/", "folder": "nowhere"}])


def test_crawl_example_reaches_every_page_and_pdf(store, tmp_path):
    task = get_task("ev_charging", tmp_path)
    frame = collect_pages(task, store, previous=to_frame("raw_pages", []), user_agent=AGENT)
    rows = by_path(frame, "https://plugfield.example/")
    pages = {file.name for file in (task.folder / "site").glob("*.html")}
    papers = {f"pdfs/{file.name}" for file in (task.folder / "pdfs").glob("*.pdf")}
    assert {path for path, row in rows.items() if row["drop_reason"] is None} == {"", *pages, *papers}
    dropped = {path: row["drop_reason"] for path, row in rows.items() if row["drop_reason"]}
    assert dropped == {"old-network-map.html": "http_404"}


# ---- real pages ----


@pytest.mark.real_data
@pytest.mark.skipif(not EV_WEB.is_dir(), reason="the real pages do not lie beside this checkout")
def test_crawl_real_pages_every_page_of_the_manifest_is_a_row_with_its_bytes(make_task, store):
    manifest = pl.read_csv(EV_WEB / "manifest.csv", columns=["file", "bytes"])
    # A folder with an index.html is not listed, so its pages are seeds themselves. The real pages link to hundreds of
    # paths of their own sites that do not lie here; they come back as 404 rows beside the pages.
    unlisted = [file for file in manifest["file"] if (EV_WEB / file).with_name("index.html").exists()]
    with serve_folder(EV_WEB) as root:
        task = make_task(seeds=[root, *(root + file for file in unlisted)], max_depth=2, max_pages=2000)
        frame = collect_pages(task, store, previous=to_frame("raw_pages", []), user_agent=AGENT)
    rows = {row["url"].removeprefix(root): RawBody(**row) for row in frame.iter_rows(named=True)}
    sizes = {file: rows[file].n_bytes for file in manifest["file"]}
    assert sizes == dict(manifest.iter_rows())
    refused = {file: rows[file].drop_detail for file in manifest["file"] if rows[file].drop_reason}
    assert refused == {
        "bornexa_be/privacy.html": "meta robots: noindex",
        "solaranlage_berger_de/datenschutz.html": "meta robots: noindex",
    }
