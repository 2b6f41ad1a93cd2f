"""Finding a text again wherever it was quoted, without keeping it: by hashes of its runs of eight words.

What belongs here: what counts as a quotation, and which files hold one. What does not: which text is meant
(`takedown`) and what becomes of the places (`erase`).
"""

from __future__ import annotations

import gzip
import html
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import polars as pl

# Shorter runs are met by chance: of eight words in a row that two pages share, nearly all were copied.
WORDS = 8
# Numbers that make a model; no text can be told from them.
WEIGHTS = frozenset({".safetensors", ".bin", ".npy", ".pt", ".pth", ".gguf"})
_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrtbf])")
_TAG = re.compile(r"<[^<>]{1,400}>")


def plain(text: str) -> str:
    """Return the text behind the escapes of JSON and HTML, without tags."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    return _TAG.sub(" ", html.unescape(text)) if "<" in text or "&" in text else text


def runs(text: str) -> Iterator[int]:
    """Yield the hash of each run of `WORDS` words; case, punctuation and markup do not count."""
    words = _WORD.findall(plain(text).casefold())
    for start in range(len(words) - WORDS + 1):
        run = " ".join(words[start : start + WORDS])
        yield int.from_bytes(blake2b(run.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclass
class Quotes:
    """The runs of words of some texts, those that other texts have too left out.

    Attributes:
        hashes: Of the runs.
    """

    hashes: set[int]
    _known: dict[str, bool] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, texts: Iterable[str], others: Iterable[str]) -> Quotes:
        """Return the runs of `texts` that none of `others` has."""
        hashes = {run for text in set(texts) for run in runs(text)}
        for text in set(others):
            hashes.difference_update(runs(text))
        return cls(hashes)

    def are_in(self, text: str | None) -> bool:
        """Return whether a text has one of the runs."""
        if not text or not self.hashes:
            return False
        if text not in self._known:  # versions of a table repeat each other
            self._known[text] = not self.hashes.isdisjoint(runs(text))
        return self._known[text]

    def are_in_column(self, column: pl.Series) -> pl.Series:
        """Return for each value of a column whether it has one of the runs; lists and structures count as one text."""
        return pl.Series([self.are_in(_text_of(value)) for value in column.to_list()], dtype=pl.Boolean)

    def are_in_file(self, file: Path) -> bool:
        """Return whether a file has one of the runs: text, JSON, HTML, Parquet, SQLite, or gzip."""
        return bool(self.hashes) and any(not self.hashes.isdisjoint(runs(text)) for text in texts_of(file))


def _text_of(value: object) -> str | None:
    if isinstance(value, list):
        return " ".join(filter(None, map(_text_of, value)))
    if isinstance(value, dict):
        return " ".join(filter(None, map(_text_of, value.values())))
    return value if isinstance(value, str) else None


def texts_of(file: Path) -> Iterator[str]:
    """Yield what can be read in a file, piece by piece; a file that vanishes meanwhile has nothing."""
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        if head.startswith(b"PAR1"):
            frame = pl.read_parquet(file, hive_partitioning=False)
            yield from (text for column in frame for value in column.to_list() if (text := _text_of(value)))
        elif head == b"SQLite format 3\x00":
            yield from _texts_of_database(file)
        else:
            data = file.read_bytes()
            yield (gzip.decompress(data) if head.startswith(b"\x1f\x8b") else data).decode("utf-8", "ignore")
    except FileNotFoundError:
        return


def _texts_of_database(file: Path) -> Iterator[str]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute('SELECT * FROM "{}"'.format(table.replace('"', '""'))):
                for value in row:
                    if isinstance(value, bytes):
                        yield value.decode("utf-8", "ignore")
                    elif isinstance(value, str):
                        yield value
