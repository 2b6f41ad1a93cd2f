import pytest

from ev_platform.collect.bodies import decode_page, sniff
from ev_platform.collect.links import read_links


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\xef\xbb\xbf  <!doctype HTML>", "text/html"),
        (b"<?xml version='1.0'?><html xmlns='x'>", "text/html"),
        (b"<!-- saved -->\n<div>text</div>", "text/html"),
        (b"Warning: a server's complaint<br>\n<html>", "text/html"),
        ("<html lang='en'>".encode("utf-16"), "text/html"),
        (b"junk\n%PDF-1.4", "application/pdf"),
        (b"%PDX", "text/plain"),
        (b"<?xml version='1.0'?><rss>", "application/xml"),
        (b"plain words", "text/plain"),
        (b"GIF89a", "image/gif"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x7fELF\x00", "application/octet-stream"),
    ],
)
def test_sniff_body_told_from_its_bytes(data, media_type):
    assert sniff(data) == media_type


def test_read_links_utf16_page_and_odd_declaration_read():
    text = '<?xml version="1.0" encoding="no-such"?><html><body><a href="/ä b">x</a></body></html>'
    assert read_links(text.encode("utf-16"), "http://h.example/").links == ["http://h.example/%C3%A4%20b"]
    assert read_links(text.encode(), "http://h.example/").links == ["http://h.example/%C3%A4%20b"]


@pytest.mark.parametrize("body", [b"", b" ", b"<!-- -->", b"<html>", b"\x00\x00", b"<a href", b"<" * 5000])
def test_read_links_page_without_links_gives_none(body):
    assert read_links(body, "http://h.example/").links == []


def test_sniff_many_comments_take_no_time():
    assert sniff(b"<!---->" * 580 + b"x") == "text/plain"  # took hours: every comment doubled the ways to fail
    assert sniff(b"<!-- a --> <!-- b -->\n<p>text") == "text/html"


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("Зарядка".encode("cp1251"), "windows-1251", "Зарядка"),
        (("Le câble " * 50).encode() + b"\xff", None, "Le câble " * 50 + "\ufffd"),
        ("câble".encode("latin-1"), None, "câble"),
        (b'<meta charset="hex">c\xe2ble', None, '<meta charset="hex">câble'),
        (b"c\xe2ble", "undefined", "câble"),
    ],
    ids=["header", "spoilt byte", "nothing declared", "no charset", "no charset in the header"],
)
def test_decode_page_by_header_declaration_or_what_is_likely(body, charset, text):
    assert decode_page(body, charset) == text
