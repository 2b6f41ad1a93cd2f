"""What the rows and columns of a table mean, read from where they are declared, so that it is written once.

What belongs here: docstrings and comments of the row classes as texts. What does not: the columns' types (`columns`).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

from ev_platform.syntax import parse


def row_text(row_class: type) -> str:
    """Return what one row of a class is, in a sentence, without the names of the tables that hold it."""
    first = " ".join((row_class.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r" \(`[^)]*\)", "", first)


def column_texts(row_class: type) -> dict[str, str]:
    """Return the comment beside each column of a row class; columns whose name says it all have none."""
    return _texts_of_module(row_class.__module__)[row_class.__name__]


@cache
def _texts_of_module(name: str) -> dict[str, dict[str, str]]:
    source = Path(sys.modules[name].__file__ or "").read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.name: {
            field.target.id: " ".join(comments[line] for line in _lines_of(field, comments))
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if _lines_of(field, comments)
        }
        for node in parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _lines_of(field: ast.AnnAssign, comments: dict[int, str]) -> list[int]:
    return [line for line in range(field.lineno, (field.end_lineno or field.lineno) + 1) if line in comments]
