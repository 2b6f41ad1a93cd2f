"""A browser to look at the application with, and an engine whose words a test knows."""

import contextlib
import shutil

import pytest

from ev_platform.collect.browser import _NAMES
from ev_platform.decoding import Completion
from ev_platform_tests.serving import fakes

needs_browser = pytest.mark.skipif(
    not any(shutil.which(name) for name in _NAMES), reason="no Chromium is installed on this machine"
)


class SayingEngine(fakes.FakeEngine):
    """Says what it was made with, whatever it is asked."""

    def __init__(self, text):
        super().__init__()
        self._text = text

    def generate(self, prompts, **options):
        return [Completion(self._text, c.n_prompt_tokens, 5, 1.0, "stop") for c in super().generate(prompts, **options)]


@contextlib.contextmanager
def chromium():
    """Yield a headless browser."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, _NAMES)))
    with sync_playwright() as driver:
        # Tests may run as root, where Chromium has no sandbox; it opens nothing but pages of this machine.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
