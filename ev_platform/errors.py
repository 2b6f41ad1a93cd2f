"""The one error type for what a person can put right.

Bugs raise whatever Python raises; this is for bad input: a missing file, a malformed row, an unreachable seed.
"""

from __future__ import annotations

import re


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    The CLI prints the sentence without a traceback; in the Dagster UI it is the failure's message.
    """


def user_error_in(text: str) -> UserError | None:
    """Return the `UserError` that a traceback tells of, such as Ray brings from another process; None if of none."""
    told = re.search(r"UserError: (.+)", text)
    return UserError(told[1]) if told else None
