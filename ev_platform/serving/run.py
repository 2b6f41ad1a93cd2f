"""Starting and stopping the server on this machine: a local Ray, one proxy, one or more replicas.

What does not belong here: the application (`api`, `app`), and clusters of more machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ev_platform.errors import UserError
from ev_platform.serving import keys

if TYPE_CHECKING:
    from ev_platform.serving.live import Loader

_APP = "ev_platform"
# Ray's sockets lie up to 66 characters below its folder (/session_<date>_<time>_<pid>/sockets/plasma_store), and a
# socket's path may have 103 bytes on macOS, 107 on Linux.
_LONGEST_RAY_FOLDER = 103 - 66


def serve(
    task_name: str,
    *,
    data_root: Path,
    tasks_dir: Path,
    release_name: str | None,
    host: str,
    port: int,
    replicas: int = 1,
    on_ready: Callable[[str], None],
) -> None:
    """Serve a task's model until SIGINT or SIGTERM; to be called in the main thread.

    Args:
        task_name: Task.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        release_name: Alias, which is followed wherever it moves, or version; None is the champion.
        host: Address to listen on.
        port: Port to listen on.
        replicas: Copies of the model, each with its share of the CPUs.
        on_ready: Called with the server's address once it answers.

    Raises:
        UserError: If there is no live key, no such model, or the address is taken.
    """
    with serving(
        task_name,
        data_root=data_root,
        tasks_dir=tasks_dir,
        release_name=release_name,
        host=host,
        port=port,
        replicas=replicas,
    ) as url:
        # After Ray has started, whose own handler of SIGTERM aborts the process with its helpers left behind.
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        on_ready(url)
        stop.wait()


@contextlib.contextmanager
def serving(
    task_name: str,
    *,
    data_root: Path,
    tasks_dir: Path,
    release_name: str | None = None,
    host: str,
    port: int,
    replicas: int = 1,
    load: Loader | None = None,
) -> Iterator[str]:
    """Yield the address of a server that answers; when the block ends, nothing of it is left running.

    Args:
        task_name: Task.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        release_name: Alias, which is followed wherever it moves, or version; None is the champion.
        host: Address to listen on.
        port: Port to listen on.
        replicas: Copies of the model, each with its share of the CPUs.
        load: How a replica gets its release; an importable function, by default from the registry.

    Raises:
        UserError: If there is no live key, no such model, or the address is taken.
    """
    # Replicas are other processes, which may stand in another folder.
    data_root, tasks_dir = data_root.resolve(), tasks_dir.resolve()
    if not any(key.revoked_at is None for key in keys.list_keys(data_root)):
        raise UserError(
            f"There is no live API key in {data_root / 'keys.json'}: make one with `ev-platform keys create NAME`."
        )
    check_address(host, port)
    with _local_ray(replicas) as n_cpus:
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        _deploy(load, (data_root, tasks_dir, task_name, release_name), replicas, n_cpus // replicas)
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            ray_serve.delete(_APP)  # waits for the answers under way


def check_address(host: str, port: int) -> None:
    """Raise a `UserError` if nothing can listen there."""
    # Serve's proxies share ports (SO_REUSEPORT): without this, two servers on one port would take turns.
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host} port {port} ({error.strerror}): stop what uses it, or choose another "
            "with --port or EV_PORT."
        ) from error


@contextlib.contextmanager
def _local_ray(replicas: int) -> Iterator[int]:
    """Start Ray on this machine only; yield its number of CPUs."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # elsewhere too: Ray then listens on loopback only
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported and inherited by all it starts
    import ray

    # Ray counts CPUs, and does not measure them: it must be promised at least one for each replica.
    n_cpus = max(os.cpu_count() or 1, replicas)
    is_short = len(tempfile.gettempdir()) + len("/ev-12345678") <= _LONGEST_RAY_FOLDER
    folder = tempfile.mkdtemp(prefix="ev-", dir=None if is_short else f"{os.sep}tmp")
    try:
        ray.init(
            address="local",
            num_cpus=n_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield n_cpus
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _deploy(
    load: Loader | None, names: tuple[Path, Path, str, str | None], replicas: int, cpus_per_replica: int
) -> None:
    """Start the replicas and wait until requests reach them."""
    from ray import serve as ray_serve

    from ev_platform.serving.app import ModelServer
    from ev_platform.serving.live import load_from_registry

    # Ray sets OMP_NUM_THREADS of a process to the CPUs that it was promised.
    server = ModelServer.options(num_replicas=replicas, ray_actor_options={"num_cpus": cpus_per_replica})
    try:
        ray_serve.run(server.bind(load or load_from_registry, *names), name=_APP, route_prefix="/")
    except RuntimeError as error:
        # What failed in a replica arrives as the text of its traceback, in the deployment's status.
        failure = ray_serve.status().applications[_APP].deployments[ModelServer.name].message
        sentence = re.search(r"UserError: (.+)", failure)
        if sentence is None:
            raise RuntimeError(failure) from error
        raise UserError(sentence[1]) from error
