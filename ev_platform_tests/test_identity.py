"""Ids and fingerprints: equal for what is the same, on every machine, and different for what is not."""

import os
import subprocess
import sys
import types
from dataclasses import replace
from datetime import timedelta
from math import nan

import pytest

from ev_platform.collect.bodies import blank_row
from ev_platform.identity import code_version, fingerprint, frame_fingerprint, short_id
from ev_platform.records import Metric, to_frame
from ev_platform.storage import now
from ev_platform.tasks.sources import Sources


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_fingerprint_is_the_same_in_another_process_with_another_hash_seed():
    script = "import sys; from ev_platform.identity import fingerprint; print(fingerprint({'é': ['x', 1.5, None]}))"
    answer = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": "77"}, capture_output=True, text=True
    )
    assert answer.stdout.strip() == fingerprint({"é": ["x", 1.5, None]})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", now(), {("a", "b"): 1}])
def test_fingerprint_of_what_json_cannot_hold_raises(value):
    with pytest.raises(TypeError):
        fingerprint({"value": value})


@pytest.mark.parametrize("value", [nan, float("inf")])
def test_fingerprint_of_a_number_that_json_cannot_hold_raises(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint([value])


def test_short_id_tells_parts_apart_that_join_to_the_same_text():
    assert short_id("chk", "ab", "c") != short_id("chk", "a", "bc")
    assert short_id("chk", "a").startswith("chk_")


def body(**changes):
    return to_frame("raw_pages", [replace(blank_row("https://a.example/", "web", Sources()), **changes)])


def test_frame_fingerprint_ignores_volatile_columns_only():
    row = {"fetched_at": now(), "checked_at": now(), "etag": "one"}
    first = frame_fingerprint("raw_pages", body(**row))
    assert first == frame_fingerprint(
        "raw_pages", body(**row | {"checked_at": now() + timedelta(days=7), "etag": "two", "last_modified": "today"})
    )
    assert first != frame_fingerprint("raw_pages", body(**row, status=200))


def test_frame_fingerprint_depends_on_the_order_of_rows():
    frame = to_frame("eval_report", [Metric(name, None, "f1", 1.0, None, None, 1) for name in ("base", "tuned")])
    assert frame_fingerprint("eval_report", frame) != frame_fingerprint("eval_report", frame.reverse())


def module(tmp_path, name, text):
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    made = types.ModuleType(name)
    made.__file__ = str(file)
    return made


def test_code_version_changes_with_what_the_code_does_and_not_with_its_comments(tmp_path):
    plain = module(tmp_path, "one", "def f(x):\n    return x + 1\n")
    explained = module(tmp_path, "two", '"""Says."""\n\ndef f(x):\n    """Adds."""\n    return x + 1  # one\n')
    other = module(tmp_path, "three", "def f(x):\n    return x + 2\n")
    assert code_version(plain) != code_version(other)
    assert code_version(explained) == code_version(module(tmp_path, "four", '"""."""\ndef f(x):\n  "."\n  return x+1'))


def test_code_version_of_a_package_covers_every_file_of_it(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    before = module(package, "__init__", "")
    first = code_version(before)
    (package / "inside.py").write_text("x = 1\n")
    assert code_version(before) != first
