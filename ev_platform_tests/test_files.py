import os

import pytest

from ev_platform.files import write_atomic


def test_write_atomic_that_fails_keeps_the_old_bytes_and_no_scratch_file(tmp_path, monkeypatch):
    file = tmp_path / "a"
    write_atomic(file, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
