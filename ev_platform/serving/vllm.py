"""The GPU engine: what Ray Serve needs to run a registered version's weights on vLLM, as a file for `serve run`.

vLLM lives in an environment of its own (extra `vllm`), because it needs an older FastAPI than the rest; so this is
configuration only, and nothing here imports Ray or vLLM. Questions reach it through the gateway, which finds passages
and makes the prompts as for any other engine.

What does not belong here: asking that engine, and everything about prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ev_platform.encoder import HEADS
from ev_platform.errors import UserError
from ev_platform.registry.versions import resolve
from ev_platform.storage import Store
from ev_platform.training.base import architecture_of, sha256_weights

IMPORT_PATH = "ray.serve.llm:build_openai_app"


def serve_config(
    store: Store,
    task: str,
    name: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    replicas: int = 1,
    gpus: int = 1,
    accelerator: str | None = None,
) -> dict[str, Any]:
    """Return the configuration of a Ray Serve application that completes prompts with a version's merged weights.

    The version is named by its number, never by an alias: an engine that is running does not follow promotions.

    Args:
        store: Where the weights lie.
        task: Whose model.
        name: Version or alias; the champion where None.
        host: Address to listen on. The engine asks for no key, so nobody but the gateway may reach it.
        port: Port to listen on.
        replicas: Engines, each with its own GPUs.
        gpus: Over which one engine spreads the weights.
        accelerator: Ray's name of the GPU, such as `A100`; any where None.

    Raises:
        UserError: If there is no such version, its merged weights are gone or altered, or vLLM cannot run them.
    """
    row = resolve(store, task, name)
    folder = _merged_weights(store, task, row)
    if (architecture_of(folder) or "").endswith(HEADS):
        raise UserError(f"{row['model_version']} is an encoder, which writes no text: it needs no GPU engine.")
    model: dict[str, Any] = {
        "model_loading_config": {"model_id": row["model_version"], "model_source": str(folder)},
        "engine_kwargs": {
            "max_model_len": json.loads((folder / "config.json").read_text())["max_position_embeddings"],
            "tensor_parallel_size": gpus,
            "enable_prefix_caching": True,  # the system message is the same in every prompt
            "generation_config": "vllm",  # else the model's own file adds sampling that was not evaluated
        },
        "deployment_config": {"num_replicas": replicas},
        "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}},
    }
    if accelerator is not None:
        model["accelerator_type"] = accelerator
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "applications": [
            {"name": "vllm", "route_prefix": "/", "import_path": IMPORT_PATH, "args": {"llm_configs": [model]}}
        ],
    }


def _merged_weights(store: Store, task: str, row: dict[str, Any]) -> Path:
    """Return the folder of the weights that a version's served form was made from, after comparing them."""
    version = row["model_version"]
    made_from = {
        json.loads(served["inputs"]).get("model")
        for record in store.history("serving_model", task)
        for served in store.read("serving_model", task, record.version).to_dicts()
        if served["artifact_id"] == row["serving_model_id"]
    }
    merged = [
        found
        for record in store.history("merged_model", task)
        for found in store.read("merged_model", task, record.version).to_dicts()
        if found["sha256"] in made_from
    ]
    folders = [store.local(found["path"]) for found in merged]
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        raise UserError(
            f"The merged weights of {version} are gone (`models prune` takes them): choose another version."
        )
    if sha256_weights(present[0])[0] not in made_from:
        raise UserError(
            f"The merged weights of {version} in {present[0]} are not those that it was made from (their SHA-256 "
            "differs): choose another version, or bring the files back from a backup."
        )
    return present[0]
