"""Pages that scripts build: the HTML that was fetched is rendered in Chromium, which has no network of its own.

The page's own address is answered with the bytes at hand; its scripts and their requests go through the same fetcher
as everything else, so that hosts, robots.txt, private addresses and sizes are checked for them too. What does not
belong here: fetching (`fetch`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.collect.transfer import Answer
from ev_platform.collect.urls import normalise
from ev_platform.errors import UserError
from ev_platform.settings import get_settings

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserType, Request, Route

_log = logging.getLogger(__name__)
_FETCHED = ("script", "xhr", "fetch")  # images, fonts, media, style sheets and frames give no text to the page
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAX_REQUESTS = 100  # of one page
_MAX_PAGES = 4  # at once; each is a process of some 100 MB
_MAX_KEPT_BYTES = 20_000_000  # of scripts, which the pages of a site share
# Left away: how the body was packed, and what would keep the page from its own scripts.
_OWN_HEADERS = frozenset(
    ["connection", "content-encoding", "content-length", "content-security-policy", "set-cookie", "transfer-encoding"]
)
# No name and no address resolves, and all traffic would go through a proxy that is not there: so what the interception
# does not see (preconnect, WebRTC, WebTransport) leads nowhere.
_PROXY = "http://proxy.invalid:1"
_ARGUMENTS = [
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-bypass-list=<-loopback>",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
]
# The charset that the page declares is not that of the text that comes out.
_SERIALISE = """max => {
    for (const meta of document.querySelectorAll('meta[charset], meta[http-equiv="content-type" i]')) meta.remove();
    const charset = document.createElement('meta');
    charset.setAttribute('charset', 'utf-8');
    document.head.prepend(charset);
    const text = '<!DOCTYPE html>' + document.documentElement.outerHTML;
    return text.length > max ? null : text;
}"""


class Renderer:
    """One Chromium, started for the first page. Every page has its own profile, so that none knows of another.

    Args:
        fetch: Answers the requests of scripts.
        max_bytes: Upper bound of a rendered page.
        timeout_s: For one page.
        user_agent: That scripts see.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Answer]], *, max_bytes: int, timeout_s: float, user_agent: str):
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._user_agent = user_agent
        self._stack = AsyncExitStack()
        self._browser: Browser | None = None
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(_MAX_PAGES)
        self._scripts: dict[str, Answer] = {}

    async def render(self, answer: Answer) -> bytes:
        """Return the page as its scripts leave it once they ask for nothing more, or when the time is up.

        Args:
            answer: With the page's HTML.

        Returns:
            HTML in UTF-8, which it declares. What cannot be rendered (it hangs, or grows beyond `max_bytes`) comes
            back as it was fetched, with a warning.

        Raises:
            UserError: If there is no Chromium.
        """
        from playwright.async_api import Error

        async with self._slots:
            browser = await self._started()
            try:
                # The page has until `timeout_s`; a little more is for one whose scripts never let go.
                text = await asyncio.wait_for(self._render(browser, answer), self._timeout_s + 5)
            except (Error, TimeoutError) as error:
                reason = str(error).partition("\n")[0] or f"no end within {self._timeout_s:g} s"
                _log.warning("%s could not be rendered (%s); its HTML is kept as it came", answer.url, reason)
                return answer.body
        if not isinstance(text, str):
            _log.warning("%s renders to more than %d bytes; its HTML is kept as it came", answer.url, self._max_bytes)
            return answer.body
        return text.encode("utf-8", "replace")

    async def close(self) -> None:
        """End the browser, if one was started."""
        await self._stack.aclose()

    async def _started(self) -> Browser:
        from playwright.async_api import async_playwright

        async with self._starting:
            if self._browser is None or not self._browser.is_connected():
                await self._stack.aclose()
                driver = await self._stack.enter_async_context(async_playwright())
                self._browser = await _launch(driver.chromium)
                self._stack.push_async_callback(self._browser.close)
            return self._browser

    async def _render(self, browser: Browser, answer: Answer) -> object:
        from playwright.async_api import Error
        from playwright.async_api import TimeoutError as Late

        context = await browser.new_context(
            user_agent=self._user_agent, service_workers="block", accept_downloads=False
        )
        try:
            await context.route("**/*", self._answerer(answer))
            await context.route_web_socket("**/*", lambda socket: socket.close())
            page = await context.new_page()
            end = asyncio.get_running_loop().time() + self._timeout_s
            try:
                await page.goto(answer.url, wait_until="networkidle", timeout=self._timeout_s * 1000)
            except Late:
                _log.warning("%s still asks for more after %g s; it is taken as it is", answer.url, self._timeout_s)
            if not page.url.startswith(("http:", "https:")):
                raise Error(f"it went away to {page.url[:100]}")
            left_s = max(end - asyncio.get_running_loop().time(), 1.0)
            return await asyncio.wait_for(page.evaluate(_SERIALISE, self._max_bytes), left_s)
        finally:
            await context.close()

    def _answerer(self, page: Answer) -> Callable[[Route, Request], Awaitable[None]]:
        from playwright.async_api import Error

        n_requests = 0

        async def answer(route: Route, request: Request) -> None:
            nonlocal n_requests
            n_requests += 1
            try:
                if n_requests == 1:
                    await route.fulfill(status=200, headers=_headers(page), body=page.body)
                    return
                if request.resource_type == "document":  # a frame, or a way out of the page
                    await route.abort("aborted")  # any other error would put Chromium's error page in its place
                    return
                wanted = request.method == "GET" and request.resource_type in _FETCHED
                url = normalise(request.url) if wanted and n_requests <= _MAX_REQUESTS else None
                got = await self._subresource(url, request.resource_type) if url else None
                if got is None or got.status is None or (got.drop_reason and not got.drop_reason.startswith("http_")):
                    await route.abort()
                else:
                    await route.fulfill(status=got.status, headers=_headers(got), body=got.body)
            except Error:
                pass  # the page has been closed meanwhile

        return answer

    async def _subresource(self, url: str, kind: str) -> Answer:
        if url in self._scripts:
            return self._scripts[url]
        answer = await self._fetch(url)
        if kind == "script" and not answer.drop_reason:
            if sum(len(kept.body) for kept in self._scripts.values()) + len(answer.body) > _MAX_KEPT_BYTES:
                self._scripts.clear()
            self._scripts[url] = answer
        return answer


