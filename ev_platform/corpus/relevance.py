"""How much a page is about the task's domain, judged from the task's description in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ev_platform.retrieval import embed

# Embedding windows: MiniLM reads 256 tokens, about 180 English words.
WINDOW_WORDS = 180
MAX_WINDOWS = 8


def relevances(pages: Sequence[Mapping[str, Any]], description: str) -> list[float]:
    """Return how much each page is about the described task: the mean cosine of its windows and the description.

    The mean, and not the best window, is what a page is *about*: a garden page with one sentence on chargers stays a
    garden page.

    Args:
        pages: With `text`, `title` and `url`.
        description: The task in words.
    """
    windows: list[str] = []
    owner: list[int] = []
    for index, page in enumerate(pages):
        words = page["text"].split()
        starts = range(0, max(1, len(words)), WINDOW_WORDS)
        step = max(1, len(starts) // MAX_WINDOWS)
        for start in list(starts)[::step][:MAX_WINDOWS]:
            windows.append(" ".join(words[start : start + WINDOW_WORDS]))
            owner.append(index)
    if not windows:
        return []
    cosines = embed(windows) @ embed([description])[0]
    owners = np.array(owner)
    return [round(float(cosines[owners == index].mean()), 4) for index in range(len(pages))]
