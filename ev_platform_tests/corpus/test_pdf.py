import io
from contextlib import redirect_stdout

import pymupdf  # noqa: TID253 - these tests make PDFs; loading the graph is no concern here
import pytest

from ev_platform.corpus.extracted import UnusableError
from ev_platform.corpus.pdf import PdfFacts, join_pages, mend_words, open_pdf
from ev_platform.corpus.pdf_pages import Block, read_pages
from ev_platform_tests.corpus.files import PROSE, page, pdf

FACTS = PdfFacts(1, "Title", None, None, None, None, None)


@pytest.fixture
def facts_of(tmp_path):
    """Return a function that gives the properties of a PDF's bytes."""

    def facts_of(data):
        (tmp_path / "file.pdf").write_bytes(data)
        return open_pdf(tmp_path / "file.pdf", 100)

    return facts_of


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a PDF's bytes, in ranges of so many pages."""

    def read(data, pages_per_call=100, max_pages=100):
        path = tmp_path / "file.pdf"
        path.write_bytes(data)
        facts = open_pdf(path, max_pages)
        starts = range(0, facts.n_pages, pages_per_call)
        ranges = [read_pages(path, start, min(start + pages_per_call, facts.n_pages)) for start in starts]
        return join_pages(facts, [page for pages in ranges for page in pages])

    return read


def text(*lines, at=0.5, kind="text", size=0):
    return [Block(kind, size, at, at + 0.02, line) for line in lines]


# ---- pages ----


def test_pdf_has_an_offset_for_each_page_also_for_one_without_text(read):
    got = read(pdf(f"First page. {PROSE}", "", f"Third page. {PROSE}"))
    assert len(got.page_offsets) == 3
    assert got.text[got.page_offsets[0] :].startswith("First page")
    assert got.text[got.page_offsets[1] : got.page_offsets[2]].strip() == ""
    assert got.text[got.page_offsets[2] :].startswith("Third page")


def test_pdf_read_in_ranges_gives_the_text_of_a_pdf_read_whole(read, example_task):
    data = (example_task.folder / "pdfs" / "site-commissioning.pdf").read_bytes()
    whole = read(data)
    assert whole.text.startswith("# ") and "\n## " in whole.text and "|---|" in whole.text
    assert read(data, pages_per_call=1) == whole


def test_pdf_extraction_prints_nothing(read):
    printed = io.StringIO()
    with redirect_stdout(printed):
        read(pdf(PROSE))
    assert printed.getvalue() == ""


# ---- what pages decide together ----


def test_heading_levels_follow_the_sizes_of_the_whole_document():
    pages = [text("Small", kind="section-header", size=12), text("Large", kind="title", size=24)]
    assert join_pages(FACTS, pages).text == "## Small\n\n# Large"


def test_lines_at_the_edge_of_many_pages_are_removed_digits_ignored():
    pages = [
        [*text("Wallbox 3 manual", at=0.05), *text(f"Text {n}"), *text(f"Page {n} of 4", at=0.93)] for n in range(4)
    ]
    assert join_pages(FACTS, pages).text == "Text 0\n\nText 1\n\nText 2\n\nText 3"


def test_lines_on_every_left_page_are_removed():
    pages = [[*text("Charging" if n % 2 else "Safety", at=0.05), *text(f"Text {n}")] for n in range(6)]
    assert "Charging" not in join_pages(FACTS, pages).text and "Safety" not in join_pages(FACTS, pages).text


def test_lines_inside_a_page_or_on_few_pages_stay():
    pages = [[*text("Charging", at=0.05)] if n < 2 else text("Safety") for n in range(7)]
    assert join_pages(FACTS, pages).text.split() == ["Charging"] * 2 + ["Safety"] * 5


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("instal\u00adlation", "installation"),
        ("three\u00adphase and three-phase", "three-phase and three-phase"),
        ("over\u00adload, overload and over-load, overload", "overload, overload and over-load, overload"),
        ("a fault\u00adtolerant unit: fault, tolerant", "a fault-tolerant unit: fault, tolerant"),
        ("non\u00adtrivial", "nontrivial"),
    ],
)
def test_word_broken_at_a_line_end_keeps_its_hyphen_only_where_the_document_says_so(broken, whole):
    assert mend_words(broken) == whole


