"""The services of `compose.yaml`, with its variables filled in."""

import re
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
GIVEN = {"POSTGRES_PASSWORD": "secret", "GRAFANA_PASSWORD": "secret", "EV_PROMETHEUS_KEY": "ev_00000000_x"}


def filled(**given):
    """Return the file as Compose sees it, and fail at a variable that has neither a value nor a default."""
    given = GIVEN | given

    def fill(match):
        name, kind, rest = match.groups()
        if name in given:
            return given[name]
        assert kind == "-", f"{name} is not given: {rest}"
        return rest

    return VARIABLE.sub(fill, COMPOSE.read_text())


def services(**given):
    return yaml.safe_load(filled(**given))["services"]


def ours(**given):
    """Return the services that run this repository's image."""
    return {name: each for name, each in services(**given).items() if each["image"].startswith("ev-platform:")}
