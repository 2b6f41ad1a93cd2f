"""The Ray Serve deployment around `api`. Only it and `run` import ray.

A replica loads its release itself, from names and paths, so that no weights travel. What does not belong here: the
cluster (`run`), loading and swapping (`live`).
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from ray import serve

from ev_platform.serving.api import create_api
from ev_platform.serving.live import Loader, open_release
from ev_platform.serving.worker import MAX_PENDING


# A replica refuses beyond `MAX_PENDING` by itself, in OpenAI's error form. Serve's own bounds stand outside of that and
# answer a plain 503.
@serve.deployment(
    max_ongoing_requests=4 * MAX_PENDING,
    max_queued_requests=4 * MAX_PENDING,
    max_constructor_retry_count=1,  # what cannot be loaded now cannot be loaded in a second either
)
@serve.ingress()
class ModelServer:
    """One replica: one release in memory, and its HTTP application.

    Several replicas that were started for an alias follow it each by itself.
    """

    def __init__(
        self, load: Loader, data_root: Path, tasks_dir: Path, task_name: str, release_name: str | None
    ) -> None:
        self._api = create_api(open_release(load, data_root, tasks_dir, task_name, release_name), data_root)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
