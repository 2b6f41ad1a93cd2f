import io
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise

import polars as pl
import pymupdf  # noqa: TID253 - these tests make PDFs; loading the graph is no concern here
import pytest

from ev_platform.collect.bodies import blank_row
from ev_platform.corpus.extract import extract_documents, normalise
from ev_platform.records import to_frame
from ev_platform.tasks import Sources

PROSE = (
    "A charging cable that carries more than 32 A is checked once a year by an electrician. The check covers the "
    "plug, the contacts, the strain relief and the sheath. A cable with a damaged sheath is taken out of use. "
)
URL = "https://a.example/cables.html"


@pytest.fixture
def extract(store):
    """Return a function that stores bytes as fetched bodies, by kind, and gives the document of the last one."""

    def extract(data, kind="web", previous=None, **changes):
        sha, path = store.put_blob(data.encode() if isinstance(data, str) else data)
        body = replace(blank_row(URL, kind, Sources()), content_sha256=sha, path=path, **changes)
        return extract_documents(to_frame("raw_pages", [body]), store, previous)

    return extract


BODY = f"<h1>Cables</h1><p>{PROSE}</p><p>{PROSE.replace('cable', 'lead')}</p>"


def page(head="", body=BODY):
    return f'<!DOCTYPE html><html lang="en-GB"><head>{head}</head><body><main>{body}</main></body></html>'


def pdf(*texts, **saving):
    document = pymupdf.open()
    for text in texts:
        document.new_page().insert_textbox((72, 120, 500, 700), text)
    return document.tobytes(**saving)


# ---- text ----


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("e\u0301tage", "étage"),
        ("32\u00a0A\u2009at\t230\u202fV", "32 A at 230 V"),
        ("o\ufb03cial \ufb01xed \ufb02ow", "official fixed flow"),
        ("char\u00adging\u200b cab\u2060le\ufeff", "charging cable"),
        ("one\u2028two\u2029three", "one\ntwo\n\nthree"),
        ("one\r\ntwo\rthree\x0cfour\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("bell\x07 null\x00", "bell null"),
        ("  one  \n\n\n\n\ntwo \n", "one\n\ntwo"),
        ("10 kΩ, 5 µs, x²", "10 kΩ, 5 µs, x²"),
    ],
)
def test_normalise_leaves_plain_text(raw, clean):
    assert normalise(raw) == clean
    assert normalise(clean) == clean


# ---- HTML ----


def test_page_gives_its_text_without_menu_and_footer(extract):
    body = page().replace("<main>", '<nav><a href="/">Home page link</a></nav><main>')
    (row,) = extract(body.replace("</main>", "</main><footer>All rights reserved 2026</footer>")).iter_rows(named=True)
    assert row["drop_reason"] is None
    assert "damaged sheath" in row["text"] and row["text"].startswith("# Cables")
    assert "Home page link" not in row["text"] and "rights reserved" not in row["text"]
    assert row["n_chars"] == len(row["text"]) and row["page_offsets"] == []


def test_page_without_text_is_dropped_with_that_reason(extract):
    (row,) = extract(page(body='<img src="a.png">')).iter_rows(named=True)
    assert (row["drop_reason"], row["text"]) == ("no_text", "")


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ('<link rel="license" href="https://creativecommons.org/licenses/by-sa/3.0/">', "CC-BY-SA-3.0"),
        ('<link rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">', "CC0-1.0"),
        ('<link rel="license" href="/terms.html">', "/terms.html"),
        ("", "MIT"),
    ],
)
def test_licence_that_a_page_declares_beats_that_of_the_sources(extract, head, licence):
    assert extract(page(head), licence="MIT")["licence"].item() == licence


@pytest.mark.parametrize(
    ("href", "url"),
    [
        ("/cables/", "https://a.example/cables/"),
        ("https://a.example/c", "https://a.example/c"),
        ("https://seller.example/c", URL),
    ],
)
def test_canonical_address_is_believed_of_the_own_host_only(extract, href, url):
    (row,) = extract(page(f'<link rel="canonical" href="{href}">')).iter_rows(named=True)
    assert (row["url"], row["fetched_url"]) == (url, URL)


def test_document_id_depends_on_address_and_text_alone(extract):
    first = extract(page())["document_id"].item()
    assert extract(page("<meta name='generator' content='x'>"))["document_id"].item() == first
    assert extract(page(body=f"<p>{PROSE * 2}And more.</p>"))["document_id"].item() != first


def test_body_that_was_dropped_before_keeps_its_reason(extract):
    (row,) = extract(page(), drop_reason="http_404", drop_detail=None).iter_rows(named=True)
    assert (row["drop_reason"], row["text"]) == ("http_404", "")


def test_body_whose_extraction_fails_is_set_aside_and_the_others_go_on(extract, store, monkeypatch):
    import trafilatura

    def fail(*_, **__):
        raise RecursionError("too deep")

    monkeypatch.setattr(trafilatura, "extract", fail)
    (row,) = extract(page()).iter_rows(named=True)
    assert (row["drop_reason"], row["drop_detail"]) == ("extraction_failed", "RecursionError: too deep")


