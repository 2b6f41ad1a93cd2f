import re

import pytest
import typer
from typer.testing import CliRunner

from ev_platform import settings
from ev_platform.cli import app
from ev_platform.serving.keys import list_keys


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("EV_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EV_TASKS_DIR", str(tmp_path / "tasks"))
    settings.get_settings.cache_clear()
    yield tmp_path / "data"
    settings.get_settings.cache_clear()


def call(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command_shows_how_it_is_called(path):
    result = call(*path, "--help")
    assert result.exit_code == 0
    text = " ".join(re.sub(r"[│\n]", " ", result.output).split())
    example = text.split("Example: ")[1]
    assert re.match(rf"(\S+=\S+ )?ev-platform {' '.join(path)}", example), example


def test_keys_create_prints_only_the_key(data):
    result = call("keys", "create", "laptop")
    assert result.exit_code == 0
    assert re.fullmatch(r"ev_[0-9a-zA-Z]+_\S+\n", result.output)
    (info,) = list_keys(data)
    assert (info.name, info.key_id) == ("laptop", result.output.split("_")[1])


def test_keys_list_shows_who_and_no_secret(data):
    key = call("keys", "create", "laptop").output.strip()
    listed = call("keys", "list").output
    _, key_id, secret = key.split("_", maxsplit=2)
    assert "laptop" in listed
    assert key_id in listed
    assert secret not in listed


def test_keys_revoke_ends_the_key(data):
    key_id = call("keys", "create", "laptop").output.split("_")[1]
    assert call("keys", "revoke", key_id).output == "Revoked laptop.\n"
    assert list_keys(data)[0].revoked_at is not None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("keys", "revoke", "nope"), "nope"),
        (("serve", "--task", "ev_charging"), "run `ev-platform run --task ev_charging` first."),
        (("ask", "Why?", "--url", "http://127.0.0.1:9"), "start it with `ev-platform serve`."),
    ],
)
def test_bad_input_prints_one_sentence_and_exits_with_1(data, arguments, told):
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


def test_catalogue_prints_where_it_is(data):
    result = call("catalogue")
    assert result.output.strip() == str(data / "ev.duckdb")
    assert (data / "ev.duckdb").exists()


def test_models_list_without_models_has_no_rows(data):
    result = call("models", "list")
    assert result.exit_code == 0
    assert "@" not in result.output
