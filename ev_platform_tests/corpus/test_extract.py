from itertools import pairwise

import polars as pl
import pymupdf  # noqa: TID253 - these tests read PDFs; loading the graph is no concern here
import pytest

from ev_platform.corpus.extract import extract_documents
from ev_platform.corpus.extracted import normalise
from ev_platform_tests.corpus.files import PROSE, URL, bodies_of, page, pdf


@pytest.fixture
def extract(store):
    """Return a function that stores bytes as a fetched body and gives its document."""

    def extract(data, previous=None, url=URL, **changes):
        return extract_documents(bodies_of(store, (url, data), **changes), store, previous)

    return extract


@pytest.fixture
def no_worker(monkeypatch):
    """Return a function after whose call no file can be read any more."""
    return lambda: monkeypatch.setattr("pebble.ProcessPool.schedule", lambda *_, **__: pytest.fail("a file was read"))


# ---- rows ----


def test_rows_do_not_depend_on_the_number_of_workers_nor_on_who_is_done_first(store):
    files = [(f"https://a.example/{n}.html", page(body=f"<p>{n}. {PROSE * (40 - n)}</p>")) for n in range(12)]
    files += [("https://a.example/b.pdf", pdf(PROSE, PROSE)), ("https://a.example/a.pdf", b"no PDF")]
    bodies = bodies_of(store, *files)
    one = extract_documents(bodies, store, workers=1)
    assert one["fetched_url"].to_list() == sorted(url for url, _ in files)
    assert one.filter(pl.col("drop_reason").is_not_null())["fetched_url"].to_list() == ["https://a.example/a.pdf"]
    assert extract_documents(bodies.reverse(), store, workers=2).equals(one)


def test_document_id_depends_on_address_and_text_alone(extract):
    first = extract(page())["document_id"].item()
    assert extract(page("<meta name='generator' content='x'>"))["document_id"].item() == first
    assert extract(page(body=f"<p>{PROSE * 2}And more.</p>"))["document_id"].item() != first


def test_canonical_address_is_the_documents(extract):
    (row,) = extract(page('<link rel="canonical" href="/cables/">')).iter_rows(named=True)
    assert (row["url"], row["fetched_url"]) == ("https://a.example/cables/", URL)


def test_licence_and_publisher_are_declared_or_else_those_of_the_sources(extract):
    head = (
        '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">'
        '<meta property="og:site_name" content="Cable Guide">'
    )
    sources = {"licence": "MIT", "publisher": "A. Publisher"}
    assert extract(page(head), **sources).select("licence", "publisher").row(0) == ("CC-BY-4.0", "Cable Guide")
    assert extract(page(), **sources).select("licence", "publisher").row(0) == ("MIT", "A. Publisher")


def test_body_that_was_dropped_before_keeps_its_reason_and_is_not_read(extract, no_worker):
    no_worker()
    (row,) = extract(page(), drop_reason="http_404", drop_detail=None).iter_rows(named=True)
    assert (row["drop_reason"], row["text"]) == ("http_404", "")


def test_body_that_cannot_be_read_is_set_aside_and_the_others_go_on(store):
    bodies = bodies_of(store, (URL, page()), ("https://a.example/gone.html", page(body=PROSE * 3)))
    gone = bodies.filter(pl.col("url") != URL)["path"].item()
    (store.root / gone).unlink()
    documents = extract_documents(bodies, store)
    assert documents["drop_reason"].to_list() == [None, "extraction_failed"]
    assert documents["drop_detail"][1].startswith("FileNotFoundError: ")


def test_body_that_takes_too_long_is_set_aside_with_the_limit(store):
    bodies = bodies_of(store, (URL, page(body=f"<p>{PROSE}</p>" * 60_000)))
    (row,) = extract_documents(bodies, store, timeout_s=0.5).iter_rows(named=True)
    assert (row["drop_reason"], row["drop_detail"]) == ("extraction_timeout", "not done after 0.5 s")


def test_body_that_took_too_long_is_tried_again(extract):
    slow = extract(page()).with_columns(drop_reason=pl.lit("extraction_timeout"), text=pl.lit(""))
    assert "damaged sheath" in extract(page(), slow)["text"].item()


def test_pdf_longer_than_allowed_is_set_aside_with_its_length(store):
    bodies = bodies_of(store, ("https://a.example/long.pdf", pdf(*[PROSE] * 4)))
    (row,) = extract_documents(bodies, store, max_pdf_pages=3).iter_rows(named=True)
    assert (row["drop_reason"], row["drop_detail"]) == ("too_many_pages", "4 pages, 3 are allowed")
    assert (row["text"], row["page_offsets"], row["n_chars"]) == ("", [], 0)


def test_personal_data_is_masked_and_the_offsets_of_pages_stay_true(extract):
    texts = [f"Page {n} opens here. Write to someone.{n}@grid.com. {PROSE}" for n in (1, 2, 3)]
    (row,) = extract(pdf(*texts), url="https://a.example/a.pdf").iter_rows(named=True)
    assert row["n_masked"] == 3 and "someone" not in row["text"]
    for n, offset in enumerate(row["page_offsets"], 1):
        assert row["text"][offset:].startswith(f"Page {n} opens here. Write to [email]")
    assert row["n_chars"] == len(row["text"]) and row["language"] == "en"


# ---- a second run ----


def test_known_body_is_not_read_again(extract, no_worker):
    first = extract(page())
    no_worker()
    again = extract(page(), first)
    assert again["text"].item() == first["text"].item()
    assert again["fetched_at"].item() >= first["fetched_at"].item()


