"""The Ray Serve deployment around `api`. Only it and `run` import ray.

A replica loads its release itself, from names and paths, so that no weights travel. What does not belong here: the
cluster (`run`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from ray import serve

from ev_platform.serving.api import MAX_PENDING, create_api

if TYPE_CHECKING:
    from ev_platform.registry import Release

Loader = Callable[[Path, Path, str, str | None], "Release"]


def load_from_registry(data_root: Path, tasks_dir: Path, task_name: str, release_name: str | None) -> Release:
    """Load a registered model; the loader of every replica that is no test.

    Raises:
        UserError: If there is no such task or model.
    """
    from ev_platform.registry import load_release
    from ev_platform.storage import Store
    from ev_platform.tasks import get_task

    return load_release(Store(data_root), get_task(task_name, tasks_dir), release_name)


# A replica refuses beyond `MAX_PENDING` by itself, in OpenAI's error form. Serve's own bounds stand outside of that and
# answer a plain 503.
@serve.deployment(
    max_ongoing_requests=4 * MAX_PENDING,
    max_queued_requests=4 * MAX_PENDING,
    max_constructor_retry_count=1,  # what cannot be loaded now cannot be loaded in a second either
)
@serve.ingress()
class ModelServer:
    """One replica: one release in memory, and its HTTP application."""

    def __init__(
        self, load: Loader, data_root: Path, tasks_dir: Path, task_name: str, release_name: str | None
    ) -> None:
        release = load(data_root, tasks_dir, task_name, release_name)
        self._api = create_api(release, data_root)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
