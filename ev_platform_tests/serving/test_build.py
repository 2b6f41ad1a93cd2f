"""The application on a Ray cluster of its own processes, deployed as KubeRay does: a Serve configuration by REST."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from pydantic import ValidationError

from ev_platform.errors import UserError
from ev_platform.serving.build import Arguments, app, behind_proxies
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform_tests.ports import free_port
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.versions import point

ROOT = Path(__file__).parents[2]
RAYSERVICE = ROOT / "deploy" / "kuberay" / "rayservice.yaml"
TOKEN = "0123456789abcdef" * 4  # KubeRay makes one for each cluster and gives it to the containers so
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def rayservice():
    (found,) = [each for each in yaml.safe_load_all(RAYSERVICE.read_text()) if each["kind"] == "RayService"]
    return found["spec"]


def test_command_line_names_models_with_commas_between():
    assert Arguments.model_validate({"models": "ev_charging,squad@3", "replicas": "2"}) == Arguments(
        models=("ev_charging", "squad@3"), replicas=2
    )


@pytest.mark.parametrize("wrong", [{"models": []}, {"replicas": 0}, {"cpus": 0}, {"model": "ev_charging"}])
def test_argument_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        Arguments.model_validate(wrong)


def test_what_is_wrong_is_told_before_anything_is_loaded(own_folders):
    data = own_folders / "data"
    with pytest.raises(UserError, match="no live API key"):
        behind_proxies(Arguments(models=("fake_task",)), fakes.load)
    create_key(data, "tests")
    with pytest.raises(UserError, match="named twice"):
        behind_proxies(Arguments(models=("fake_task", "fake_task")), fakes.load)
    with pytest.raises(UserError, match="fake_task"):
        app(Arguments(models=("fake_task",)))


def test_each_model_is_a_deployment_that_a_serve_configuration_can_override(own_folders):
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.build_app import build_app

    create_key(own_folders / "data", "tests")

    def fake(args: Arguments):
        return behind_proxies(args, fakes.load)

    given = {"models": ["fake_task", "other@7"], "replicas": 2, "cpus": 3}
    application = call_user_app_builder_with_args_if_necessary(fake, given)
    built = {each.name: each for each in build_app(application, name="ev_platform").deployments}
    assert set(built) == {"Gateway", "fake_task", "other@7"}
    assert built["other@7"].num_replicas == 2
    assert built["other@7"].ray_actor_options["num_cpus"] == 3
    assert built["Gateway"].num_replicas == 1  # it counts what each key may use


@contextlib.contextmanager
def head(folder: Path, environment: dict[str, str]):
    """Start the head of a cluster, as KubeRay's command does; yields the address of its dashboard."""
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    ports |= {"dashboard-agent-grpc-port": free_port(), "metrics-export-port": free_port()}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=4"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += [f"--temp-dir={folder}", "--object-store-memory=100000000"]
    with (
        (folder / "head.log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield f"http://127.0.0.1:{ports['dashboard-port']}"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)  # it gives each of its processes time, one after the other
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until(seconds, holds):
    """Return what `holds` gives once it is true."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if found := holds():
                return found
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.2)


@pytest.mark.slow  # most of it Ray's start
def test_rayservices_configuration_answers_through_serves_proxy_in_openais_form(tmp_path, tmp_path_factory):
    data, port = tmp_path / "data", free_port()
    key = create_key(data, "tests", limits=UNLIMITED)
    point(data, "fake_task", champion="fake_task@1")
    # What the head's and the workers' containers are given; the data folder is the volume there.
    containers = [rayservice()["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]]
    given = {each["name"]: each["value"] for each in containers[0]["env"] if "value" in each}
    assert rayservice()["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    given |= {"EV_DATA_DIR": str(data), "EV_SERVING_DATA": str(data), "EV_TASKS_DIR": str(tmp_path / "tasks")}
    config = yaml.safe_load(rayservice()["serveConfigV2"])
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    assert application["import_path"] == "ev_platform.serving.build:app"
    application["import_path"] = "ev_platform_tests.serving.cluster:app"
    application["args"]["models"] = ["fake_task"]
    application["deployments"] = [each | {"name": "fake_task"} for each in application["deployments"]]
    with head(tmp_path_factory.mktemp("r"), os.environ | given) as dashboard:
        refused = until(60, lambda: httpx.get(f"{dashboard}/api/serve/applications/"))
        assert refused.status_code == 401
        put = deploy(dashboard, config)
        assert put.status_code == 200, put.text

        def state():
            found = httpx.get(f"{dashboard}/api/serve/applications/", headers=AUTHORIZED, timeout=30).json()
            found = found["applications"]
            status = found.get(application["name"], {}).get("status")
            assert status != "DEPLOY_FAILED", json.dumps(found)
            return status == "RUNNING"

        until(120, state)
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            until(30, lambda: client.get("/readyz").is_success)
            body = {"messages": [{"role": "user", "content": "How often must one test the RCD?"}]}
            answer = client.post("/v1/chat/completions", headers={"X-Request-ID": "from-the-client"}, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "fake_task@1"
            assert answer.json()["sources"][0]["chunk_id"] == "chk_manual"
            assert answer.headers.get_list("x-request-id") == ["from-the-client"]

            refused = client.post("/v1/chat/completions", headers={"Authorization": ""}, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            for path in ("/-/routes", "/-/healthz"):
                said = client.get(path)
                assert (said.status_code, said.json()["error"]["code"]) == (404, "not_found")
            with client.stream("POST", "/v1/answers", json={"question": "RCD?", "stream": True}) as streamed:
                events = [line[7:] for line in streamed.iter_lines() if line.startswith("event: ")]
            assert (events[0], events[-1]) == ("citations", "done")

            point(data, "fake_task", champion="fake_task@2")
            until(10, lambda: client.post("/v1/chat/completions", json=body).json()["model"] == "fake_task@2")
    lines = [json.loads(line) for line in (data / "serving" / "server.log").read_text().splitlines()]
    (request,) = [line for line in lines if line.get("request_id") == "from-the-client"]
    assert request["status"] == 200


def deploy(dashboard, config):
    return httpx.put(f"{dashboard}/api/serve/applications/", headers=AUTHORIZED, json=config, timeout=60)
