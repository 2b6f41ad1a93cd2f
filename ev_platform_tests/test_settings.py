"""What is said of settings that are wrong; what they do is tested where it is done."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.errors import UserError
from ev_platform.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def afresh():
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EV_STORE_URL", "s3://AKIAKEY:topsecret@bucket/x", "must be an address such as s3://bucket/prefix, without"),
        ("EV_DAGSTER_URL", "https://ev:topsecret@host/?x", "must be an address such as http://127.0.0.1:3000"),
        ("EV_DAGSTER_URL", "https://ev:top?secret@host", "must be an address such as http://127.0.0.1:3000"),
        ("EV_ENGINE_URL", "topsecret", "must be an address such as http://127.0.0.1:8001"),
        ("EV_CORS_ORIGINS", "https://topsecret.example", 'must be a JSON list such as ["https://example.org"]'),
        ("EV_CORS_ORIGINS", '"topsecret"', 'must be a JSON list such as ["https://example.org"]'),
        ("EV_WORKERS", "topsecret", "should be a valid integer"),
        ("EV_REQUEST_TIMEOUT_S", "0", "should be greater than 0"),
        ("EV_ENGINE", "topsecret", "should be 'local' or 'ray'"),
    ],
)
def test_wrong_setting_is_told_by_the_name_of_its_variable_and_what_it_should_be_never_by_its_value(
    monkeypatch, name, value, said
):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        get_settings()
    assert str(error.value).startswith(f"{name} (environment or .env) {said}")
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError) as direct:  # whoever makes settings of their own
        Settings()
    assert "secret" not in str(direct.value)


def test_each_wrong_setting_has_a_sentence(monkeypatch):
    monkeypatch.setenv("EV_WORKERS", "0")
    monkeypatch.setenv("EV_PORT", "99999")
    with pytest.raises(UserError) as error:
        get_settings()
    assert str(error.value) == (
        "EV_WORKERS (environment or .env) should be greater than or equal to 1. "
        "EV_PORT (environment or .env) should be less than or equal to 65535."
    )


def test_command_says_what_is_wrong_with_the_settings_and_exits(monkeypatch, tmp_path):
    monkeypatch.setenv("EV_STORE_URL", "s3://AKIAKEY:topsecret@bucket/x")
    answer = CliRunner().invoke(app, ["prepare"])
    assert (answer.exit_code, answer.stderr[:20]) == (1, "Error: EV_STORE_URL ")
    # In a process of its own the graph, which reads settings, is not loaded yet.
    command = [sys.executable, "-m", "ev_platform.cli", "run"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n"), ran.stderr[:20]) == (1, 1, "Error: EV_STORE_URL ")
    assert "secret" not in ran.stdout + ran.stderr


def test_addresses_may_end_with_a_slash(monkeypatch):
    monkeypatch.setenv("EV_DAGSTER_URL", "http://127.0.0.1:3000/dagster/")
    monkeypatch.setenv("EV_ENGINE_URL", "http://127.0.0.1:8001/")
    assert get_settings().dagster_url == "http://127.0.0.1:3000/dagster"
    assert get_settings().engine_url == "http://127.0.0.1:8001"


def test_lists_are_read_as_json(monkeypatch):
    monkeypatch.setenv("EV_CORS_ORIGINS", '["https://a.example", "https://b.example"]')
    assert get_settings().cors_origins == ("https://a.example", "https://b.example")
