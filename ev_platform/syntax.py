"""Reads Python source without being disturbed by other threads that do so."""

from __future__ import annotations

import ast
import gc
import threading

_parsing = threading.Lock()


def parse(source: str) -> ast.Module:
    """Return the syntax tree of a module.

    Up to Python 3.11.7 all threads share one count of the tree's depth, and `ast.parse` ends with a SystemError where
    another thread parses before it is done (https://github.com/python/cpython/issues/106905). Prefect and Dagster
    parse in threads of their own. While a tree is made another thread can come in only at a garbage collection.
    """
    with _parsing:
        was_collecting = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(source)
        finally:
            if was_collecting:
                gc.enable()