def test_known_body_is_not_extracted_again(extract, store):
    first = extract(page())
    for file in (store.root / "blobs").rglob("*"):
        if file.is_file():
            file.write_bytes(b"must not be read")
    body = replace(
        blank_row(URL, "web", Sources()), content_sha256=first["content_sha256"].item(), path="blobs/nowhere"
    )
    again = extract_documents(to_frame("raw_pages", [body]), store, first)
    assert again["text"].item() == first["text"].item()
    assert again["fetched_at"].item() == body.fetched_at


def test_publisher_is_what_the_page_declares_else_that_of_the_sources(extract):
    declared = '<meta property="og:site_name" content="Cable Guide">'
    assert extract(page(declared), publisher="A. Publisher")["publisher"].item() == "Cable Guide"
    assert extract(page(), publisher="A. Publisher")["publisher"].item() == "A. Publisher"


def test_known_body_keeps_the_licence_that_its_page_declares(extract):
    """Where the sources name neither licence nor publisher, the second run must give what the first gave."""
    licence = '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">'
    first = extract(page(licence))
    assert first.select("licence", "publisher").row(0) == ("CC-BY-4.0", "unknown")
    again = extract(page(licence), previous=first)
    assert again.select("licence", "publisher").row(0) == ("CC-BY-4.0", "unknown")
    named = extract(page(licence), previous=first, licence="MIT", publisher="A. Publisher")
    assert named.select("licence", "publisher").row(0) == ("CC-BY-4.0", "A. Publisher")


# ---- PDF ----


def test_pdf_has_an_offset_for_each_page(extract):
    (row,) = extract(pdf(*(f"Page {n} opens here. {PROSE}" for n in (1, 2, 3))), "pdf").iter_rows(named=True)
    for n, offset in enumerate(row["page_offsets"], 1):
        assert row["text"][offset:].startswith(f"Page {n} opens")
    assert len(row["page_offsets"]) == 3


def test_pdf_with_an_empty_page_in_the_middle_counts_it(extract):
    (row,) = extract(pdf(f"First. {PROSE}", "", f"Third. {PROSE}"), "pdf").iter_rows(named=True)
    assert len(row["page_offsets"]) == 3
    assert row["text"][row["page_offsets"][2] :].startswith("Third.")


def image_only():
    picture = pymupdf.Pixmap(pymupdf.csRGB, (0, 0, 80, 80))
    document = pymupdf.open()
    for _ in range(2):
        document.new_page().insert_image((72, 72, 300, 300), pixmap=picture)
    return document.tobytes()


def truncated(share):
    whole = pdf(*(f"Page {n} opens here. {PROSE * 4}" for n in range(1, 7)), deflate=True)
    return whole[: int(len(whole) * share)]


UNUSABLE = {
    "encrypted": (
        lambda: pdf(PROSE, encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="secret", owner_pw="owner"),
        ("encrypted_pdf",),
    ),
    "image only": (image_only, ("image_only_pdf",)),
    "truncated early": (lambda: truncated(0.3), ("truncated_pdf", "broken_pdf")),
    "truncated in the middle": (lambda: truncated(0.5), ("truncated_pdf", "broken_pdf")),
    "truncated late": (lambda: truncated(0.9), ("truncated_pdf", "broken_pdf")),
    "HTML": (lambda: page().encode(), ("broken_pdf",)),
    "words": (lambda: PROSE.encode(), ("broken_pdf",)),
    "header alone": (lambda: b"%PDF-1.7\n", ("broken_pdf",)),
}


@pytest.mark.parametrize(("make", "reasons"), UNUSABLE.values(), ids=UNUSABLE)
def test_pdf_that_cannot_be_used_is_dropped_with_its_reason(extract, make, reasons):
    (row,) = extract(make(), "pdf").iter_rows(named=True)
    assert row["drop_reason"] in reasons
    assert row["drop_detail"]
    assert (row["text"], row["page_offsets"], row["n_chars"]) == ("", [], 0)


def test_pdf_that_opens_without_a_password_is_read_although_it_is_encrypted(extract):
    (row,) = extract(pdf(PROSE, encryption=pymupdf.PDF_ENCRYPT_AES_256, owner_pw="owner"), "pdf").iter_rows(named=True)
    assert row["drop_reason"] is None and "strain relief" in row["text"]


def test_pdf_with_bytes_after_its_end_is_read(extract):
    (row,) = extract(pdf(PROSE) + b"\n" * 100, "pdf").iter_rows(named=True)
    assert row["drop_reason"] is None and "strain relief" in row["text"]


def test_pdf_extraction_prints_nothing(extract):
    printed = io.StringIO()
    with redirect_stdout(printed):
        extract(pdf(PROSE), "pdf")
    assert printed.getvalue() == ""


# ---- the example ----


def test_example_gives_one_document_for_each_body_and_loses_only_the_missing_page(example_bodies, example_documents):
    assert sorted(example_documents["fetched_url"]) == sorted(example_bodies["url"])
    dropped = example_documents.filter(pl.col("drop_reason").is_not_null())
    assert dropped.select("fetched_url", "drop_reason").rows() == [
        ("https://plugfield.example/old-network-map.html", "http_404")
    ]


def test_example_extracted_again_is_equal(example_bodies, example_documents, example_store):
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
