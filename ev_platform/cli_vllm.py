"""The command that writes what a GPU engine needs to serve a version (`ev-platform models vllm`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from ev_platform.settings import get_settings
from ev_platform.terminal import plain_errors, say


@plain_errors
def models_vllm(
    model: Annotated[str, typer.Argument(help="Task, TASK@ALIAS or TASK@NUMBER.")] = "ev_charging",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("vllm.yaml"),
    host: Annotated[str, typer.Option(help="Address the engine listens on; it asks for no key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    replicas: Annotated[int, typer.Option(min=1, help="Engines, each with its own GPUs.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of one engine.")] = 1,
    accelerator: Annotated[str | None, typer.Option(help="Ray's name of the GPU, such as A100.")] = None,
) -> None:
    """Write the configuration that runs a version on vLLM by `serve run`, on a machine with GPUs.

    Example: `ev-platform models vllm ev_charging@3 --out vllm.yaml`
    """
    from ev_platform.serving.live import split_model
    from ev_platform.serving.vllm import serve_config
    from ev_platform.storage import Store

    config = serve_config(
        Store(get_settings().data_root),
        *split_model(model),
        host=host,
        port=port,
        replicas=replicas,
        gpus=gpus,
        accelerator=accelerator,
    )
    out.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    served = config["applications"][0]["args"]["llm_configs"][0]["model_loading_config"]
    say(
        f"Wrote {out}: {served['model_id']} from {served['model_source']}. Start it where vLLM is installed: "
        f"`serve run {out}`."
    )
