"""Starting and stopping the server on this machine: a local Ray, one gateway, one or more replicas.

What does not belong here: the application (`api`, `app`), and clusters of more machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.cluster import local_ray
from ev_platform.errors import UserError, user_error_in
from ev_platform.serving import keys
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.endpoint import Endpoint

if TYPE_CHECKING:
    from ev_platform.serving.live import Loader

_APP = "ev_platform"


def serve(
    models: Sequence[str],
    *,
    data_root: Path,
    tasks_dir: Path,
    endpoint: Endpoint,
    config: ServingConfig,
    replicas: int = 1,
    on_ready: Callable[[str], None],
) -> None:
    """Serve models until SIGINT or SIGTERM; to be called in the main thread.

    Args:
        models: See `live.split_model`; the first answers requests that name none.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        endpoint: Where to listen.
        config: Limits and records.
        replicas: Copies of each model; all of them share the CPUs.
        on_ready: Called with the server's address once it answers.

    Raises:
        UserError: If there is no live key, no such model, or nothing can listen there.
    """
    with serving(
        models, data_root=data_root, tasks_dir=tasks_dir, endpoint=endpoint, config=config, replicas=replicas
    ) as url:
        # After Ray has started, whose own handler of SIGTERM aborts the process with its helpers left behind.
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        on_ready(url)
        stop.wait()


@contextlib.contextmanager
def serving(
    models: Sequence[str],
    *,
    data_root: Path,
    tasks_dir: Path,
    endpoint: Endpoint,
    config: ServingConfig | None = None,
    replicas: int = 1,
    load: Loader | None = None,
) -> Iterator[str]:
    """Yield the address of a server that answers; when the block ends, nothing of it is left running.

    Args:
        models: See `live.split_model`; the first answers requests that name none.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        endpoint: Where to listen.
        config: Limits and records.
        replicas: Copies of each model; all of them share the CPUs.
        load: How a replica gets its release; an importable function, by default from the registry.

    Raises:
        UserError: If there is no live key, no such model, or nothing can listen there.
    """
    # Replicas are other processes, which may stand in another folder.
    data_root, tasks_dir = data_root.resolve(), tasks_dir.resolve()
    check(models, data_root, tasks_dir, is_registered=load is None)
    endpoint.check()
    # Inherited by all that Ray starts. Between gateway and replicas: a quarter less work for each request than by actor
    # calls.
    os.environ["RAY_SERVE_USE_GRPC_BY_DEFAULT"] = "1"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - by default its processes yield to whatever else the machine does
    with local_ray(n_processes=len(models) * replicas) as n_cpus:
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(proxy_location="Disabled")
        servers = _ModelServers(load, data_root, tasks_dir, config or ServingConfig(), replicas, n_cpus)
        _deploy(models, servers, endpoint)
        try:
            yield endpoint.url
        finally:
            ray_serve.delete(_APP)  # waits for the answers under way


def check(models: Sequence[str], data_root: Path, tasks_dir: Path, *, is_registered: bool = True) -> None:
    """Tell what is wrong before a model is loaded.

    Args:
        models: See `live.split_model`.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        is_registered: Whether the models come from the registry.

    Raises:
        UserError: If a model is named twice or is not there, or there is no live key.
    """
    from ev_platform.registry import resolve
    from ev_platform.serving.live import split_model
    from ev_platform.storage import Store
    from ev_platform.tasks import get_task

    twice = next((model for number, model in enumerate(models) if model in models[:number]), None)
    if twice:
        raise UserError(f"{twice} is named twice: name each model once, and say how many copies with --replicas.")
    for model in models:
        task, name = split_model(model)
        if is_registered:
            get_task(task, tasks_dir)
            resolve(Store(data_root), task, name)
    if not keys.has_live_key(data_root, "query"):
        raise UserError(
            f"There is no live API key that may ask in {data_root / 'keys.json'}: make one with "
            "`ev-platform keys create NAME`."
        )


@dataclass(frozen=True)
class _ModelServers:
    """How the replicas of every model are made."""

    load: Loader | None
    data_root: Path
    tasks_dir: Path
    config: ServingConfig
    replicas: int
    n_cpus: int


def _deploy(models: Sequence[str], servers: _ModelServers, endpoint: Endpoint) -> None:
    """Start the gateway and the replicas, and wait until requests reach them."""
    from ray import serve as ray_serve

    from ev_platform.serving.app import ListeningGateway
    from ev_platform.serving.build import bind_models

    config = servers.config
    bound = bind_models(
        models,
        servers.load,
        servers.data_root,
        servers.tasks_dir,
        config,
        replicas=servers.replicas,
        cpus=servers.n_cpus // (len(models) * servers.replicas),
    )
    try:
        gateway = ListeningGateway.bind(bound, servers.data_root, config, endpoint)
        ray_serve.run(gateway, name=_APP, route_prefix=None)
    except RuntimeError as error:
        # What failed in a replica arrives as the text of its traceback, in the deployment's status.
        deployments = ray_serve.status().applications[_APP].deployments.values()
        failures = "\n".join(deployment.message for deployment in deployments if deployment.message)
        raise user_error_in(failures) or RuntimeError(failures) from error
