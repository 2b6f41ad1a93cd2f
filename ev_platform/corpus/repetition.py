"""Text that says the same again and again: what search-engine spam is made of, whatever domain words it is full of.

What belongs here: rules on repeated sentences, phrases and words. What does not: rules on single words and lines
(`quality`), the same text on two pages (`duplicates`).

The figures in brackets were measured on 8 pages of machine-made spam on charging and, as honest pages, on some 90 real
pages of 20 sites, 19 documentation files, 12 PDFs and the 128 sections of a car manual.
"""

from __future__ import annotations

import re
from collections import Counter

# Shorter texts repeat little; with fewer distinct sentences or words a share says nothing.
MIN_SENTENCES = 5
MIN_PHRASE_WORDS = 50
MIN_VOCABULARY_WORDS = 300

# Share of the distinct sentences that stand three times or more (spam 0.67 to 1.00, honest at most 0.19: a list of
# devices with the same note under many). Three, because a page laid out for two screen widths holds each one twice.
MAX_REPEATED_SENTENCES = 0.4
# Share of the words inside a sequence of 8 words that stood before (spam 0.71 to 0.83, honest at most 0.66: a list
# of devices). Gopher (Rae et al. 2021, table A1) drops at 0.12 for 8-grams; that would drop honest reference pages,
# which repeat their phrasing on purpose. Catches sentences made from one mould as well.
REPEATED_PHRASE_WORDS = 8
MAX_REPEATED_PHRASES = 0.7
# Share of the characters in the phrase of 2, 3 or 4 words that fills most (keyword stuffing; honest at most 0.14, 0.17
# and 0.20, all short pages on one part with a long name). Gopher: 0.20, 0.18 and 0.16.
MAX_TOP_PHRASE = 0.25
# Different words by the square root of all words, Guiraud's index (spam 2.8 to 5.3, honest at least 5.7: generated API
# documentation). Below what most spam has, since the rules above take that; this one takes permuted keyword lists.
MIN_VOCABULARY = 5.0


def prose_lines(text: str) -> list[str]:
    """Return the lines of a Markdown text that are neither code nor table, without their list and heading marks."""
    text = re.sub(r"^```.*?(?:^```|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"^(?:[#>*+-]+|\d+[.)])\s+", "", line.strip()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("|")]


def judge_repetition(text: str) -> tuple[str, str] | None:
    """Return (reason, figure) if a text repeats itself more than a reference page does, else None.

    Code and tables may repeat as they like.
    """
    lines = prose_lines(text)
    sentences: Counter[str] = Counter()
    for line in lines:
        for sentence in re.split(r"(?<=[.!?…])\s+", line):
            words = re.findall(r"\w+", sentence.lower())
            if len(words) >= 6:
                sentences[" ".join(words)] += 1
    if len(sentences) >= MIN_SENTENCES:
        share = sum(n >= 3 for n in sentences.values()) / len(sentences)
        if share > MAX_REPEATED_SENTENCES:
            figure = f"{share:.2f} of {len(sentences)} different sentences stand 3 times or more"
            return "repeated_sentences", f"{figure} > {MAX_REPEATED_SENTENCES}"
    words = re.findall(r"\w+", " ".join(lines).lower())
    if len(words) >= MIN_PHRASE_WORDS:
        for size in (2, 3, 4):
            phrase, share = _top_phrase(words, size)
            if share > MAX_TOP_PHRASE:
                return "keyword_stuffing", f"{share:.2f} of the text is '{phrase}' > {MAX_TOP_PHRASE}"
        share = _repeated_share(words, REPEATED_PHRASE_WORDS)
        if share > MAX_REPEATED_PHRASES:
            figure = f"{share:.2f} of the words are in repeated sequences of {REPEATED_PHRASE_WORDS}"
            return "repeated_phrases", f"{figure} > {MAX_REPEATED_PHRASES}"
    if len(words) >= MIN_VOCABULARY_WORDS:
        index = len(set(words)) / len(words) ** 0.5
        if index < MIN_VOCABULARY:
            figure = f"{len(set(words))} different words in {len(words)}"
            return "few_different_words", f"{figure}, Guiraud's index {index:.1f} < {MIN_VOCABULARY}"
    return None


def _top_phrase(words: list[str], size: int) -> tuple[str, float]:
    """Return the phrase of so many words that fills most of the text, and its share of the characters."""
    phrases = Counter(zip(*(words[at:] for at in range(size)), strict=False))
    filled = {phrase: n * sum(map(len, phrase)) for phrase, n in phrases.items() if n > 1}
    if not filled:
        return "", 0.0
    phrase = max(filled, key=lambda p: filled[p])
    return " ".join(phrase), filled[phrase] / sum(map(len, words))


def _repeated_share(words: list[str], size: int) -> float:
    seen: set[tuple[str, ...]] = set()
    covered = bytearray(len(words))
    for at in range(len(words) - size + 1):
        phrase = tuple(words[at : at + size])
        if phrase in seen:
            covered[at : at + size] = b"\x01" * size
        seen.add(phrase)
    return sum(covered) / len(words)
