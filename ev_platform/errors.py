"""The one error type for what a person can put right.

Bugs raise whatever Python raises; this is for bad input: a missing file, a malformed row, an unreachable seed.
"""


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do.

    The CLI prints the sentence without a traceback; in the Dagster UI it is the failure's message.
    """
