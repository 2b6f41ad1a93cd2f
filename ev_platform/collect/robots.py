"""What a site's robots.txt says to this crawler (RFC 9309).

What does not belong here: fetching the file and acting on what it says (`fetch`).
"""

from __future__ import annotations

from protego import Protego

from ev_platform.collect.urls import normalise

MAX_ROBOTS_BYTES = 512_000  # RFC 9309, section 2.5: at least 500 KiB must be read


class Robots:
    """The rules of one origin for one crawler.

    Args:
        body: The file's bytes, however broken; None where there is no file, which allows everything.
        origin: Such as `https://example.org`; relative sitemap lines count from it.
        user_agent: As it is sent. Groups are matched with its product token (`name` of `name/1.0 (+address)`), as
            RFC 9309, section 2.2.1, says: words of the comment are nobody's name. Agents that begin with `Mozilla/`
            have their name in the comment, so they are matched whole.

    Attributes:
        crawl_delay_s: As the file asks, else 0.
        sitemaps: Normalised addresses of the file's Sitemap lines, each once.
    """

    def __init__(self, body: bytes | None, origin: str, user_agent: str):
        is_browser_like = user_agent.startswith("Mozilla/")
        self._agent = user_agent if is_browser_like else user_agent.partition("/")[0].strip()
        self._rules = None
        self.crawl_delay_s = 0.0
        self.sitemaps: list[str] = []
        if body is not None:
            if len(body) >= MAX_ROBOTS_BYTES:
                body = body[:MAX_ROBOTS_BYTES].rpartition(b"\n")[0]  # half a line would be another rule
            self._rules = Protego.parse(body.decode("utf-8-sig", "replace"))
            self.crawl_delay_s = self._rules.crawl_delay(self._agent) or 0.0
            found = (normalise(line, origin) for line in self._rules.sitemaps)
            self.sitemaps = [url for url in dict.fromkeys(found) if url]

    def decision(self, url: str) -> str:
        """Return `allowed`, `disallowed`, or `none` where there is no file."""
        if self._rules is None:
            return "none"
        return "allowed" if self._rules.can_fetch(url, self._agent) else "disallowed"
