"""Addresses: their normal form, and what makes two of them one.

What does not belong here: the links of a page (`links`), which of them are asked for when (`frontier`), and whether an
address may be fetched (`fetch`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import urljoin, urlsplit, urlunsplit

from w3lib.url import canonicalize_url, safe_url_string

_ASSETS = re.compile(
    r"\.(7z|avi|avif|bmp|bz2|css|csv|dmg|docx?|eot|exe|flac|gif|gz|ico|jpe?g|js|json|m4a|m4v|mjs|mkv|mov|mp3|mp4|mpe?g|ogg|otf"
    r"|png|pptx?|rar|rss|svg|tar|tgz|tiff?|ttf|wav|web[mp]|webmanifest|woff2?|xlsx?|xml|xz|zip)"
)
MAX_ADDRESS_CHARS = 2_000  # the sitemaps protocol draws the line at 2,048
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# Parameters that say who came from where and never what is shown: those that Google, Microsoft, Yandex, Meta, X,
# TikTok, LinkedIn, Mailchimp, HubSpot, Marketo and Matomo publish, and the rest of the list that Firefox strips. Then
# the session names that PHP, Java, ASP and ColdFusion use by default. Words that a site may mean something by (ref,
# sid, source, campaign) are left alone.
_TRACKING = re.compile(
    r"(utm_\w+|gclid|gclsrc|gbraid|wbraid|dclid|srsltid|_ga|_gl|msclkid|yclid|ysclid|_openstat|fbclid|igshid|twclid|ttclid"
    r"|li_fat_id|mc_cid|mc_eid|_hsenc|_hsmi|__hssc|__hstc|__hsfp|hsctatracking|mkt_tok|mtm_\w+|pk_(campaign|kwd|source)"
    r"|vero_id|vero_conv|oly_anon_id|oly_enc_id|__s|rb_clickid|wickedid|s_cid"
    r"|phpsessid|jsessionid|aspsessionid\w*|cfid|cftoken)",
    re.I,
)
_SESSION_IN_PATH = re.compile(r";jsessionid=[^/;]*", re.I)


@lru_cache(maxsize=100_000)  # a site's pages share most of their links, and an address costs some 30 µs
def _normal_form(url: str) -> str | None:
    try:
        parts = urlsplit(safe_url_string(url))
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
            return None
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    netloc = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])
    return urlunsplit((parts.scheme, netloc, _without_dots(parts.path or "/"), parts.query, ""))


def normalise(url: str, base: str = "") -> str | None:
    """Return the absolute form of an address, or None where it is no plain http(s) address.

    Fragment, default port, dot segments (RFC 3986, section 5.2.4) and an empty query are taken off; the host is lower
    case. Addresses with a user name in them are refused too: nothing good is linked that way.
    """
    try:
        return _normal_form(urljoin(base, url.strip()))
    except ValueError:
        return None


def page_links(hrefs: Iterable[str], base: str) -> list[str]:
    """Return the addresses of pages and PDFs that hrefs name, each once, without tracking parameters.

    Links to style sheets, images, media, archives and other things that are neither page nor PDF are left out, and so
    are addresses longer than 2,000 characters.
    """
    parts = urlsplit(base)
    origin = f"{parts.scheme}://{parts.netloc}"
    links: dict[str, None] = {}
    for href in hrefs:
        # The two common forms need no urljoin, which takes ten times as long as all the rest.
        if href.startswith("/") and not href.startswith("//"):
            link = _page_link(origin + href)
        elif href.startswith(("http://", "https://")):
            link = _page_link(href)
        elif len(href) <= MAX_ADDRESS_CHARS:
            link = _page_link(normalise(href, base) or "")
        else:
            continue
        if link:
            links[link] = None
    return list(links)


@lru_cache(maxsize=100_000)
def _page_link(url: str) -> str | None:
    if not url or len(url) > MAX_ADDRESS_CHARS:
        return None
    link = _normal_form(url.strip())
    return without_tracking(link) if link and len(link) <= MAX_ADDRESS_CHARS and not is_asset(link) else None


def _without_dots(path: str) -> str:
    if "/." not in path:
        return path
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == ".." and len(kept) > 1:
            kept.pop()
        elif segment not in (".", ".."):
            kept.append(segment)
    return "/".join([*kept, ""] if path.endswith(("/.", "/..")) else kept)


@lru_cache(maxsize=100_000)
def without_tracking(url: str) -> str:
    """Return an address in normal form without the parameters that only say who asks, the rest as it was written."""
    if "?" not in url and ";" not in url:
        return url
    parts = urlsplit(url)
    query = "&".join(pair for pair in parts.query.split("&") if not _TRACKING.fullmatch(pair.partition("=")[0]))
    return urlunsplit(parts._replace(path=_SESSION_IN_PATH.sub("", parts.path), query=query))


@lru_cache(maxsize=100_000)
def address_key(url: str) -> str:
    """Return what all spellings of one address share.

    On top of `normalise` and `without_tracking`, the order of a query's parameters and the case of percent-encodings do
    not count (`w3lib.url.canonicalize_url`).
    """
    return canonicalize_url(without_tracking(url))


def extension(url: str) -> str:
    """Return the extension of an address's path, such as `.pdf`, in lower case; empty where there is none."""
    return PurePosixPath(urlsplit(url).path).suffix.lower()


def is_asset(url: str) -> bool:
    """Whether the address names a style sheet, image, archive or other thing that is neither page nor PDF."""
    return _ASSETS.fullmatch(extension(url)) is not None
