"""What a page tells a crawler: its links, and what robots may do with it.

What does not belong here: which links are asked for (`frontier`) and robots.txt (`fetch`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from html import unescape

from ev_platform.collect.bodies import decode_page
from ev_platform.collect.urls import MAX_ADDRESS_CHARS, normalise, page_links

MAX_LINKS = 5_000  # of one page; pages for people have some hundreds
MAX_MARKUP_BYTES = 4_000_000  # read for links; about a second's work at worst
CACHED_CHARS = 1_000  # of a tag's attributes
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # rules that have a colon


@dataclass(frozen=True, slots=True)
class PageLinks:
    """What a crawler needs of a page.

    Attributes:
        links: Absolute addresses, each once, in the page's order.
        noindex: What says that the page is not to be used, such as `meta robots: noindex`, or None.
        nofollow: Whether the page asks that none of its links be followed.
    """

    links: list[str]
    noindex: str | None = None
    nofollow: bool = False


# What a tokenizer of HTML steps over as a whole (comments, raw text), and the tags that matter here (HTML standard,
# section 13.2.5). No tree is built: libxml2 takes minutes to hang 200,000 attributes into one. Every branch takes what
# it starts, to the end of the page if need be, so the time is linear whatever comes.
_RAW = "script|style|textarea|title|xmp|iframe|noembed|noframes"
_TAG = re.compile(
    rf"""<(?=[!abimnstx])(?:!--(?:-?>|.*?(?:--!?>|\Z))
    |({_RAW})\b.*?(?:</\1\b|\Z)
    |(a|area|base|meta)(?=[\s/>])((?:[^>"']++|"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))*+)(>?))""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"""([^\s=/"'>]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>][^\s>]*)))?""")


def tag_attributes(text: str) -> dict[str, str]:
    """Return the attributes that are written in a tag; of two of one name, the first (HTML standard, 13.2.5.33)."""
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text):
        found.setdefault(name.lower(), unescape(double or single or bare))
    return found


@lru_cache(maxsize=20_000)  # a site's pages share most of their links
def _href(text: str, obey: bool) -> str | None:
    """Return where the attributes of an `<a>` lead, or None where that is nowhere, too far, or not to be followed."""
    attributes = tag_attributes(text)
    if obey and "nofollow" in attributes.get("rel", "").lower().split():
        return None
    href = attributes.get("href")
    return href if href is not None and len(href) <= MAX_ADDRESS_CHARS else None


def read_links(
    body: bytes, url: str, *, charset: str | None = None, agent: str = "robots", obey: bool = True
) -> PageLinks:
    """Read the pages and PDFs that a page's `<a href>` and `<area href>` name, and its `<meta name="robots">`.

    Links after the 5,000th, and those behind the first 4 MB, are not read.

    Args:
        body: HTML in any encoding, however broken.
        url: Where the body came from; relative links count from it, or from the page's `<base href>`.
        charset: As the Content-Type header declares; heard where the page is not UTF-8.
        agent: Our product token in lower case (RFC 9309, section 2.2.1); rules that name it bind as those of `robots`.
        obey: Whether robots rules bind; if not, `rel="nofollow"` is overlooked as well.
    """
    body = body[:MAX_MARKUP_BYTES]
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or "\x00" in text:  # UTF-16 without its mark is valid UTF-8
        text = decode_page(body, charset)
    base: str | None = None
    hrefs: dict[str, None] = {}
    rules: list[tuple[str, str]] = []
    for _, tag, written, end in _TAG.findall(text):
        if not end:  # a comment, raw text, or a tag that the page ends in
            continue
        kind = tag.lower()
        if kind in ("a", "area"):
            href = (_href if len(written) <= CACHED_CHARS else _href.__wrapped__)(written, obey)
            if href is not None:
                hrefs[href] = None
                if len(hrefs) >= MAX_LINKS:
                    break
            continue
        attributes = tag_attributes(written)
        if kind == "base":
            base = base or attributes.get("href")
        elif obey and (name := attributes.get("name", "").strip().lower()) in ("robots", agent):
            rules += [(f"meta {name}", rule) for rule in _rules(attributes.get("content", ""))]
    return PageLinks(page_links(hrefs, (normalise(base, url) if base else None) or url), *_decide(rules))


def read_robots_header(header: str | None, *, agent: str) -> tuple[str | None, bool]:
    """Return (`noindex` and `nofollow` as in `PageLinks`) of an `X-Robots-Tag` header.

    A rule may name the robot that it is for (`otherbot: noindex, nofollow`), which then holds for those after it too.
    """
    meant_for, rules = None, []
    for part in (header or "").split(","):
        name, colon, rest = part.partition(":")
        if colon and name.strip().lower() not in _VALUED:
            meant_for, part = name.strip().lower(), rest
        if meant_for in (None, "robots", "*", agent):
            rules += [("X-Robots-Tag", rule) for rule in _rules(part)]
    return _decide(rules)


def _rules(content: str) -> list[str]:
    return [rule for rule in re.split(r"[,\s]+", content.lower()) if rule]


def _decide(rules: Iterable[tuple[str, str]]) -> tuple[str | None, bool]:
    noindex = next((f"{where}: {rule}" for where, rule in rules if rule in ("noindex", "none")), None)
    return noindex, any(rule in ("nofollow", "none") for _, rule in rules)
