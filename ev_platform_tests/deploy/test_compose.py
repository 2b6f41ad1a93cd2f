"""`compose.yaml` is valid, closed and bounded, and its services' commands start and become healthy as processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.storage import Store
from ev_platform_tests.deploy.services import COMPOSE, DEPLOY, VARIABLE, filled, ours, services
from ev_platform_tests.ports import free_port
from ev_platform_tests.serving import versions
from ev_platform_tests.test_postgres import postgres, rows  # noqa: F401 - a fixture

BIN = Path(sys.executable).parent
HEALTHY_WITHIN_S = 240


def test_file_is_valid_by_the_compose_specification():
    from compose_spec import PyCompose

    given = yaml.safe_load(filled())  # with its anchors merged, which the specification leaves to YAML
    compose = PyCompose.from_json(json.dumps(given))
    compose.validate()
    assert set(compose.service_names()) == set(services())
    with pytest.raises(ValueError, match=r"\w"):  # the check can fail
        PyCompose.from_json(json.dumps(given | {"services": {"serve": {"image": "a", "mem_limit": ["512m"]}}}))


def test_linter_of_security_finds_nothing_but_tags_that_a_registry_could_overwrite():
    done = subprocess.run(
        [BIN / "compose-lint", "--format", "json", "--fail-on", "low", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(re.findall(r"CL-\d+", done.stdout)) <= {"CL-0019"}, done.stdout + done.stderr


@pytest.mark.parametrize("name", services())
def test_service_is_bounded_closed_and_watched(name):
    service = services()[name]
    assert re.search(r":[\w.-]*\d+\.\d+", service["image"])  # an exact version
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= set(service)
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "healthcheck" in service or service["restart"] == "no"
    for other, waits in service.get("depends_on", {}).items():
        is_once = services()[other]["restart"] == "no"
        assert waits["condition"] == ("service_completed_successfully" if is_once else "service_healthy")


def test_ports_are_published_once():
    published = [port.split(":")[1] for service in services().values() for port in service.get("ports", [])]
    assert len(published) == len(set(published))


def test_every_variable_is_in_the_example_and_nothing_else():
    example = (DEPLOY / "compose.env.example").read_text()
    read = {match[1] for match in VARIABLE.finditer(COMPOSE.read_text())}
    secrets = {each["environment"] for each in yaml.safe_load(filled())["secrets"].values()}
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.M)) == read | secrets


def test_files_that_are_mounted_are_there():
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source


def test_prometheus_reads_the_same_rules_with_the_key_of_its_secret():
    config = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.compose.yml").read_text())
    other = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())
    (job,) = config.pop("scrape_configs")
    (their,) = other.pop("scrape_configs")
    assert config == other
    (secret,) = services()["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert job["static_configs"] == [{"targets": ["serve:8000"]}]
    assert job["job_name"] == their["job_name"]


class Machine:
    """Runs services as processes: their folders below one of the test, each port a free one, hosts this machine."""

    def __init__(self, root, database):
        self.root, self.database = root, database
        self.ports = {port: str(free_port()) for port in ("3000", "4200", "8000", "8080")}
        self.processes = {}

    def here(self, text):
        text = re.sub(r"\b(prefect-server|dagster-webserver)(?=:\d)|\b0\.0\.0\.0\b", "127.0.0.1", text)
        text = re.sub(r"\b(3000|4200|8000|8080)\b", lambda match: self.ports[match[1]], text)
        text = text.replace("postgres:5432", str(self.database))
        return re.sub(r"^/(data|tasks)\b", rf"{self.root}/\1", text)

    def environment(self, service):
        # Without a Postgres here, SQLite takes its place: both keep their state below /data then.
        given = {
            name: value for name, value in service["environment"].items() if self.database or "postgres" not in value
        }
        own = {name: self.here(value) for name, value in given.items()}
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return (
            kept
            | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.root), "PREFECT_LOGGING_LEVEL": "WARNING"}
            | own
        )

    def start(self, name, service):
        with (self.root / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [self.here(part) for part in service["command"]],
                env=self.environment(service),
                cwd=self.root,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, name):
        return f"{name}: " + (self.root / f"{name}.log").read_text(errors="replace")[-3000:]

    def wait(self, name, service):
        """Wait until a service has ended well, or its health check passes; returns after how many seconds."""
        process, began = self.processes[name], time.monotonic()
        if service["restart"] == "no":
            assert process.wait(HEALTHY_WITHIN_S) == 0, self.said(name)
            return time.monotonic() - began
        check = [self.here(part) for part in service["healthcheck"]["test"][1:]]
        while time.monotonic() - began < HEALTHY_WITHIN_S:
            assert process.poll() is None, self.said(name)
            done = subprocess.run(check, env=self.environment(service), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return time.monotonic() - began
            time.sleep(0.5)
        raise AssertionError(f"{done.stderr[-500:]}\n{self.said(name)}")

    def stop(self, name):
        """End a service as Compose does; returns how long it took."""
        began = time.monotonic()
        self.processes[name].terminate()
        self.processes[name].wait(120)
        return time.monotonic() - began

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def database(request):
    """Return the address of a Postgres, or None where there is none on this machine."""
    if not (shutil.which("initdb") and shutil.which("psql")):
        return None
    return request.getfixturevalue("postgres")


def in_order(given):
    """Return services so that each comes after those it waits for."""
    names = []
    while len(names) < len(given):
        ready = [
            n
            for n, each in given.items()
            if n not in names and set(each.get("depends_on", {})) - {"postgres"} <= set(names)
        ]
        assert ready
        names += ready
    return names


@pytest.mark.slow  # a minute or two: six servers start
@pytest.mark.timeout(1200)
def test_commands_of_our_services_run_as_processes_and_their_health_checks_pass(tmp_path, database):
    given = ours(EV_MODEL=versions.TASK, EV_TASK=versions.TASK)
    data = tmp_path / "data" / "ev"
    versions.write_task(tmp_path / "tasks")
    versions.register(Store(data), tmp_path / "scratch", 1)
    versions.point(data, versions.TASK, champion=f"{versions.TASK}@1")
    key = create_key(data, "tests", limits=UNLIMITED)
    with Machine(tmp_path, database) as machine:
        for name in in_order(given):
            machine.start(name, given[name])
            print(f"\n{name}: healthy after {machine.wait(name, given[name]):.0f} s")
        body = {"messages": [{"role": "user", "content": "Which?"}], "max_tokens": 4}
        url = machine.here("http://127.0.0.1:8000/v1/chat/completions")
        answer = httpx.post(url, headers={"Authorization": f"Bearer {key}"}, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == f"{versions.TASK}@1"

        query = {"query": "{ assetNodes { id } instance { daemonHealth { allDaemonStatuses { healthy required } } } }"}
        told = httpx.post(machine.here("http://127.0.0.1:3000/graphql"), json=query, timeout=60).json()["data"]
        assert len(told["assetNodes"]) > 40, machine.said("dagster-webserver")
        daemons = told["instance"]["daemonHealth"]["allDaemonStatuses"]
        assert all(daemon["healthy"] for daemon in daemons if daemon["required"])

        api = machine.here("http://127.0.0.1:4200/api")
        (deployment,) = httpx.post(f"{api}/deployments/filter", json={}, timeout=60).json()
        (schedule,) = deployment["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 4 * * 1", "UTC")

        if database:
            assert rows(f"{database}/prefect", "SELECT name FROM deployment") == [deployment["name"]]
            assert "QUEUED_RUN_COORDINATOR" in rows(f"{database}/dagster", "SELECT daemon_type FROM daemon_heartbeats")
        for name in reversed(in_order(given)):
            if given[name]["restart"] != "no":
                took = machine.stop(name)
                grace = int(given[name]["stop_grace_period"].removesuffix("s"))
                print(f"{name}: stopped after {took:.0f} s of {grace}")
                assert took < grace
