"""The image's recipe passes its linter, and the folder that it is built from holds no secret."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ev_platform.settings import Settings
from ev_platform_tests.deploy.services import DEPLOY, ours

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def test_linter_finds_nothing_in_the_recipe(tmp_path):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN sudo cd /\n")
    assert subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, check=False).returncode


def test_only_what_is_named_reaches_the_image():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]}
    assert copied == taken
    assert all((ROOT / name).exists() for name in taken)
    assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|PASSWORD|SECRET)", DOCKERFILE, re.M)


def test_image_runs_as_nobody_of_note_and_both_targets_hold_the_same():
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.M)
    assert int(user) >= 10000
    targets = dict(re.findall(r"^FROM run AS (cpu|cuda)\n((?:(?!FROM).+\n?)*)", DOCKERFILE, re.M))
    assert set(targets) == {"cpu", "cuda"}
    assert all("COPY --from=build /opt/venv /opt/venv" in body for body in targets.values())
    assert all(
        re.search(r"^FROM (\$\{PYTHON\}|run) AS \w+$", line) for line in re.findall(r"^FROM.*$", DOCKERFILE, re.M)
    )
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.M)


def test_versions_that_the_recipe_names_are_those_of_the_constraints():
    constraints = (ROOT / "constraints.txt").read_text().splitlines() + (ROOT / "Makefile").read_text().split()
    named = re.findall(r"[\w-]+==[\w.]+", DOCKERFILE)
    assert named
    assert set(named) <= set(constraints)


def test_folders_of_the_image_are_those_of_compose():
    said = dict(re.findall(r"\b((?:EV|DAGSTER|PREFECT)_\w+)=(\S+)", DOCKERFILE))
    for service in ours().values():
        for name in ("EV_DATA_DIR", "EV_TASKS_DIR", "DAGSTER_HOME", "PREFECT_HOME"):
            assert said[name] == service["environment"][name]


def variables():
    """Return the environment variable of each setting."""
    return {str(field.validation_alias or f"EV_{name}".upper()) for name, field in Settings.model_fields.items()}


def test_example_of_the_environment_names_every_setting_and_nothing_else():
    named = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)
    assert sorted(named) == sorted(variables())


def test_what_is_set_in_the_example_is_the_default(monkeypatch):
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    example = Settings(_env_file=ROOT / ".env.example")  # pyright: ignore[reportCallIssue]
    assert example == Settings(_env_file=None)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("name", ["dagster.yaml", "prefect.yaml"])
def test_services_elsewhere_name_settings_that_there_are(name):
    used = set(re.findall(r"name: (EV_\w+)", (DEPLOY / "kubernetes" / name).read_text()))
    config = next(yaml.safe_load_all((DEPLOY / "kubernetes" / "config.yaml").read_text()))["data"]
    used |= {variable for variable in config if variable.startswith("EV_")}
    assert used <= variables()
