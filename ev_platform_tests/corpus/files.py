"""Pages and PDFs that the tests of extraction make. What is asserted about them does not belong here."""

from dataclasses import replace

import pymupdf  # noqa: TID253 - these tests make PDFs; loading the graph is no concern here

from ev_platform.collect.bodies import blank_row
from ev_platform.records import to_frame
from ev_platform.tasks.sources import Sources

PROSE = (
    "A charging cable that carries more than 32 A is checked once a year by an electrician. The check covers the "
    "plug, the contacts, the strain relief and the sheath. A cable with a damaged sheath is taken out of use. "
)
URL = "https://a.example/cables.html"
BODY = f"<h1>Cables</h1><p>{PROSE}</p><p>{PROSE.replace('cable', 'lead')}</p>"


def page(head="", body=BODY, lang='lang="en-GB"'):
    """A web page."""
    return f"<!DOCTYPE html><html {lang}><head>{head}</head><body><main>{body}</main></body></html>"


def pdf(*texts, xmp=None, metadata=None, **saving):
    """A PDF with a page for each text."""
    document = pymupdf.open()
    for text in texts:
        document.new_page().insert_textbox((72, 120, 500, 700), text)
    if metadata:
        document.set_metadata(metadata)
    if xmp:
        document.set_xml_metadata(xmp)
    return document.tobytes(**saving)


def bodies_of(store, *files, **changes):
    """Store files, given as (url, bytes), and return their rows of `raw_pages`."""
    rows = []
    for url, data in files:
        sha, path = store.put_blob(data.encode() if isinstance(data, str) else data)
        kind = "pdf" if url.endswith(".pdf") else "web"
        rows.append(replace(blank_row(url, kind, Sources()), content_sha256=sha, path=path, **changes))
    return to_frame("raw_pages", rows)
