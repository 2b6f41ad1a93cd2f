"""Addresses: their normal form, and those that a page links to.

What does not belong here: whether an address may be fetched (`fetch`).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import urljoin, urlsplit, urlunsplit

from lxml import html
from w3lib.encoding import html_to_unicode
from w3lib.url import safe_url_string

_ASSETS = re.compile(
    r"\.(7z|avi|avif|bmp|bz2|css|csv|dmg|docx?|eot|exe|flac|gif|gz|ico|jpe?g|js|json|m4a|m4v|mjs|mkv|mov|mp3|mp4|mpe?g|ogg|otf"
    r"|png|pptx?|rar|rss|svg|tar|tgz|tiff?|ttf|wav|web[mp]|webmanifest|woff2?|xlsx?|xml|xz|zip)"
)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def normalise(url: str, base: str = "") -> str | None:
    """Return the absolute form of an address, without fragment, or None where it is no plain http(s) address.

    Addresses with a user name in them are refused too: nothing good is linked that way.
    """
    try:
        parts = urlsplit(safe_url_string(urljoin(base, url.strip())))
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
            return None
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    netloc = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])
    return urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))


def extract_links(body: bytes, url: str) -> list[str]:
    """Return the addresses that a page's `<a href>` and `<area href>` name, each once, in the page's order.

    Links to style sheets, images, media, archives and other things that are neither page nor PDF are left out.

    Args:
        body: HTML in any encoding, however broken.
        url: Where the body came from; relative links count from it, or from the page's `<base href>`.
    """
    # Re-encoded, because lxml refuses text with an encoding declaration and libxml2 does not know every encoding.
    _, text = html_to_unicode(None, body)
    try:
        tree = html.document_fromstring(text.encode(errors="replace"), parser=html.HTMLParser(encoding="utf-8"))
    except html.etree.ParserError:  # nothing but white space or comments
        return []
    bases = tree.xpath("//base/@href")
    base = (normalise(bases[0], url) if bases else None) or url
    links = [normalise(href, base) for href in tree.xpath("//a/@href | //area/@href")]
    return [link for link in dict.fromkeys(links) if link and not _ASSETS.fullmatch(extension(link))]


def extension(url: str) -> str:
    """Return the extension of an address's path, such as `.pdf`, in lower case; empty where there is none."""
    return PurePosixPath(urlsplit(url).path).suffix.lower()
