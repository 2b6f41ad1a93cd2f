"""Which language a text is written in."""

from __future__ import annotations

import re
from functools import cache
from typing import Any


def detect_language(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's language and the probability that py3langid gives it."""
    # Link targets, code and table rules are no language; 5,000 characters decide it.
    words = re.sub(r"\]\([^)]*\)|`[^`]*`|[|#*_>-]", " ", text)[:5000]
    language, score = _language_identifier().classify(words)
    return language, float(score)


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
