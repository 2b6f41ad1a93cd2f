"""Sites that lie in a folder: served on loopback, so that they are crawled over real HTTP under their own addresses.

What does not belong here: fetching (`fetch`) and the platform's own HTTP endpoint (`serving`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ev_platform.errors import UserError
from ev_platform.tasks import Task


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 while the block runs; yield its root, such as `http://127.0.0.1:40123/`.

    The server answers `If-Modified-Since` with 304 and lists folders that have no `index.html`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Mirrors:
    """Translates between a site's own addresses and those that its folder is served at."""

    def __init__(self, served: dict[str, str]):
        """Take the loopback root of each base address."""
        # The longest base wins, so that a folder can stand for one part of a site that another folder stands for.
        self._served = dict(sorted(served.items(), key=lambda pair: -len(pair[0])))

    def served_url(self, url: str) -> str | None:
        """Return where the mirror of an address is served, or None where it is not mirrored."""
        for base, root in self._served.items():
            if url.startswith(base):
                return root + url[len(base) :]
        return None

    def own_url(self, url: str) -> str:
        """Return the site's own form of an address; addresses that are not a mirror's stay as they are."""
        for base, root in self._served.items():
            if url.startswith(root):
                return base + url[len(root) :]
        return url


@contextmanager
def serve_mirrors(task: Task) -> Iterator[Mirrors]:
    """Serve all mirrors of a task while the block runs.

    Raises:
        UserError: If a mirror's folder does not exist.
    """
    with ExitStack() as stack:
        served = {}
        for mirror in task.sources.mirrors:
            folder = task.folder / mirror.folder
            if not folder.is_dir():
                raise UserError(
                    f"{task.folder / 'sources.yaml'}: the mirror of {mirror.base_url} names the folder {folder}, which "
                    f"does not exist: put the site's files there, or remove the mirror."
                )
            base = str(mirror.base_url)
            served[base if base.endswith("/") else base + "/"] = stack.enter_context(serve_folder(folder))
        yield Mirrors(served)
