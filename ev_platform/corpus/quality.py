"""Whether a text is prose worth learning from: published rules, each with its threshold's reason.

What belongs here: rules on length, words and lines. What does not: repetition, of which spam is made (`repetition`),
and what a text is about (`relevance`).

From C4 (Raffel et al. 2020) come the two notices. Its rule on curly brackets would drop 6 of 51 real pages on charging,
and FineWeb's (Penedo et al. 2024) on closing punctuation, short and repeated lines 24 of them: code, tables and lists
of values are what a reference page is for, so these are left out.
"""

from __future__ import annotations

import re

from ev_platform.corpus.repetition import judge_repetition, prose_lines
from ev_platform.corpus.shingles import UNSPACED

# Gopher, Rae et al. 2021, table A1, where nothing else is said. Figures are those of real reference pages.
MIN_WORD_LENGTH = 3
MAX_WORD_LENGTH = 12  # Gopher: 10; a list of identifiers reaches 10.5
MIN_WORDS_WITH_LETTERS = 0.6  # Gopher: 0.8; specifications full of table rules have 0.63
MAX_SYMBOLS_PER_WORD = 0.15  # "#" and ellipses, without heading marks; Gopher: 0.1, which a list of devices passes
MAX_BULLET_LINES = 0.9  # lists reach 0.73
MAX_ELLIPSIS_LINES = 0.3
MIN_STOP_WORDS = 1  # Gopher: 2; an honest sales page of 100 words holds one
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
STOP_WORDS_FROM = 100  # words outside code and tables; ours, as shorter texts may hold none
NOTICE_WORDS = 150  # a longer page with a notice has more to say than the notice
# In scripts without spaces, each character counts as a word, as it does for duplicates.
_UNSPACED = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED) + "]")
NOT_FOUND = re.compile(r"(?:error\s*)?404\b|(?:page|file) (?:was )?not found\b|not found$", re.IGNORECASE)
NOTICE = re.compile(
    r"(?:enable|turn on|activate|requires?) javascript|javascript (?:is|must be) (?:disabled|required|enabled)",
    re.IGNORECASE,
)


def judge_quality(text: str, min_words: int, title: str = "", language: str = "en") -> tuple[str, str] | None:
    """Return (reason, figure) if a text is no prose worth learning from, else None.

    Args:
        text: Markdown.
        min_words: Gopher's lower bound of 50 is the task's to change.
        title: A page not found says so there.
        language: ISO 639-1; the stop words are English.
    """
    unspaced = _UNSPACED.findall(text)
    words = [*unspaced, *_UNSPACED.sub(" ", text).split()] if unspaced else text.split()
    if len(words) < min_words:
        return "too_short", f"{len(words)} words < {min_words}"
    if re.search(r"lorem ipsum", text, re.IGNORECASE):
        return "placeholder", "lorem ipsum"
    notice = NOTICE.search(text)
    if notice and len(words) < NOTICE_WORDS:
        return "script_notice", f"'{notice[0]}' in {len(words)} words < {NOTICE_WORDS}"
    if len(words) < NOTICE_WORDS and NOT_FOUND.match(title.strip()):
        return "not_found_page", f"'{title.strip()[:60]}' over {len(words)} words < {NOTICE_WORDS}"
    mean_length = sum(map(len, words)) / len(words)
    if len(unspaced) < len(words) / 2 and not MIN_WORD_LENGTH <= mean_length <= MAX_WORD_LENGTH:
        return "word_length", f"mean word length {mean_length:.1f} outside {MIN_WORD_LENGTH} to {MAX_WORD_LENGTH}"
    letters = sum(any(c.isalpha() for c in word) for word in words) / len(words)
    if letters < MIN_WORDS_WITH_LETTERS:
        return "few_words", f"{letters:.2f} of the words hold a letter < {MIN_WORDS_WITH_LETTERS}"
    prose = [word.lower() for line in prose_lines(text) for word in line.split()]
    if language == "en" and len(prose) >= STOP_WORDS_FROM:
        stops = STOP_WORDS.intersection(prose)
        if len(stops) < MIN_STOP_WORDS:
            return "no_sentences", f"{len(stops)} of the words {' '.join(sorted(STOP_WORDS))} < {MIN_STOP_WORDS}"
    verdict = _judge_lines(text, len(words))
    return verdict or judge_repetition(text)


def _judge_lines(text: str, n_words: int) -> tuple[str, str] | None:
    prose = "\n".join(prose_lines(text))
    symbols = max(prose.count("#"), len(re.findall(r"\.{3}|…", prose))) / n_words
    if symbols > MAX_SYMBOLS_PER_WORD:
        return "symbols", f"{symbols:.2f} '#' or ellipses per word > {MAX_SYMBOLS_PER_WORD}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bullets = sum(line.startswith(("- ", "* ", "+ ", "•")) for line in lines) / len(lines)
    if bullets > MAX_BULLET_LINES:
        return "bullets", f"{bullets:.2f} of the lines are list items > {MAX_BULLET_LINES}"
    ellipses = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    if ellipses > MAX_ELLIPSIS_LINES:
        return "ellipses", f"{ellipses:.2f} of the lines end in an ellipsis > {MAX_ELLIPSIS_LINES}"
    return None
