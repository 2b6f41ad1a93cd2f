"""Addresses that sites list in their sitemaps (sitemaps.org protocol 0.9: XML, sitemap indexes, plain text, gzip).

trafilatura and ultimate-sitemap-parser read sitemaps too, but fetch them with HTTP clients of their own, past our
limits and robots.txt; what is left of them without that is the few lines below.

What does not belong here: feeds (RSS, Atom), and which of the addresses are asked for when (`frontier`).
"""

from __future__ import annotations

import io
import logging
import zlib
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

from lxml import etree  # type: ignore[attr-defined]

from ev_platform.collect.fetch import Fetcher
from ev_platform.collect.urls import MAX_ADDRESS_CHARS, is_asset, normalise, without_tracking

MAX_BYTES = 52_428_800  # of one sitemap, unpacked, as the protocol says
MAX_ADDRESSES = 50_000  # in one sitemap, as the protocol says
MAX_SITEMAPS = 50  # of one crawl
MAX_NESTING = 2  # indexes in indexes; the protocol allows none, large sites do it all the same
_log = logging.getLogger(__name__)


async def read_sitemaps(fetcher: Fetcher, urls: list[str], enough: int) -> list[tuple[str, str]]:
    """Return the pages that the sitemaps of some sites list, as (address, sitemap that listed it first).

    Read are those that robots.txt names, else `/sitemap.xml`. One that is missing, broken or too large is a line in
    the log.

    Args:
        fetcher: Fetches them, so that limits, robots.txt and allowed hosts count as for pages.
        urls: Addresses on the sites (scheme and host count).
        enough: No further sitemap is read once so many pages are known.
    """
    waiting: deque[tuple[str, int, bool]] = deque()
    for origin in dict.fromkeys(f"{(parts := urlsplit(url)).scheme}://{parts.netloc}" for url in urls):
        named = await fetcher.sitemaps(origin)
        waiting += [(url, 0, True) for url in named] or [(f"{origin}/sitemap.xml", 0, False)]
    pages: dict[str, str] = {}
    read: set[str] = set()
    while waiting and len(pages) < enough:
        url, nesting, is_named = waiting.popleft()
        if url in read or not fetcher.is_allowed(url):
            continue
        if len(read) == MAX_SITEMAPS:
            _log.warning("%s: not read, because %d sitemaps are the limit", url, MAX_SITEMAPS)
            break
        read.add(url)
        level = logging.WARNING if is_named else logging.INFO  # most sites have none
        answer = await fetcher.fetch(url, max_bytes=MAX_BYTES)
        if answer.drop_reason:
            _log.log(level, "%s: no sitemap (%s)", url, answer.drop_reason)
            continue
        try:
            for is_sitemap, found in _entries(answer.body, answer.url):
                if not is_sitemap:
                    pages.setdefault(without_tracking(found), url)
                elif nesting < MAX_NESTING:
                    waiting.append((found, nesting + 1, True))
        except ValueError as error:
            _log.log(level, "%s: not read to its end: %s", url, error)
    return list(pages.items())


def _entries(data: bytes, url: str) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a sitemap, address) of a sitemap's entries.

    Raises:
        ValueError: If it is broken, is none, or unpacks to more than 50 MiB; what came before has been yielded.
    """
    if data.startswith(b"\x1f\x8b"):
        data = _unpack(data)
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_xml = data.startswith(b"<")
    found = _read_xml(data) if is_xml else ((False, line) for line in io.TextIOWrapper(io.BytesIO(data), "utf-8"))
    for n_found, (is_sitemap, text) in enumerate(found):
        if n_found == MAX_ADDRESSES:
            raise ValueError(f"more than {MAX_ADDRESSES} entries")
        # A line of text that is no address has no base to count from.
        address = normalise(text, url if is_xml else "") if len(text) <= MAX_ADDRESS_CHARS else None
        if address and (is_sitemap or not is_asset(address)):
            yield is_sitemap, address


def _unpack(data: bytes) -> bytes:
    reader = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        unpacked = reader.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"broken gzip: {error}") from error
    if reader.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MAX_BYTES} bytes")
    return unpacked


def _read_xml(data: bytes) -> Iterator[tuple[bool, str]]:
    # Entities stay what they are: neither files (XXE) nor their multiples (billion laughs) come in. No tree is kept.
    options = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
    try:
        entries = etree.iterparse(io.BytesIO(data), events=("end",), **options)
        for _, entry in entries:
            parent = entry.getparent()
            if parent is None:
                continue
            kind = etree.QName(entry).localname
            location = entry.find("{*}loc") if kind in ("url", "sitemap") else None
            if location is not None and location.text and not len(location):
                yield kind == "sitemap", location.text
            if parent.getparent() is None:  # an entry of the list is done with
                entry.clear()
                while entry.getprevious() is not None:
                    del parent[0]
        if etree.QName(entries.root).localname not in ("urlset", "sitemapindex"):
            raise ValueError(f"the document is <{etree.QName(entries.root).localname}>")
    except etree.XMLSyntaxError as error:
        raise ValueError(str(error)) from error
