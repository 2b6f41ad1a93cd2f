"""The server's own lines: JSON, and never the words of an error."""

import json
import sys

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
