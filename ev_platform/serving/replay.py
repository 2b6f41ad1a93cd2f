"""Asking a release over HTTP, as its users will: the same application, gate and bodies, on a port of this machine.

What belongs here: the round trip of questions before a promotion (the design's contract 7, served is evaluated). What
does not: Ray (`run`), which only carries the requests, and the comparison with what the evaluation gave (`registry`).
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from ev_platform.errors import UserError
from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.worker import LocalBackend

if TYPE_CHECKING:
    import httpx

    from ev_platform.registry import Release

# An answer of 256 tokens at 3 tokens a second, as of a model of several billion parameters on two cores, takes 85 s.
ANSWER_TIMEOUT_S = 120
_START_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 5


def replay(release: Release, questions: Sequence[str], max_tokens: int) -> list[str]:
    """Serve a release on a loopback port, post questions one after the other, and stop.

    Key and request log lie in a folder that is gone at the end: nobody else can ask there, and what was replayed does
    not count as asked.

    Args:
        release: What is to be served.
        questions: Messages of the user.
        max_tokens: Longest answer, as it was evaluated.

    Returns:
        The answers' texts, in the order of the questions.

    Raises:
        UserError: If the endpoint does not start, or does not answer a question with 200.
    """
    import httpx

    config = ServingConfig(request_timeout_s=ANSWER_TIMEOUT_S)
    backend = LocalBackend({release.model_version: LiveRelease(release, config=config)})
    with tempfile.TemporaryDirectory(prefix="ev-replay-") as folder:
        key = create_key(Path(folder), "replay", scopes=("query",), limits=UNLIMITED)
        with (
            served(create_api(backend, Path(folder), config), backend) as url,
            # No proxy of the environment stands between this process and itself.
            httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"},
                timeout=ANSWER_TIMEOUT_S,
                trust_env=False,
            ) as client,
        ):
            return [
                _ask(client, release.model_version, number, question, max_tokens)
                for number, question in enumerate(questions, 1)
            ]


def _ask(client: httpx.Client, model_version: str, number: int, question: str, max_tokens: int) -> str:
    import httpx

    body = {
        "model": model_version,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    try:
        reply = client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        raise UserError(
            f"{model_version} did not answer replayed question {number} ({type(error).__name__}): look at the log of "
            "this run for what failed in it."
        ) from error
    if reply.status_code != 200:
        raise UserError(
            f"{model_version} answered replayed question {number} with {reply.status_code}: "
            f"{reply.json()['error']['message']}"
        )
    return reply.json()["choices"][0]["message"]["content"]


@contextlib.contextmanager
def served(app: FastAPI, backend: LocalBackend | None = None) -> Iterator[str]:
    """Yield the address of an application that answers on a free loopback port; when the block ends, it is closed.

    Args:
        app: The application.
        backend: What it answers with, where that is to follow its aliases meanwhile and be closed at the end.

    Raises:
        UserError: If it does not start.
    """
    import uvicorn

    async def alive(scope: Scope, receive: Receive, send: Send) -> None:
        # An application's lifespan is one call that lasts as long as it.
        if scope["type"] == "lifespan" and backend:
            async with backend:
                await app(scope, receive, send)
        else:
            await app(scope, receive, send)

    config = uvicorn.Config(
        alive,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_STOP_TIMEOUT_S,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A daemon, so that an engine that hangs cannot keep the process from ending.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="replay", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise UserError("The endpoint did not start on a port of 127.0.0.1: look at the log of this run.")
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(2 * _STOP_TIMEOUT_S)
