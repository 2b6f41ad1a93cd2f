"""Which language a text is written in, and how much of it.

What belongs here: detection. What does not: which languages a task keeps (`CorpusConfig.languages`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import Any

# py3langid's probability saturates at 1.0 after some 200 characters, also for a page half in another language; blocks
# of this size are long enough to be sure of and short enough to be of one language.
BLOCK_CHARS = 300
MAX_BLOCKS = 40  # spread over the text: a long page need not be read whole
# The page's own declaration decides where the detector finds its first choice in less than this share of the text and
# the declared language in not much less. No more than that: 12 of 137 real pages declare a language they are not in.
UNSURE_BELOW = 0.6
LIKELY_FROM = 0.5  # of the first choice's share
MIN_PROSE_CHARS = 20


def detect_language(text: str, declared: str | None = None) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's language and the share of the text that is written in it.

    Args:
        text: Markdown; code, addresses and table rules are no language and are left out.
        declared: ISO 639-1 code that the page declares; heard only where the detector is unsure.

    Returns:
        The code and the share, 0 to 1; `und` and 0 for a text without a letter.
    """
    if not re.search(r"[^\W\d_]", text):
        return "und", 0.0
    blocks = _blocks(_words_only(text))
    shares: dict[str, float] = defaultdict(float)
    total = sum(map(len, blocks)) or 1
    for block in blocks:
        for language, probability in _language_identifier().rank(block)[:5]:
            shares[language] += float(probability) * len(block) / total
    best = max(shares, key=lambda language: (shares[language], language))
    if declared and shares[best] < UNSURE_BELOW and shares.get(declared, 0.0) >= LIKELY_FROM * shares[best]:
        best = declared
    return best, round(min(1.0, shares[best]), 4)


def _words_only(text: str) -> str:
    prose = re.sub(r"^```.*?(?:^```|\Z)", " ", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)\s]{0,2000}\)|`[^`\n]{0,2000}`", " ", prose)
    prose = " ".join(word.strip("|#*<>=~[](){}-\\") for word in prose.split() if not _is_code(word))
    if len(prose) < MIN_PROSE_CHARS:  # a page that is all code is judged by what it has
        prose = re.sub(r"[`|#*-]", " ", text)
    prose = " ".join(prose.split())
    # The detector has learnt from sentences; to it, capitals throughout are another language.
    return prose.lower() if sum(map(str.isupper, prose)) > len(prose) / 2 else prose


def _is_code(word: str) -> bool:
    """Whether a word is an address, a path, an identifier or a figure: what holds such a mark, or a capital inside."""
    return bool(re.search(r"[\d_/@]|[a-z][A-Z]", word))


def _blocks(prose: str) -> list[str]:
    n = max(1, round(len(prose) / BLOCK_CHARS))
    size = -(-len(prose) // n) or 1
    blocks = [prose[at : at + size] for at in range(0, len(prose), size)] or [""]
    return blocks[:: -(-len(blocks) // MAX_BLOCKS)]


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
