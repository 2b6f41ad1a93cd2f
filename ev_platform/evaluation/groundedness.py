"""How much of an answer stands in the passages that it was given.

What does not belong here: whether a passage supports an answer to its question (`dataset.grounding`, whose reading of
words and numbers this shares), and whether the answer is right (`metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ev_platform.dataset.grounding import content_stems, is_held
from ev_platform.dataset.quantities import Quantity, quantities

# An answer is supported by its passages from this share of its content words. Of the labelled rows of
# ev_platform_tests/dataset/labelled.jsonl 93 % of the sound answers reach it with their passage, and 4 % with another.
# Words do not tell who did what: a third of the answers there that misuse what their passage holds reach it too.
MIN_GROUNDED = 0.8


def groundedness(answer: str, passages: Sequence[str]) -> float:
    """Return the share of an answer's content words and numbers that stand in its passages, 0 to 1.

    Words count by their English stems and without stop words, each as often as the answer holds it. A number counts as
    one word together with its unit and has to be there as it is, in the same or another unit of the same amount
    (`22kW`, `two weeks` for `14 days`); a number without a unit stands for any. An answer that has neither words of
    content nor numbers ("Yes.") claims nothing of its own, so that its share is 1. An answer that declines says
    nothing of the passages either: leave it out (`is_abstention`).

    Args:
        answer: What a system answered.
        passages: What it was given.
    """
    numbers = quantities(answer)
    units = {stem for number in numbers if number.kind for stem in content_stems(number.noun)}
    words = [stem for stem in content_stems(_without(answer, numbers)) if stem not in units]
    if not words and not numbers:
        return 1.0
    read = [_read(passage) for passage in passages]
    held = frozenset[str]().union(*(stems for stems, _ in read))
    n_held = sum(is_held(stem, held) for stem in words)
    n_held += sum(any(number.agrees(other) for _, known in read for other in known) for number in numbers)
    return n_held / (len(words) + len(numbers))


@lru_cache(maxsize=4096)
def _read(passage: str) -> tuple[frozenset[str], tuple[Quantity, ...]]:
    return frozenset(content_stems(passage)), tuple(quantities(passage))


def _without(text: str, numbers: Sequence[Quantity]) -> str:
    for number in reversed(numbers):
        text = f"{text[: number.start]} {text[number.end :]}"
    return text
