"""The commands on what was served."""

from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.serving import segments as files
from ev_platform.serving.journal import Journal, read_journal
from ev_platform.serving.segments import Segments
from ev_platform_tests.serving.rows import judged, served

NOW = datetime.now(UTC)


@pytest.fixture
def log(own_folders, monkeypatch):
    """Return a function that logs requests."""
    monkeypatch.setattr("ev_platform.terminal.console._width", 140)

    def log(*rows):
        journal = Journal(own_folders / "data", "requests")
        for row in rows:
            journal.add(row)
        journal.close()
        return own_folders / "data"

    return log


def invoke(*arguments):
    return CliRunner().invoke(app, ["requests", *arguments])


def test_show_prints_the_newest_last_and_what_they_add_up_to(log):
    log(
        served("first", NOW - timedelta(minutes=3), total_ms=100.0),
        served("second", NOW - timedelta(minutes=2), total_ms=300.0, is_abstention=True),
        served("third", NOW - timedelta(minutes=1), status=503, error="overloaded", model_version=None),
        served("fourth", NOW, status=499, error="client_left", total_ms=9e6, is_abstention=True),
        served("fifth", NOW, error="timeout", total_ms=9e6),
    )
    done = invoke("show")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    places = [
        next(n for n, line in enumerate(lines) if name in line) for name in ("first", "second", "third", "fourth")
    ]
    assert places == sorted(places)
    rows = {name: " ".join(lines[n - 1 : n + 1]) for name, n in zip(("first", "second", "third"), places, strict=False)}
    assert all(part in rows["first"] for part in ("200", "fake_task@3", "100", "100+10", "What are Mode 3 cables"))
    assert "200" in rows["second"]
    assert "abstained" in rows["second"]
    assert "503" in rows["third"]
    assert "overloaded" in rows["third"]
    assert lines[-1] == (
        "5 requests in the last 1d: 2 answered, 1 of them with an abstention, 1 left, 2 failed or turned away. "
        "Half of the answers took up to 200 ms, 95 % up to 300 ms."
    )


def test_show_keeps_to_its_limit_time_and_task(log):
    log(
        served("older", NOW - timedelta(hours=3)),
        served("old", NOW - timedelta(minutes=50)),
        served("new", NOW, task="another"),
    )
    assert "older" not in (shown := invoke("show", "--since", "1h").output)
    assert "new" in shown
    shown = invoke("show", "--limit", "1").output
    assert ("new" in shown, "old" in shown) == (True, False)
    assert "3 requests in the last 1d" in shown
    assert "1 request of another in the last 1d" in invoke("show", "--task", "another").output


def test_show_cannot_be_steered_by_what_was_asked(log):
    log(served("one", question="\x1b[2J[bold]red[/bold]\nsecond " + "x" * 500))
    shown = invoke("show").output
    assert "\x1b" not in shown
    assert "[bold]red[/bold]" in shown
    assert shown.count("x") < 200


def test_show_tells_equal_questions_by_their_hash_where_text_is_not_kept(log):
    log(served("one", question=None, question_hash="abcdef0123456789" * 2))
    assert "(hash abcdef0123456789" in invoke("show").output


def test_show_without_requests_says_so(log):
    log()
    assert invoke("show", "--since", "2w").output.startswith("No request in the last 2w:")


@pytest.mark.parametrize("since", ["yesterday", "1", "d", "-1d", "1y", "999999d"])
def test_since_that_is_no_span_is_told(log, since):
    log()
    done = invoke("show", f"--since={since}")
    assert done.exit_code == 1
    assert "write a number and m, h, d or w" in done.output


def test_prune_deletes_what_is_older_than_the_limit(log, monkeypatch):
    root = log(served("now"))
    monkeypatch.setattr(files, "now", lambda: NOW + timedelta(days=91))
    assert invoke("prune", "--days", "91").output == "Nothing is older than 91 days.\n"
    assert read_journal(root, "requests").height == 1
    assert invoke("prune").output == f"Deleted the requests of {NOW:%Y-%m-%d}.\n"
    assert read_journal(root, "requests").is_empty()


def test_prune_of_feedback_deletes_it_by_age_and_leaves_requests(log, monkeypatch):
    root = log(served("now"))
    journal = Journal(root, "feedback")
    journal.add(judged())
    journal.close()
    monkeypatch.setattr(files, "now", lambda: NOW + timedelta(days=91))
    assert "say how old with --days" in invoke("prune", "--feedback").output
    assert invoke("prune", "--feedback", "--days", "91").output == "Nothing is older than 91 days.\n"
    assert read_journal(root, "feedback").height == 1
    assert invoke("prune", "--feedback", "--days", "90").output == f"Deleted the feedback of {NOW:%Y-%m-%d}.\n"
    assert (read_journal(root, "feedback").height, read_journal(root, "requests").height) == (0, 1)


def test_prune_leaves_it_to_a_server_that_is_at_it(log):
    root = log(served("now"))
    with Segments(root, "requests").upkeep():
        done = invoke("prune")
    assert done.exit_code == 1
    assert "A server is deleting old requests at this moment" in done.output
