"""The units are taken by systemd, and do what the services of Compose do."""

import configparser
import re
import shutil
import subprocess

import pytest

from ev_platform_tests.deploy.services import DEPLOY, ours

SYSTEMD = DEPLOY / "systemd"
SERVICES = sorted(SYSTEMD.glob("*.service"))


def parse(file):
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read_string(file.read_text())
    return unit


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze, of Debian's package systemd, is not installed"
)
def test_systemd_finds_no_fault_but_that_nothing_is_installed_here(tmp_path):
    shutil.copytree(SYSTEMD, tmp_path / "units")
    units = [
        file.name for file in sorted((tmp_path / "units").iterdir()) if file.suffix in (".service", ".timer", ".target")
    ]
    (tmp_path / "units" / "wrong.service").write_text("[Service]\nExecStart=/bin/true\nMemoryMaximum=1\n")

    def faults(*names):
        command = ["systemd-analyze", "verify", "--man=no", *names]
        done = subprocess.run(command, cwd=tmp_path / "units", capture_output=True, text=True, check=False)
        return [line for line in done.stderr.splitlines() if "/opt/ev-platform/" not in line]

    assert faults(*units) == []
    assert "MemoryMaximum" in str(faults("wrong.service"))


@pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.stem)
def test_service_has_no_rights(file):
    service = parse(file)["Service"]
    assert service["User"] == "ev-platform"
    assert service["CapabilityBoundingSet"] == ""
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["ProtectHome"]) == ("yes", "strict", "yes")


def test_commands_are_those_of_compose():
    def plain(command):
        text = re.sub(r"\S*/\.venv/bin/", "", command).replace('"', "").replace("0.0.0.0", "127.0.0.1")
        return text.removesuffix(" --host 127.0.0.1 --port 8000")  # the endpoint takes them from EV_HOST and EV_PORT

    commands = {plain(parse(file)["Service"]["ExecStart"]) for file in SERVICES}
    commands |= {plain(parse(file)["Service"].get("ExecStartPre", "")) for file in SERVICES}
    assert {plain(" ".join(service["command"])) for service in ours().values()} <= commands
