"""Asking a release over HTTP, as its users will: the same application, gate and bodies, on a port of this machine.

What belongs here: the round trip of questions before a promotion (the design's contract 7, served is evaluated). What
does not: Ray (`run`), which only carries the requests, and the comparison with what the evaluation gave (`registry`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from ev_platform.errors import UserError
from ev_platform.serving.api import create_api
from ev_platform.serving.keys import create_key, revoke_key

if TYPE_CHECKING:
    import httpx

    from ev_platform.registry import Release

# An answer of 256 tokens at 3 tokens a second, as of a model of several billion parameters on two cores, takes 85 s.
ANSWER_TIMEOUT_S = 120
_START_TIMEOUT_S = 30
_STOP_TIMEOUT_S = 5


def replay(release: Release, data_root: Path, questions: Sequence[str], max_tokens: int) -> list[str]:
    """Serve a release on a loopback port, post questions one after the other, and stop.

    The key that it asks with is made for it and revoked at the end, whatever happens.

    Args:
        release: What is to be served.
        data_root: Where `keys.json` lies.
        questions: Messages of the user.
        max_tokens: Longest answer, as it was evaluated.

    Returns:
        The answers' texts, in the order of the questions.

    Raises:
        UserError: If the endpoint does not start, or does not answer a question with 200.
    """
    import httpx

    key = create_key(data_root, "replay")
    try:
        with (
            served(create_api(release, data_root)) as url,
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
    finally:
        revoke_key(data_root, key.split("_")[1])


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
def served(app: FastAPI) -> Iterator[str]:
    """Yield the address of an application that answers on a free loopback port; when the block ends, it is closed.

    Raises:
        UserError: If it does not start.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
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
