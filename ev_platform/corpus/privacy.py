"""Masking personal data: e-mail addresses, phone numbers, card-like numbers."""

from __future__ import annotations

import re

_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE)


def mask_personal_data(text: str) -> tuple[str, int]:
    """Return the text with personal data replaced by a mark such as `[email]`, and the number of replacements."""
    return _EMAIL.subn("[email]", text)
