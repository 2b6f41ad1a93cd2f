import gzip
import logging

import pytest

from ev_platform.collect import sitemap

from .conftest import by_path, page

SPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*addresses, head=""):
    entries = "".join(f"<url><loc> {address} </loc><lastmod>2026-01-01</lastmod></url>" for address in addresses)
    return f'<?xml version="1.0" encoding="UTF-8"?>{head}<urlset {SPACE}>{entries}</urlset>'


def index(*addresses):
    entries = "".join(f"<sitemap><loc>{address}</loc></sitemap>" for address in addresses)
    return f"<sitemapindex {SPACE}>{entries}</sitemapindex>"


def test_crawl_sitemap_pages_are_of_depth_one_and_come_after_links(site, crawl):
    site.routes = {
        "/": page("/linked"),
        "/linked": page(),
        "/listed": page("/behind"),
        "/behind": page(),
        "/sitemap.xml": urlset(f"{site.root}/linked", f"{site.root}/listed", "https://elsewhere.example/", "/p.png"),
    }
    rows = by_path(crawl(site.root), site.root)
    assert {
        path: (row["depth"], row["referrer"].removeprefix(site.root)) for path, row in rows.items() if path != "/"
    } == {
        "/linked": (1, "/"),
        "/listed": (1, "/sitemap.xml"),
        "/behind": (2, "/listed"),
    }
    assert set(by_path(crawl(site.root, sitemaps=False), site.root)) == {"/", "/linked"}
    site.requests.clear()
    crawl(site.root, max_depth=0)
    assert "/sitemap.xml" not in [path for path, _, _ in site.requests]


def test_crawl_sitemaps_named_in_robots_index_gzip_and_text_read(site, crawl):
    site.routes = {
        "/robots.txt": f"Sitemap: {site.root}/maps/index.xml\nSitemap: /list.txt\nUser-agent: *\nDisallow: /maps/no\n",
        "/maps/index.xml": index(
            f"{site.root}/maps/a.xml.gz", f"{site.root}/maps/no.xml", f"{site.root}/maps/index.xml"
        ),
        "/maps/a.xml.gz": (200, {"Content-Type": "application/gzip"}, gzip.compress(urlset(f"{site.root}/a").encode())),
        "/list.txt": f"\ufeff{site.root}/b\r\nnot an address\n{site.root}/c?utm_source=map\n",
        "/": page(),
        **{path: page() for path in ("/a", "/b", "/c")},
    }
    rows = by_path(crawl(site.root), site.root)
    assert {path: row["referrer"] for path, row in rows.items()} == {
        "/": None,
        "/a": f"{site.root}/maps/a.xml.gz",
        "/b": f"{site.root}/list.txt",
        "/c": f"{site.root}/list.txt",
    }
    assert "/sitemap.xml" not in [path for path, _, _ in site.requests]
    assert "/maps/no.xml" not in site.asked()
    assert site.asked().count("/maps/index.xml") == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (urlset("/a").replace("</url>", "</ur>"), "Opening and ending tag mismatch"),
        (gzip.compress(b"<urlset>" + b" " * 3_000_000), "unpacks to more than 1000000 bytes"),
        (gzip.compress(urlset("/a").encode())[:-30] + b"\xff" * 30, "broken gzip"),
        (page(), "the document is <html>"),
        ("\n".join(f"http://127.0.0.1/{n}" for n in range(300)), "more than 200 entries"),
        (b"http://127.0.0.1/\xff", "codec can't decode"),
    ],
    # named, because gzip writes the second into its header and pytest-xdist wants one id in all workers
    ids=["broken_xml", "too_large", "broken_gzip", "html", "too_many", "not_utf8"],
)
def test_crawl_sitemap_that_fails_is_a_line_in_the_log_and_no_row(site, crawl, caplog, monkeypatch, body, why):
    monkeypatch.setattr(sitemap, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(sitemap, "MAX_ADDRESSES", 200)
    site.routes = {"/": page("/b"), "/b": page(), "/robots.txt": "Sitemap: /map", "/map": body}
    rows = by_path(crawl(site.root, allowed_hosts=[site.root.removeprefix("http://")]), site.root)
    assert set(rows) == {"/", "/b"}
    (record,) = [record for record in caplog.records if record.name == "ev_platform.collect.sitemap"]
    assert record.levelno == logging.WARNING
    assert f"{site.root}/map: not read to its end: " in record.getMessage()
    assert why in record.getMessage()


def test_crawl_sitemap_entities_stay_closed(site, crawl, tmp_path):
    (tmp_path / "secret").write_text("secret")
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    head = f'<!DOCTYPE u [<!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}"><!ENTITY l0 "ha">{laughs}]>'
    site.routes = {
        "/": page(),
        "/a": page(),
        "/sitemap.xml": urlset(f"{site.root}/&x;", f"{site.root}/a", f"{site.root}/&l11;", head=head),
    }
    assert set(by_path(crawl(site.root), site.root)) == {"/", "/a"}


def test_crawl_sitemap_indexes_without_end_are_bounded(site, crawl, monkeypatch, caplog):
    monkeypatch.setattr(sitemap, "MAX_SITEMAPS", 5)
    asked = []

    def nested(headers):
        asked.append(1)
        return index(*(f"{site.root}/map{len(asked)}-{n}.xml" for n in range(9)))

    site.routes = {"/": page(), "/sitemap.xml": nested}
    site.routes |= {f"/map{n}-{m}.xml": nested for n in range(20) for m in range(9)}
    assert set(by_path(crawl(site.root), site.root)) == {"/"}
    assert len(asked) == 5
    assert "5 sitemaps are the limit" in caplog.text


def test_crawl_sitemap_of_another_root_or_of_many_elements_is_harmless(site, crawl):
    many = urlset("/a").replace("</urlset>", "<x/>" * 200_000 + "</urlset>")
    site.routes = {"/": page(), "/a": page(), "/robots.txt": "Sitemap: /one\nSitemap: /two", "/two": many}
    site.routes["/one"] = "<!-- x --><url><loc>/b</loc></url>"
    assert set(by_path(crawl(site.root), site.root)) == {"/", "/a"}
