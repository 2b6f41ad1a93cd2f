"""`sources.yaml`: what a task collects."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, HttpUrl

from ev_platform.tasks.models import Strict


class Mirror(Strict):
    """A folder that stands for a site: it is served on loopback while its pages are fetched over HTTP.

    Attributes:
        base_url: Pages below it come from the folder; documents keep this address.
        folder: Relative to the task's folder.
    """

    base_url: HttpUrl
    folder: str


class Sources(Strict):
    """What to collect (`sources.yaml`).

    Attributes:
        seeds: Where the crawl starts.
        allowed_hosts: Hosts that may be fetched from, `host` or `host:port`; by default those of the seeds.
        max_depth: Links to follow away from a seed.
        max_pages: Upper bound of fetched addresses.
        max_bytes: Upper bound of one body.
        concurrency: Simultaneous requests.
        per_host_concurrency: Simultaneous requests to one host.
        delay_s: Pause between two requests to one host; a longer Crawl-delay in robots.txt wins, and a host that asks
            for more than a minute is not fetched.
        timeout_s: For one request.
        obey_robots: Whether robots.txt, and robots rules inside pages, bind.
        sitemaps: Whether addresses are also taken from the seeds' hosts' sitemaps.
        fetcher: `http`, or `browser` for pages that scripts build: what was fetched is rendered in Chromium.
        licence: Of pages that declare none.
        publisher: Of pages that declare none.
        pdfs: Globs of PDF files, relative to the task's folder or absolute.
        texts: Globs of Markdown or plain text files, likewise.
        mirrors: Sites that lie in a folder.
    """

    seeds: tuple[HttpUrl, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_depth: int = Field(default=3, ge=0)
    max_pages: int = Field(default=500, ge=1)
    max_bytes: int = Field(default=20_000_000, ge=1_000)
    concurrency: int = Field(default=8, ge=1, le=64)
    per_host_concurrency: int = Field(default=4, ge=1, le=64)
    delay_s: float = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=20.0, gt=0)
    obey_robots: bool = True
    sitemaps: bool = True
    fetcher: Literal["http", "browser"] = "http"
    licence: str = "unknown"
    publisher: str = "unknown"
    pdfs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
