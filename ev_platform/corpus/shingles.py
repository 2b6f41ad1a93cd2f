"""Texts as sets of word 5-grams (shingles), each shingle 64 bits: the common ground of whatever compares texts.

What belongs here: what a word is, and the shingles of many texts at once, in numpy. What does not: comparing texts
(`duplicates`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

SHINGLE_WORDS = 5
# Scripts written without spaces: each of their characters counts as a word, so that shingles are character 5-grams.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark and zero
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # extensions of the same
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # Han extensions
)
_UNSPACED_FLAG = np.uint32(1 << 31)
_KEPT_CHARS = 1 << 19  # tables of powers for blocks up to this size are made once
_LETTER_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_WORD_BASE = np.uint64(0xD6E8FEB86659FD93)


def shingle_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the distinct shingles of each text.

    Words are runs of letters, digits, marks and underscores after Unicode NFKC and case folding. A text of fewer than
    five words is one shingle; a text without words has none.

    A shingle is represented by 64 bits. Two of the n shingles of a pair of texts are confused with a chance of about
    n^2 / 2^65, which is 1 in 40 million for two texts of half a million words each.

    Returns:
        The shingles, uint64: sorted within each text, one text after the other; and their number per text.
    """
    hashes, counts = _combine_words(*_hash_words(texts))
    ends = np.cumsum(counts)
    for start, end in zip(ends - counts, ends, strict=True):
        hashes[start:end].sort()
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = hashes[1:] != hashes[:-1]
    filled = counts > 0
    starts = (ends - counts)[filled]
    is_new[starts] = True
    if len(starts):
        counts[filled] = np.add.reduceat(is_new, starts, dtype=np.int64)
    return hashes[is_new], counts


def _hash_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash each word to 64 bits, by a polynomial over its characters; return the hashes and their number per text."""
    texts = [text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text) for text in texts]
    joined = "\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass")
    letters = letter_table()[np.frombuffer(joined, np.uint32)]
    is_letter = letters != 0
    is_start, is_end = is_letter.copy(), is_letter.copy()  # of a word; is_end marks its last character
    is_start[1:] &= ~is_letter[:-1]
    is_end[:-1] &= ~is_letter[1:]
    if letters.size and letters.max() >= _UNSPACED_FLAG:
        alone = letters >= _UNSPACED_FLAG
        is_start |= alone
        is_end |= alone
        is_start[1:] |= is_letter[1:] & alone[:-1]
        is_end[:-1] |= is_letter[:-1] & alone[1:]
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end)
    powers, inverses = _powers(len(letters))
    sums = letters * powers
    before = sums[starts]
    np.cumsum(sums, out=sums)
    hashes = mix_bits((sums[ends] - sums[starts] + before) * inverses[starts])
    text_ends = np.cumsum([len(text) + 1 for text in texts])
    return hashes, np.diff(np.searchsorted(starts, text_ends), prepend=0)


def _combine_words(words: np.ndarray, n_words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Combine each five words that follow one another in a text; return the shingles and their number per text."""
    ends = np.cumsum(n_words)
    padded = np.concatenate([words, np.zeros(SHINGLE_WORDS - 1, np.uint64)])
    shingles = np.zeros(len(words), np.uint64)
    for offset in range(SHINGLE_WORDS):
        shingles = shingles * _WORD_BASE + padded[offset : offset + len(words)]
    # A short text is its only shingle; the words that it lacks count as 0.
    is_short = (n_words > 0) & (n_words < SHINGLE_WORDS)
    starts, n_short = (ends - n_words)[is_short], n_words[is_short]
    short = np.zeros(len(starts), np.uint64)
    for offset in range(SHINGLE_WORDS):
        short = short * _WORD_BASE + np.where(offset < n_short, padded[starts + offset], np.uint64(0))
    shingles[starts] = short
    is_inside = np.ones(len(words), bool)
    for offset in range(1, SHINGLE_WORDS):
        is_inside[(ends - offset)[n_words > offset]] = False
    return mix_bits(shingles[is_inside]), np.where(n_words < SHINGLE_WORDS, n_words > 0, n_words - SHINGLE_WORDS + 1)


@cache
def letter_table() -> np.ndarray:
    """Map each code point to its case-folded form, flagged where it stands alone; to 0 if it is no part of a word."""
    letters = np.zeros(0x110000, np.uint32)
    for code in range(0x40000):  # beyond lie variation selectors and private use
        char = chr(code)
        if unicodedata.category(char)[0] in "LNM" or char == "_":
            folded = char.casefold()  # final and other sigma are one letter
            letters[code] = ord(folded if len(folded) == 1 else char.lower()[0])
    for first, last in UNSPACED:
        span = letters[first : last + 1]
        span[span != 0] |= _UNSPACED_FLAG
    return letters


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first n powers of the base of word hashes modulo 2^64, and their inverses."""
    powers, inverses = _block_powers() if n <= _KEPT_CHARS else _make_powers(n)
    return powers[:n], inverses[:n]


@cache
def _block_powers() -> tuple[np.ndarray, np.ndarray]:
    return _make_powers(_KEPT_CHARS)


def _make_powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    bases = np.full((2, n), [[_LETTER_BASE], [pow(_LETTER_BASE, -1, 1 << 64)]], np.uint64)
    bases[:, 0] = 1
    powers, inverses = np.multiply.accumulate(bases, axis=1)
    return powers, inverses


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Spread every bit over all bits, in place (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
