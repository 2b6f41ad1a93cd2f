"""Source is read while other threads read source, and throw garbage away that runs code of its own."""

import ast
import gc
import inspect
import sys
import threading
from pathlib import Path

import pytest

from ev_platform.syntax import parse


class Garbage:
    def __init__(self):
        self.me = self

    def __del__(self):
        for _ in range(20):
            pass


@pytest.fixture
def busy():
    """Let threads take turns and garbage be collected all the time, and another thread parse."""
    interval, thresholds, is_over = sys.getswitchinterval(), gc.get_threshold(), threading.Event()

    def parse_too():
        while not is_over.is_set():
            for _ in range(50):
                Garbage()
            try:
                ast.parse("def parse(source, mode='exec', *, depth=0): pass\n" * 20)
            except SystemError:
                continue  # as it may, where Python has the fault

    other = threading.Thread(target=parse_too)
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50, 2, 2)
    other.start()
    yield
    is_over.set()
    other.join()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def test_parse_is_not_disturbed_by_another_thread_that_parses(busy):
    source = Path(inspect.__file__).read_text(encoding="utf-8").rpartition("\ndef ")[0]
    trees = set()
    for _ in range(10):
        for _ in range(50):
            Garbage()
        trees.add(ast.dump(parse(source)))
    assert len(trees) == 1
    assert gc.isenabled()


def test_parse_leaves_the_collector_off_where_it_was_off():
    gc.disable()
    try:
        parse("x = 1")
        assert not gc.isenabled()
    finally:
        gc.enable()
