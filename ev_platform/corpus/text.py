"""Markdown and plain text that a person put into the task: characters, and a title.

What does not belong here: web pages (`html`), PDFs (`pdf`), and where headings part a text (`blocks`).
"""

from __future__ import annotations

import re

from ev_platform.collect.bodies import decode_page
from ev_platform.corpus.extracted import Extracted, UnusableError, normalise

MAX_TITLE_CHARS = 120
_FENCED = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6} +(\S.*?)(?: +#+)?$", re.MULTILINE)
_MARKS = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+")


def read_text(data: bytes) -> Extracted:
    """Return the text of a Markdown or plain text file, as it stands, with its title.

    Args:
        data: The file; UTF-8 where nothing says otherwise.

    Raises:
        UnusableError: If it holds no text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = decode_page(data, None)
    text = normalise(text)
    if not text:
        raise UnusableError("no_text", "the file holds blanks only")
    return Extracted(text=text, title=title_of(text))


def title_of(text: str) -> str | None:
    """Return the first heading of a Markdown text, else its first line if that is a title.

    The first line of a paragraph is none: a title does not end as a sentence does, and an empty line or a line at
    least twice as long follows it, which in a text of wrapped lines does not.
    """
    heading = _HEADING.search(_FENCED.sub("", text))
    if heading:
        title = " ".join(_MARKS.sub(r"\1", heading[1]).split())
    else:
        title, _, rest = text.partition("\n")
        following = rest.partition("\n")[0]
        if not rest or title.endswith((".", ",", ":", ";", "!", "|")) or 0 < len(following) < 2 * len(title):
            return None
    return title if 0 < len(title) <= MAX_TITLE_CHARS else None
