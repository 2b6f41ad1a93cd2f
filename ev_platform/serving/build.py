"""The application as Ray Serve builds it on a cluster: `serve run ev_platform.serving.build:app models=ev_charging`.

A Serve configuration names it with `import_path` and `args` (`deploy/kuberay/rayservice.yaml`); everything else comes
from the environment of the cluster's machines (`settings`), which see the data folder under one path. The gateway here
stands behind Serve's proxies, which `front` makes speak OpenAI's error form.

What does not belong here: one machine's server, which brings its own Ray and listens by itself (`run`); the cluster.
"""

# No `from __future__ import annotations`: Serve reads the class of `app`'s argument from its signature.
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ev_platform.serving.config import ServingConfig
from ev_platform.settings import get_settings

if TYPE_CHECKING:
    from ray.serve import Application

    from ev_platform.serving.live import Loader


def _split(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value  # the command line gives text only


class Arguments(BaseModel):
    """What a Serve configuration may say.

    Attributes:
        models: See `live.split_model`; the first answers requests that name none. A command line has commas between.
        replicas: Copies of each model.
        cpus: Processors that each copy is promised, and so the threads that it computes with.
        data_dir: Data folder; EV_DATA_DIR where None.
        tasks_dir: Folder of task folders; EV_TASKS_DIR where None.
    """

    model_config = ConfigDict(extra="forbid")

    models: Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)] = ("ev_charging",)
    replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[int, Field(ge=1)] = 1
    data_dir: Path | None = None
    tasks_dir: Path | None = None


def app(args: Arguments) -> "Application":
    """Return the application that serves registered models.

    Raises:
        UserError: If there is no live key or no such model.
    """
    return behind_proxies(args)


def behind_proxies(args: Arguments, load: "Loader | None" = None) -> "Application":
    """Return the application, with another loader than the registry's where one is given.

    Raises:
        UserError: If there is no live key or no such model.
    """
    from ev_platform.serving.app import Gateway
    from ev_platform.serving.run import check

    settings = get_settings()
    data_root = args.data_dir.resolve() if args.data_dir else settings.data_root
    tasks_dir = args.tasks_dir.resolve() if args.tasks_dir else settings.tasks_root
    check(args.models, data_root, tasks_dir, is_registered=load is None)
    config = settings.serving
    servers = bind_models(args.models, load, data_root, tasks_dir, config, replicas=args.replicas, cpus=args.cpus)
    return Gateway.bind(servers, data_root, config)


def bind_models(
    models: Sequence[str],
    load: "Loader | None",
    data_root: Path,
    tasks_dir: Path,
    config: ServingConfig,
    *,
    replicas: int,
    cpus: int,
) -> dict[str, Any]:
    """Return a deployment for each model, under its name.

    Args:
        models: See `live.split_model`.
        load: How a replica gets its release; from the registry where None.
        data_root: Data folder.
        tasks_dir: Folder of task folders.
        config: Limits.
        replicas: Copies of each model.
        cpus: Processors that each copy is promised: Ray sets OMP_NUM_THREADS of its process to them.
    """
    from ev_platform.serving.app import ModelServer
    from ev_platform.serving.live import load_from_registry

    # A replica refuses by itself what would wait too long, in OpenAI's error form; Serve's own bounds stand outside.
    most_at_once = 4 * (config.max_waiting + config.max_batch)
    server = ModelServer.options(
        num_replicas=replicas,
        max_ongoing_requests=most_at_once,
        max_queued_requests=most_at_once,
        ray_actor_options={"num_cpus": cpus},
    )
    load = load or partial(load_from_registry, engine_url=config.engine_url)
    return {model: server.options(name=model).bind(load, data_root, tasks_dir, model, config) for model in models}
