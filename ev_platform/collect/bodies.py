"""Bodies and their rows: what a body is, told from its bytes, and what a row keeps of the last time.

What does not belong here: where bodies come from (`crawl`, `files`) and whether they are any good (`corpus`).
"""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl
from w3lib.encoding import html_body_declared_encoding, html_to_unicode, read_bom

from ev_platform.records import RawBody
from ev_platform.storage import now
from ev_platform.tasks.sources import Sources

HTML = "text/html"
PDF = "application/pdf"
TEXT = "text/plain"
MAX_SPOILT_SHARE = 0.01  # one letter in thirty is no ASCII in the plainest of other European languages

# First bytes of what web servers hand out beside HTML and PDF; named in `drop_detail` so that a person sees what came.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"\xd0\xcf\x11\xe0", "application/x-ole-storage"),
)
_HTML_ANYWHERE = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.I)
_HTML_START = re.compile(
    rb"(?:(?><!--.*?-->)\s*)*+<(a|article|b|br|center|div|font|h[1-6]|iframe|img|link|main|meta|ol|p|script|section|span|style"
    rb"|table|title|ul)\b",
    re.I | re.S,
)


def sniff(data: bytes) -> str:
    """Return the media type of a body.

    HTML follows the idea of the WHATWG MIME Sniffing Standard (section 7.1): a document tag among the first bytes, or
    a usual tag at the very start. A PDF may begin within the first 1,024 bytes (ISO 32000-1, annex H.3.4.1).
    """
    head = data[:4096]
    if b"%PDF-" in head[:1024]:
        return PDF
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.replace(b"\x00", b"")[2:]  # UTF-16: its ASCII letters are what the patterns need
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith((b"{", b"[")):
        return "application/json"
    if _HTML_ANYWHERE.search(head) or _HTML_START.match(head):
        return HTML
    if b"\x00" in head:
        return "application/octet-stream"
    return "application/xml" if head.startswith(b"<?xml") else TEXT


def decode_page(body: bytes, charset: str | None) -> str:
    """Return the characters of a page that is not clean UTF-8.

    Its byte order mark decides, then the header, then what the page declares; without any of them it is UTF-8 with a
    few spoilt bytes, or windows-1252.

    Args:
        body: The page.
        charset: As the Content-Type header declares.
    """
    if charset is None and read_bom(body)[0] is None and html_body_declared_encoding(body) is None:
        text = body.decode("utf-8", "replace")
        if text.count("\ufffd") <= MAX_SPOILT_SHARE * len(text):
            return text
    try:
        return html_to_unicode(f"text/html; charset={charset}" if charset else None, body, default_encoding="cp1252")[1]
    except (LookupError, UnicodeError):  # Python has codecs that are no charsets, such as "hex" and "undefined"
        return body.decode("cp1252", "replace")


def blank_row(url: str, kind: str, sources: Sources, *, depth: int = 0, referrer: str | None = None) -> RawBody:
    """Return the row of an address that has just been asked for, before anything is known of its body."""
    moment = now()
    return RawBody(
        url=url,
        final_url=url,
        kind=kind,
        status=None,
        content_type=None,
        content_sha256=None,
        n_bytes=0,
        path=None,
        fetched_at=moment,
        checked_at=moment,
        etag=None,
        last_modified=None,
        licence=sources.licence,
        publisher=sources.publisher,
        depth=depth,
        referrer=referrer,
        robots="not_applicable",
        charset=None,
        robots_header=None,
        drop_reason=None,
        drop_detail=None,
    )


def rows_by_url(frame: pl.DataFrame) -> dict[str, RawBody]:
    """Return the rows of a `raw_pages` or `raw_pdfs` frame by their address."""
    return {row["url"]: RawBody(**row) for row in frame.iter_rows(named=True)}


def keep_first_seen(row: RawBody, known: RawBody | None) -> RawBody:
    """Return the row with the hour at which these bytes, or this very failure, were first met, where that was before.

    Failures count too, so that a page that stays missing leaves the table's fingerprint as it was.
    """

    def outcome(body: RawBody) -> tuple[object, ...]:
        return body.final_url, body.status, body.content_sha256, body.n_bytes, body.drop_reason, body.drop_detail

    if known is None:
        return row
    has_same_bytes = row.content_sha256 is not None and known.content_sha256 == row.content_sha256
    return replace(row, fetched_at=known.fetched_at) if has_same_bytes or outcome(known) == outcome(row) else row


def as_gone(known: RawBody, status: int | None) -> RawBody:
    """Return the row of a body that was there and is there no longer; it goes on naming the last bytes.

    Args:
        known: The row of when it was last had, or of when it was found gone before.
        status: HTTP status of the answer; None for a file.
    """
    what = "the file does not exist" if status is None else f"HTTP status {status}"
    last = f"last fetched {known.fetched_at:%Y-%m-%dT%H:%MZ}"
    return replace(known, status=status, drop_reason="gone", drop_detail=f"{what}; {last}")