def test_broken_words_of_a_pdf_are_mended(read):
    lines = (
        "The instal-\nlation of a three-\nphase socket follows IEC 61851-\n1 and takes pre-\nand post-checks by a Wi-\n"
        "Fi link. A three-phase supply is needed for each of the sockets in the row."
    )
    got = read(pdf(lines)).text
    for word in ("installation of", "a three-phase socket", "IEC 61851-1 and", "pre- and post-checks", "Wi-Fi link"):
        assert word in got, got


# ---- properties ----


def test_title_author_and_dates_are_the_properties(read):
    metadata = {"title": "Cables  of 2024", "author": "A. Writer", "creationDate": "D:20240131120000+01'00'"}
    got = read(pdf(PROSE, metadata={**metadata, "modDate": "D:20240231"}))
    assert (got.title, got.author, got.published_on, got.modified_on) == (
        "Cables of 2024",
        "A. Writer",
        "2024-01-31",
        None,
    )


@pytest.mark.parametrize("title", ["Microsoft Word - cables.doc", "untitled", "cables_v2.indd", "Document1", "", "-"])
def test_title_that_a_program_has_left_gives_way_to_the_first_heading(facts_of, title):
    facts = facts_of(pdf(PROSE, metadata={"title": title}))
    pages = [text("May 2024", kind="title", size=30) + text("Cables and plugs", kind="title", size=20)]
    assert join_pages(facts, pages).title == "Cables and plugs"


XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:cc="http://creativecommons.org/ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/" {attribute}>{element}</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
CC = "https://creativecommons.org/licenses/by-sa/4.0/"
RIGHTS = '<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">All rights reserved</rdf:li></rdf:Alt></dc:rights>'


@pytest.mark.parametrize(
    ("attribute", "element", "licence"),
    [
        ("", f'<cc:license rdf:resource="{CC}"/>{RIGHTS}', "CC-BY-SA-4.0"),
        ("", f"<xmpRights:WebStatement>{CC}</xmpRights:WebStatement>", "CC-BY-SA-4.0"),
        (f'xmpRights:WebStatement="{CC}"', RIGHTS, "CC-BY-SA-4.0"),
        ("", RIGHTS, "All rights reserved"),
        ("", "", None),
        ("", "<broken", None),
    ],
)
def test_licence_is_the_one_that_the_xmp_packet_declares(facts_of, attribute, element, licence):
    assert facts_of(pdf(PROSE, xmp=XMP.format(attribute=attribute, element=element))).licence == licence


# ---- files that cannot be used ----


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
    "more pages than allowed": (lambda: pdf(*[PROSE] * 4), ("too_many_pages",)),
    "HTML": (lambda: page().encode(), ("broken_pdf",)),
    "words": (lambda: PROSE.encode(), ("broken_pdf",)),
    "header alone": (lambda: b"%PDF-1.7\n", ("broken_pdf",)),
}


@pytest.mark.parametrize(("make", "reasons"), UNUSABLE.values(), ids=UNUSABLE)
def test_pdf_that_cannot_be_used_is_refused_with_its_reason(read, make, reasons):
    with pytest.raises(UnusableError) as refused:
        read(make(), max_pages=3 if "too_many_pages" in reasons else 100)
    assert refused.value.reason in reasons
    assert refused.value.detail


def test_pdf_that_opens_without_a_password_is_read_although_it_is_encrypted(read):
    assert "strain relief" in read(pdf(PROSE, encryption=pymupdf.PDF_ENCRYPT_AES_256, owner_pw="owner")).text


def test_pdf_with_bytes_after_its_end_is_read(read):
    assert "strain relief" in read(pdf(PROSE) + b"\n" * 100).text