@pytest.mark.parametrize("reason", ["gone", "noindex"])
def test_known_body_that_is_gone_gives_no_text_and_gives_it_again_when_it_is_back(extract, reason):
    first = extract(page())
    away = extract(page(), first, drop_reason=reason, drop_detail="since then")
    assert away.select("text", "drop_reason", "drop_detail").row(0) == ("", reason, "since then")
    assert extract(page(), away)["text"].item() == first["text"].item() != ""


def test_known_body_keeps_the_licence_that_its_page_declares(extract):
    """Where the sources name neither licence nor publisher, the second run must give what the first gave."""
    licence = '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">'
    first = extract(page(licence))
    assert first.select("licence", "publisher").row(0) == ("CC-BY-4.0", "unknown")
    again = extract(page(licence), first)
    assert again.select("licence", "publisher").row(0) == ("CC-BY-4.0", "unknown")
    named = extract(page(licence), first, licence="MIT", publisher="A. Publisher")
    assert named.select("licence", "publisher").row(0) == ("CC-BY-4.0", "A. Publisher")


# ---- the example ----


def test_example_gives_one_document_for_each_body_and_loses_only_the_missing_page(example_bodies, example_documents):
    assert sorted(example_documents["fetched_url"]) == sorted(example_bodies["url"])
    dropped = example_documents.filter(pl.col("drop_reason").is_not_null())
    assert dropped.select("fetched_url", "drop_reason").rows() == [
        ("https://plugfield.example/old-network-map.html", "http_404")
    ]


def test_example_extracted_again_is_equal_and_reads_nothing(
    example_bodies, example_documents, example_store, no_worker
):
    no_worker()
    assert extract_documents(example_bodies, example_store, example_documents).equals(example_documents)


def test_example_pages_lose_menus_banners_and_footers(example_documents):
    pages = example_documents.filter((pl.col("kind") == "web") & pl.col("drop_reason").is_null())
    for row in pages.iter_rows(named=True):
        for boilerplate in ("We use one cookie", "addEventListener"):
            assert boilerplate not in row["text"], row["url"]
        assert row["licence"] == "CC-BY-4.0" and row["title"], row["url"]


@pytest.fixture
def example_pdfs(example_documents):
    return list(example_documents.filter(pl.col("kind") == "pdf").iter_rows(named=True))


def test_example_pdfs_begin_each_page_where_the_file_begins_it(example_pdfs, example_task):
    assert len(example_pdfs) == 3
    for row in example_pdfs:
        with pymupdf.open(example_task.folder / "pdfs" / row["url"].rsplit("/", 1)[1]) as document:
            assert len(row["page_offsets"]) == document.page_count
            # A word that one page alone holds, in the file, stands within that page's span of the text.
            words = [set(normalise(page.get_text()).split()) for page in document]
        ends = [*row["page_offsets"][1:], len(row["text"])]
        for number, (start, end) in enumerate(zip(row["page_offsets"], ends, strict=True)):
            others = set().union(*(w for n, w in enumerate(words) if n != number))
            own = {w for w in words[number] - others if w.isalpha() and len(w) > 5}
            found = {w for w in own if w in row["text"][start:end]}
            assert len(own) > 20 and len(found) > 0.9 * len(own), (row["url"], number + 1, own - found)


def test_example_pdfs_have_no_running_headers_footers_or_ligatures(example_pdfs, example_task):
    for row in example_pdfs:
        source = (example_task.folder / "pdfs" / row["url"].rsplit("/", 1)[1]).with_suffix(".md").read_text()
        facts = dict(line.split(": ", 1) for line in source.split("\n\n")[0].splitlines())
        lines = [line.strip() for line in row["text"].splitlines()]
        assert facts["code"] not in lines and facts["header"] not in lines
        assert "Page 2 of" not in row["text"] and "Plugfield Charging, CC BY 4.0" not in row["text"]
        assert not {c for c in row["text"] if "\ufb00" <= c <= "\ufb06"}
        assert sum(row["text"].count(word) for word in ("first", "five", "fit", "find", "off", "fix")) > 5
        assert (row["title"], row["published_on"]) == (facts["title"], facts["created"])


def test_example_pdfs_keep_their_headings_in_order(example_pdfs, example_task):
    for row in example_pdfs:
        source = (example_task.folder / "pdfs" / row["url"].rsplit("/", 1)[1]).with_suffix(".md").read_text()
        headings = [line.removeprefix("## ") for line in source.splitlines() if line.startswith("## ")]
        places = [row["text"].find(heading) for heading in headings]
        assert len(headings) > 5 and -1 not in places, row["url"]
        assert all(a < b for a, b in pairwise(places)), row["url"]


def test_half_a_character_in_metadata_is_replaced_and_the_title_is_masked(extract):
    licence = '<script type="application/ld+json">{"@type": "Article", "license": "x \\ud83d y"}</script>'
    body = f"<h1>Ask jane.doe@acme.com on cables</h1><p>{PROSE * 2}</p>"
    (row,) = extract(page(licence, body)).iter_rows(named=True)
    assert row["licence"] == "x ? y"
    assert row["title"] == "Ask [email] on cables" and row["n_masked"] == 2


def test_body_that_could_not_be_read_is_read_again(extract, store):
    first = extract(page())
    blob = store.root / "blobs"
    blob.rename(store.root / "away")
    bodies = bodies_of(store, (URL, page()))
    (store.root / bodies["path"].item()).unlink()
    failed = extract_documents(bodies, store)
    assert failed["drop_reason"].item() == "extraction_failed"
    assert extract(page(), failed)["text"].item() == first["text"].item()
