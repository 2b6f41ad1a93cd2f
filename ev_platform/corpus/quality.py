"""Whether a text is prose worth learning from: published rules, each with its threshold's reason."""

from __future__ import annotations

from collections import Counter


def judge_quality(text: str, min_words: int, title: str = "") -> tuple[str, str] | None:
    """Return (reason, figure) if a text is no prose worth learning from, else None.

    The rules are those of Gopher (Rae et al. 2021, table A1) that make sense for reference pages. Its lower bound for
    words is ours to set; its bullet and ellipsis rules are left out because specifications are full of lists.
    """
    words = text.split()
    if len(words) < min_words:
        return "too_short", f"{len(words)} words < {min_words}"
    mean_length = sum(map(len, words)) / len(words)
    if not 3 <= mean_length <= 12:
        return "word_length", f"mean word length {mean_length:.1f} outside 3 to 12"
    letters = sum(any(c.isalpha() for c in word) for word in words) / len(words)
    if letters < 0.6:
        # Gopher asks for 0.8; tables of measured values are welcome here, lists of bare numbers are not.
        return "few_words", f"{letters:.2f} of the words hold a letter < 0.6"
    lines = [line for line in text.splitlines() if len(line) > 20]
    if lines:
        repeated = sum(n - 1 for n in Counter(lines).values()) / len(lines)
        if repeated > 0.3:
            return "repeated_lines", f"{repeated:.2f} of the lines are repeats > 0.3"
    return None
