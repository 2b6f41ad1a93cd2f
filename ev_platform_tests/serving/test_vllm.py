"""Needs no GPU and no vLLM: the configuration is made from a registered version and read by Ray's own classes."""

import pytest
import yaml
from typer.testing import CliRunner

from ev_platform import registry
from ev_platform.cli import app
from ev_platform.errors import UserError
from ev_platform.serving.vllm import IMPORT_PATH, serve_config
from ev_platform_tests.registry.registered import HOLD, SERVING, PlainStore, artifact, write_weights
from ev_platform_tests.tiny import write_tiny_model
from ev_platform_tests.training.tiny_encoder import write_tiny_encoder


@pytest.fixture
def store(own_folders):
    return PlainStore(own_folders / "data")


def register(store, model_id, write=write_tiny_model):
    """Register a version with its merged weights; return its name and their folder."""
    folder = store.artifact_path("merged_model", model_id)
    write(folder)
    merged = artifact(store, "merged_model", model_id)
    write_weights(store, "serving_model", model_id)
    served = artifact(store, "serving_model", model_id, {"model": merged.item(0, "sha256")})
    store.publish("merged_model", "tiny", merged)
    store.publish("serving_model", "tiny", served)
    rows = registry.register(
        store,
        "tiny",
        serving_model=served,
        adapter=artifact(store, "adapter", model_id),
        training_set=("t1", "f1"),
        chunks=("c1", "c1"),
        serving=SERVING,
        benchmark_fingerprint="b1",
        template="p1",
        verdict=HOLD,
        reason="because",
        scores={},
    )
    store.publish("registered_model", "tiny", rows)
    return registry.name_candidate(store, "tiny")["candidate"], folder


def llm_config(config):
    return config["applications"][0]["args"]["llm_configs"][0]


def test_configuration_names_the_version_its_merged_weights_and_its_window(store):
    version, folder = register(store, "m1")
    register(store, "m2", lambda path: write_tiny_model(path, seed=2))
    model = llm_config(serve_config(store, "tiny", version, gpus=2, replicas=3, accelerator="A100"))
    assert model["model_loading_config"] == {"model_id": "tiny@1", "model_source": str(folder)}
    assert model["engine_kwargs"]["max_model_len"] == 2048
    assert model["engine_kwargs"]["tensor_parallel_size"] == 2
    assert model["deployment_config"] == {"num_replicas": 3}
    assert model["accelerator_type"] == "A100"


def test_command_writes_what_ray_serve_and_its_llm_config_accept(store, own_folders):
    from ray.serve.schema import ServeDeploySchema

    try:
        from ray.serve.llm import LLMConfig  # with the extra `vllm`
    except ImportError:
        from ray.llm._internal.serve.core.configs.llm_config import LLMConfig  # its base, which needs no engine

    version, folder = register(store, "m1")
    out = own_folders / "vllm.yaml"
    arguments = ["models", "vllm", "tiny@candidate", "--out", str(out), "--accelerator", "H100", "--port", "8123"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"tiny@1 from {folder}" in result.output

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(out.read_text()))
    (application,) = deployed.applications
    assert (application.import_path, deployed.http_options.port) == (IMPORT_PATH, 8123)
    (model,) = application.args["llm_configs"]
    loaded = LLMConfig.model_validate(model)
    assert loaded.model_id == version
    assert loaded.max_request_context_length == 2048
    assert loaded.accelerator_config.kind == "gpu"
    with pytest.raises(ValueError, match="accelerator"):
        LLMConfig.model_validate(model | {"accelerator_type": "abacus"})


def test_ray_has_the_function_that_the_file_names():
    # It cannot be imported without vLLM or SGLang, so its source is read.
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    module, function = IMPORT_PATH.split(":")
    (folder,) = find_spec("ray").submodule_search_locations
    source = Path(folder, *module.split(".")[1:], "__init__.py").read_text()
    assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def test_weights_that_were_altered_are_refused(store):
    version, folder = register(store, "m1")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(UserError, match=r"merged weights of tiny@1 .* SHA-256 differs"):
        serve_config(store, "tiny", version)


def test_weights_that_are_gone_are_named(store):
    import shutil

    version, folder = register(store, "m1")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="merged weights of tiny@1 are gone"):
        serve_config(store, "tiny", version)


def test_encoder_needs_no_such_engine(store):
    def write_head(folder):
        write_tiny_encoder(folder)
        config = folder / "config.json"
        config.write_text(config.read_text().replace("BertModel", "BertForSequenceClassification"))

    version, _ = register(store, "m1", write_head)
    with pytest.raises(UserError, match="tiny@1 is an encoder"):
        serve_config(store, "tiny", version)
