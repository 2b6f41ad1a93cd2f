"""English text as the offline rules see it: plain sentences, and the part of speech of each of their words.

What does not belong here: subject, verb and object (`offline_grammar`), and which questions are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Words that refer to something outside the sentence: a question with one of them cannot stand alone.
DANGLING = re.compile(
    r"\b(it|its|itself|they|them|their|theirs|this|these|those|he|him|his|she|her|here|there|such|above|below|following"
    r"|former|latter|another|other|others|same|one of|each of|some of|either|neither|both|we|us|our|ours|you|your|yours"
    r"|i|my|me|so|therefore|thus|however|then|today|now|currently|recently|page|chapter|section|figure|article|table"
    r"|example|instance|else|too|even|all|anything|something|everything|nothing|everyone|anyone|someone)\b",
    re.IGNORECASE,
)
PRONOUN = re.compile(r"\b(?:it|this|these|those|they|them|its|their|we|our|you|your|he|she)\b", re.IGNORECASE)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*(?:\s\"[^\"]*\")?\)")
_MARK = re.compile(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w))")
_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")
_BREAK = re.compile(r"(?<=[.!?])\s+(?=[\"'(“]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:e\.g|i\.e|etc|vs|approx|incl|No|Nos|Dr|Mr|Mrs|Ms|St|Fig|Sec|Inc|Ltd|Co|(?<!\d )[A-Z])\.$"
)
_TOKEN = re.compile(r"[^\s,;:()\"“”.!?]+(?:[.,:!?][^\s,;:()\"“”.!?]+)*|[,;:()\"“”.!?]")
ADVERB = (
    "usually|normally|typically|generally|often|always|never|only|automatically|commonly|mostly|sometimes|rarely|seldom"
)
MODALS = ("must", "should", "may", "can", "shall", "might", "could", "cannot", "will", "would")
# One letter for each tag of the Penn Treebank, so that phrases are regular expressions.
_LETTERS = {
    "DT": "D", "PDT": "X", "PRP$": "O", "PRP": "Q", "JJ": "J", "JJR": "K", "JJS": "J", "NN": "N", "NNP": "N",
    "NNS": "S", "NNPS": "S", "CD": "C", "VBG": "G", "VBN": "V", "VBD": "T", "VBZ": "Z", "VBP": "H", "VB": "B",
    "MD": "M", "IN": "I", "TO": "t", "CC": "A", "RB": "R", "RBR": "R", "RBS": "R", "WDT": "W", "WP": "W", "WRB": "W",
    "WP$": "W", "EX": "Q", "RP": "R", "POS": "P", "FW": "N",
}  # fmt: skip
NOUN_PHRASE = r"D?(?:R?[JKV])*[JKNSCGV]*[NSC](?:\([^()]*\))?"
# Words that are never the first of a name.
_CLOSED = {"the", "a", "an", "every", "each", "most", "many", "some", "all", "no", "any", "only", "in", "on", "at",
           "if", "when", "for", "under", "with", "without", "before", "after", "to", "by", "from", "since",
           "between"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a passage.

    Attributes:
        text: Without list marks, links and emphasis, and without its full stop.
        raw: As it stands in the passage, which is the evidence.
    """

    text: str
    raw: str


def plain(text: str) -> str:
    """Return text without list marks, links and emphasis."""
    text = _LINK.sub(r"\1", _ITEM.sub("", text))
    return re.sub(r"\\([*_|#])", r"\1", _MARK.sub("", text)).strip()


def prose_lines(text: str) -> list[str]:
    """Return the lines of a Markdown passage that can hold sentences: no tables, code or headings."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if line.strip() and not re.match(r"\s*[|#>]", line)]


def split_sentences(line: str) -> Iterator[Sentence]:
    """Yield the sentences of a line that end with a full stop and have 4 to 45 words."""
    pending = ""
    for part in _BREAK.split(_ITEM.sub("", line).strip()):
        pending = f"{pending} {part}".strip()
        if _ABBREVIATION.search(pending):
            continue
        text = plain(pending)
        if text.endswith(".") and 4 <= len(text.split()) <= 45 and text[0].isupper():
            yield Sentence(text[:-1].strip(), pending)
        pending = ""


def lower_first(phrase: str) -> str:
    """Return a phrase as it stands inside a sentence: names and abbreviations keep their capital."""
    first, _, rest = phrase.partition(" ")
    low = first.lower()
    if low not in _CLOSED:
        # "Combo 2", "Energy Saving Trust", "OCPP", "British labels"
        if not first[1:].replace("-", "").islower() or re.match(r"[A-Z][a-z]|[A-Z]\b|\d", rest):
            return phrase
        names = _lexicon()
        if (low.split("-")[0] not in names and low not in names) or (not rest and names.get(first) == "NNP"):
            return phrase
    return low + (f" {rest}" if rest else "")


def _lexicon() -> Any:
    from textblob.en import parser

    return parser.lexicon


def is_common_noun(word: str) -> bool:
    """Say whether a lower-case word is a noun of the language and no name."""
    return _lexicon().get(word) in {"NN", "NNS"}


def tokens(text: str) -> list[tuple[str, int, int]]:
    """Return (token, start, end) of a text; punctuation apart from the words."""
    return [(m[0], m.start(), m.end()) for m in _TOKEN.finditer(text)]


def tag(text: str) -> tuple[list[tuple[str, int, int]], str]:
    """Return the tokens of a text and one letter for each: its part of speech."""
    found = tokens(text)
    words = [re.sub(r"[/\s]", "-", token) for token, _, _ in found]
    return found, _letters(tuple(words))


@lru_cache(maxsize=4096)
def _letters(words: tuple[str, ...]) -> str:
    from textblob.en import tag as textblob_tag

    if not words:
        return ""
    tagged = textblob_tag(" ".join(words), tokenize=False)
    if len(tagged) != len(words):
        return "?" * len(words)
    letters = "".join(
        _letter(word, tag_, i == 0) for i, (word, (_, tag_)) in enumerate(zip(words, tagged, strict=True))
    )
    # What an article introduces is a noun, whatever else it may be: "a pull", "the long test".
    return re.sub(r"(?<=D)(J*)B(?![DO])", r"\1N", letters)


def _letter(word: str, tag_: str, is_first: bool) -> str:
    low = word.lower()
    if word in "()":
        return word
    if not re.search(r"\w", word):
        return "," if word in ",;:" else "."
    if low in {"is", "are", "was", "were"}:
        return "Z"
    if low in MODALS:
        return "M"
    if low in {"of", "in", "for", "on", "at", "from", "between", "with", "without", "under", "per", "by", "to"}:
        return "i"
    if low in {"not"}:
        return "!"
    if re.fullmatch(ADVERB, low):
        return "R"
    if low in {"that", "which", "who"}:
        return "w"
    if low in {"whose", "where", "when", "while", "if", "because", "than", "whether", "until"}:
        return "W"
    if re.fullmatch(r"[\d.,–-]*\d[\d.,–-]*%?", word):
        return "C"
    if re.search(r"\d", word) or (word[1:] != low[1:]) or (word[0].isupper() and not is_first):
        return "N"
    if re.search(r"['’]s?$", word):
        return "J"
    return _LETTERS.get(tag_, "?")