async def _launch(chromium: BrowserType) -> Browser:
    from playwright.async_api import Error

    program = _find_browser(chromium.executable_path)
    # Chromium's sandbox does not work for root, nor in containers that know no user namespaces.
    for has_sandbox in (True, False) if os.geteuid() else (False,):
        try:
            browser = await chromium.launch(
                executable_path=program,
                args=_ARGUMENTS,
                ignore_default_args=["--disable-popup-blocking"],
                chromium_sandbox=has_sandbox,
                proxy={"server": _PROXY},
            )
        except Error as error:
            reason = error.message.partition("\n")[0]
        else:
            if not has_sandbox:
                _log.warning("Chromium runs without its sandbox here; render pages of strangers as a user of its own")
            return browser
    raise UserError(
        f"{program} does not start ({reason}): install a Chromium that does, or name it in EV_BROWSER_PATH."
    )


def _headers(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in _OWN_HEADERS}


def _find_browser(of_playwright: str) -> str:
    chosen = get_settings().browser_path
    if chosen is not None:
        if not chosen.is_file():
            raise UserError(f"EV_BROWSER_PATH is {chosen}, which is no file: name a Chromium or Chrome program.")
        return str(chosen)
    if Path(of_playwright).is_file():
        return of_playwright
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise UserError(
            "sources.yaml says `fetcher: browser`, but there is no Chromium: install one (`playwright install "
            "chromium`, or your system's package chromium), or name one in EV_BROWSER_PATH."
        )
    return found
