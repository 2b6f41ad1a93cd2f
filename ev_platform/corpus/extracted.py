"""What reading one file gives, and what web pages and PDFs share: plain characters, licence ids, the refusal.

How a web page (`html`) or a PDF (`pdf`) is read does not belong here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

_SUPERSCRIPT = str.maketrans("0123456789+-n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ")


class UnusableError(Exception):
    """A file that gives no text; ends as a row with this `reason` and `detail`, never as a failed run."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # both as args, so that it can be pickled
        self.reason, self.detail = reason, detail


@dataclass
class Extracted:
    """The text of one file and what the file says about itself."""

    text: str = ""
    page_offsets: list[int] = field(default_factory=list)
    title: str | None = None
    author: str | None = None
    publisher: str | None = None
    published_on: str | None = None  # ISO 8601 date
    modified_on: str | None = None
    licence: str | None = None
    language_declared: str | None = None  # ISO 639-1
    canonical: str | None = None
    language: str | None = None  # ISO 639-1, detected
    language_score: float | None = None
    n_masked: int = 0


def normalise(text: str) -> str:
    """Return text in Unicode NFC with plain spaces and line breaks and no trailing blanks.

    U+2028, U+2029, form feeds and their like become line breaks, zero-width characters go, typographic ligatures of
    PDFs become letters.
    """
    text = unicodedata.normalize("NFC", text).replace("\u2029", "\n\n").replace("\r\n", "\n")
    text = re.sub("[\r\x0b\x0c\x85\u2028]", "\n", text)
    text = re.sub(r"[\u00a0\u2000-\u200a\u202f\u3000\t]", " ", text)
    text = re.sub(r"[\u200b-\u200d\u2060\ufeff\u00ad]|[\x00-\x08\x0b-\x1f\x7f]", "", text)
    text = re.sub("[\ufb00-\ufb06]", lambda ligature: unicodedata.normalize("NFKC", ligature[0]), text)
    text = re.sub(r"[ ]+(?=\n|$)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def plain_superscripts(markdown: str) -> str:
    """Turn `m<sup>2</sup>` into `m²` and drop the marks of subscripts."""
    markdown = re.sub(r"<sup>([^<]*)</sup>", lambda found: found[1].translate(_SUPERSCRIPT), markdown)
    return re.sub(r"</?su[bp]>", "", markdown)


def licence_id(declared: str | None) -> str | None:
    """Turn a Creative Commons address or name into its SPDX id; leave anything else as it stands."""
    if not declared or not declared.strip():
        return None
    name = re.sub(r"[\s_]+", "-", declared.strip())
    found = re.search(r"(?:licenses/|\bCC-)(by(?:-nc)?(?:-sa|-nd)?)[/-](\d\.\d)", name, re.IGNORECASE)
    if found:
        return f"CC-{found[1].upper()}-{found[2]}"
    return "CC0-1.0" if re.search(r"publicdomain/zero|\bCC0\b", name, re.IGNORECASE) else declared.strip()[:200]
