import os
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from ev_platform.collect.site import serve_folder


def test_serve_folder_answers_if_modified_since_with_304(tmp_path):
    (tmp_path / "a.html").write_text("hello")
    os.utime(tmp_path / "a.html", (1_000_000_000, 1_000_000_000))
    with serve_folder(tmp_path) as root:
        with urlopen(root + "a.html") as answer:
            assert answer.read() == b"hello"
            since = answer.headers["Last-Modified"]
        with pytest.raises(HTTPError) as caught:
            urlopen(Request(root + "a.html", headers={"If-Modified-Since": since}))
        assert caught.value.code == 304
    with pytest.raises(OSError, match="refused"):
        urlopen(root + "a.html")


def test_serve_folder_stays_inside_the_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with serve_folder(tmp_path / "inside") as root, pytest.raises(HTTPError) as caught:
        urlopen(root + "%2e%2e/secret.txt")
    assert caught.value.code == 404
