"""The server's own lines: JSON, and never the words of an error."""

import json
import logging
import sys
from contextlib import contextmanager

from ev_platform.serving import logs


def fail():
    try:
        json.loads("the words of a user")
    except ValueError as error:
        raise RuntimeError("ev_00000001_secret") from error


def test_fault_says_what_kind_and_where(capsys):
    try:
        fail()
    except RuntimeError as error:
        logs.fault("it failed", error, request_id="r1")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert "secret" not in line
    assert "words" not in line
    assert (told["event"], told["level"], told["request_id"]) == ("it failed", "error", "r1")
    assert told["error"] == "RuntimeError from JSONDecodeError"
    assert [where.rpartition(":")[0] for where in told["where"]] == ["ev_platform_tests/serving/test_logs.py"] * 2
    assert told["where"][-1].endswith(" fail")


def test_fault_in_a_library_names_the_library_and_not_the_machine(capsys):
    import pydantic

    try:
        pydantic.TypeAdapter(int).validate_json("{")
    except pydantic.ValidationError as error:
        logs.fault("it failed", error)
    where = json.loads(capsys.readouterr().err)["where"]
    assert where[-1].startswith("pydantic/")


def test_line_that_nobody_reads_costs_nothing(monkeypatch, tmp_path):
    closed = (tmp_path / "log").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logs.request(route="/v1/answers", status=200)


def test_what_is_not_known_is_left_out(capsys):
    logs.request(route="/", status=200, model=None)
    told = json.loads(capsys.readouterr().err)
    assert set(told) == {"event", "level", "timestamp", "route", "status"}


@contextmanager
def kept(root, **options):
    """Keep the lines in the file meanwhile."""
    package = logging.getLogger("ev_platform")
    level, handler = package.level, logs.keep(root, **options)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def kept_lines(root, name="server.log"):
    return [json.loads(line) for line in (root / "serving" / name).read_text().splitlines()]


def test_lines_are_kept_in_a_file_that_only_its_owner_reads(tmp_path, capsys):
    with kept(tmp_path, rotates=True):
        logs.request(route="/v1/answers", status=200)
        logging.getLogger("ev_platform.serving.live").error("The %s moved.", "champion")
        try:
            fail()
        except RuntimeError:
            logging.getLogger("ev_platform.serving.live").exception("Loading failed:")
    request, told, failed = kept_lines(tmp_path)
    assert (request["event"], request["status"]) == ("request", 200)
    assert (told["event"], told["level"], told["logger"]) == (
        "The champion moved.",
        "error",
        "ev_platform.serving.live",
    )
    assert failed["error"] == "RuntimeError from JSONDecodeError"
    file = tmp_path / "serving" / "server.log"
    assert "secret" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""


def test_full_file_is_moved_aside_and_the_other_processes_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_MOST_BYTES", 400)
    with kept(tmp_path):
        logs.request(route="before", status=200)
    with kept(tmp_path, rotates=True):
        for _ in range(100):
            logs.request(route="/v1/answers", status=200)
    with kept(tmp_path):
        logs.request(route="other", status=200)
        (tmp_path / "serving" / "server.log").rename(tmp_path / "serving" / "moved.log")
        logs.request(route="after", status=200)
    assert kept_lines(tmp_path, "moved.log")[-1]["route"] == "other"
    assert [line["route"] for line in kept_lines(tmp_path)] == ["after"]
    files = {file.name: file.stat() for file in (tmp_path / "serving").glob("server.log*")}
    assert set(files) == {"server.log", *(f"server.log.{n}" for n in range(1, 6))}
    assert {stat.st_mode & 0o777 for stat in files.values()} == {0o600}
    assert max(stat.st_size for stat in files.values()) <= 400


def test_file_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    (tmp_path / "serving" / "server.log").mkdir(parents=True)
    for rotates in (True, False):
        with kept(tmp_path, rotates=rotates):
            logs.request(route="/", status=200)
