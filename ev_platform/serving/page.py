"""The chat page at `/`: fixed files, sent with headers that let them load and run nothing from elsewhere.

It is a client of the API like any other and needs no key itself: the visitor enters one, which stays in the tab.

What does not belong here: the API that the page calls (`api`), keys (`gate`). The page itself is `static/`.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

_FILES = Path(__file__).parent / "static"
# Only files of this server, no inline script or style, no forms that are sent, no frame around the page, and no text
# that becomes markup: whatever a model or a page of the corpus writes stays text.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asks each time whether it has changed, so an upgrade never mixes old and new files
}


def add_page(app: FastAPI) -> None:
    """Serve the chat page at `/` and its files below `/static`."""
    # Systems map .js as they like, and browsers run no module of another type.
    mimetypes.add_type("text/javascript", ".js")
    app.mount("/static", _Files(directory=_FILES), name="static")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FILES / "index.html", headers=HEADERS)


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response
