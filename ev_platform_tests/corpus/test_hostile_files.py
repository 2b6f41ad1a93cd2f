"""Files made to hurt: each ends as text or with a recorded reason within its limit, and its neighbours are unharmed."""

import time
import zlib

from ev_platform.corpus.extract import extract_documents
from ev_platform_tests.corpus.files import PROSE, bodies_of, page, pdf

TIMEOUT_S = 6.0
LIMITS = ("extraction_timeout", "extraction_crashed", "extraction_failed")


def bomb(n_bytes, unit=b" "):
    """Bytes that zlib inflates to `n_bytes` of `unit`, and that were made in no time: all blocks are alike."""
    block = unit * ((1 << 24) // len(unit))
    packer = zlib.compressobj(9)
    first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (n_bytes // len(block))


def raw_pdf(*objects, root=1):
    """A PDF of objects 1, 2, ..., each a dictionary or a pair of dictionary and stream."""
    out, places = b"%PDF-1.7\n", []
    for number, item in enumerate(objects, 1):
        head, stream = item if isinstance(item, tuple) else (item, None)
        if stream is not None:
            head = head.replace(b"<<", b"<< /Length %d " % len(stream), 1)
        places.append(len(out))
        out += b"%d 0 obj\n%s\n" % (number, head)
        out += b"stream\n%s\nendstream\n" % stream if stream is not None else b""
        out += b"endobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, root, len(out))
    return out + head + table + trailer


CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
FONT = b"/Resources << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
WORDS = b"BT /F 12 Tf 72 500 Td (" + PROSE[:80].encode() + b") Tj 0 -15 Td (" + PROSE[80:160].encode() + b") Tj ET"


def one_page(content, box=b"0 0 612 792", count=1, kids=b"[3 0 R]", filters=b""):
    return raw_pdf(
        CATALOG,
        b"<< /Type /Pages /Count %d /Kids %s >>" % (count, kids),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R %s >>" % (box, FONT),
        (b"<< %s >>" % filters, content),
    )


FLATE = b"/Filter /FlateDecode"
PDFS = {
    "stream that inflates to 40 GB": (
        lambda: one_page(zlib.compress(bomb(40 << 30)), filters=b"/Filter [/FlateDecode /FlateDecode]"),
        (*LIMITS, "image_only_pdf"),
    ),
    "ten million words on a page": (
        lambda: one_page(bomb(1 << 30, b"BT /F 9 Tf 72 700 Td (charge) Tj ET    "), filters=FLATE),
        LIMITS,
    ),
    "two thousand million pages": (lambda: one_page(WORDS, count=2_000_000_000), ("broken_pdf", "too_many_pages")),
    "page tree that holds itself": (
        lambda: raw_pdf(CATALOG, b"<< /Type /Pages /Count 3 /Kids [2 0 R 2 0 R 2 0 R] >>"),
        ("broken_pdf",),
    ),
    "one page a hundred thousand times": (
        lambda: one_page(WORDS, count=100_000, kids=b"[" + b"3 0 R " * 100_000 + b"]"),
        ("broken_pdf", "too_many_pages"),
    ),
    "form that calls itself": (
        lambda: raw_pdf(
            CATALOG,
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
            b" /Resources << /XObject << /X 5 0 R >> /Font << /F 6 0 R >> >> >>",
            (b"<< >>", WORDS + b" /X Do /X Do"),
            (
                b"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /X 5 0 R >> >> >>",
                b"/X Do /X Do " * 100,
            ),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ),
        (None, *LIMITS),
    ),
    "page of a million kilometres": (
        lambda: one_page(WORDS, box=b"0 0 3000000000000 3000000000000"),
        (None, "image_only_pdf", "no_text", *LIMITS),
    ),
    "arrays a million deep": (lambda: one_page(WORDS, kids=b"[" * 1_000_000), ("broken_pdf",)),
}

BODY = f"<p>{PROSE}</p>"
PAGES = {
    "200,000 nested tags": (lambda: page(body="<div>" * 200_000 + BODY), ("no_text", *LIMITS)),
    "50 MB of markup": (lambda: page(body=BODY * 180_000 + "<i>a</i>" * 1_000_000), LIMITS),
    "text without an end": (lambda: page(body=f"{BODY}<p>{'word ' * 4_000_000}"), (None, "no_text", *LIMITS)),
    "attribute without an end": (lambda: page(body=f"{BODY}<div class='{'a ' * 5_000_000}"), (None, *LIMITS)),
    "JSON-LD a million deep": (
        lambda: page(f"<script type='application/ld+json'>{'[' * 1_000_000}</script>", BODY * 3),
        (None,),
    ),
    "stray characters": (lambda: page(body=f"<p>{PROSE}\u2028{PROSE}\x00{PROSE}\x1b</p>"), (None,)),
    "invalid UTF-8": (lambda: page(body=BODY * 3).encode().replace(b"relief", b"reli\xff\xfe\xc3(ef"), (None,)),
    "nothing but noise": (lambda: bytes(range(256)) * 4000, ("no_text", "not_html", *LIMITS)),
}


def test_hostile_files_end_in_text_or_a_reason_and_harm_no_neighbour(store):
    made = {f"https://a.example/{n:02}.pdf": case for n, case in enumerate(PDFS.values())}
    made |= {f"https://a.example/{n:02}.html": case for n, case in enumerate(PAGES.values())}
    good = {f"https://a.example/{n:02}-good.html": page(body=f"<p>{n} {PROSE * 3}</p>") for n in range(0, 20, 4)}
    good["https://a.example/99-good.pdf"] = pdf(PROSE)
    files = [(url, make()) for url, (make, _) in made.items()] + list(good.items())
    bodies = bodies_of(store, *files)
    started = time.monotonic()
    documents = extract_documents(bodies, store, workers=2, timeout_s=TIMEOUT_S)
    assert time.monotonic() - started < 12 * TIMEOUT_S
    assert documents["fetched_url"].to_list() == sorted(url for url, _ in files)
    for row in documents.iter_rows(named=True):
        _, allowed = made.get(row["fetched_url"], (None, (None,)))
        assert row["drop_reason"] in allowed, (row["fetched_url"], row["drop_reason"], row["drop_detail"])
        assert bool(row["text"]) == (row["drop_reason"] is None)
        assert not set("\u2028\x00\x1b") & set(row["text"])


def test_form_that_calls_itself_leaves_the_words_of_its_page(store):
    make, _ = PDFS["form that calls itself"]
    (row,) = extract_documents(bodies_of(store, ("https://a.example/form.pdf", make())), store).iter_rows(named=True)
    assert "charging cable that carries more than 32 A" in row["text"]
