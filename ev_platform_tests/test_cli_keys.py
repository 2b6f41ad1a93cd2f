import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.serving.keys import KeyLimits, create_key, list_keys, verify
from ev_platform.storage import now


@pytest.fixture
def data(own_folders):
    return own_folders / "data"


def keys(*arguments):
    return CliRunner().invoke(app, ["keys", *arguments])


def test_new_key_has_default_scopes_and_limits_and_no_end(data):
    info = verify(data, keys("create", "laptop").stdout.strip())
    assert (info.scopes, info.limits, info.expires_at) == (("query", "feedback"), KeyLimits(), None)


def test_key_is_made_as_the_options_say(data):
    made = keys(
        *("create", "metrics", "--scope", "admin", "--scope", "query", "--requests-per-minute", "600"),
        *("--concurrent-requests", "none", "--tokens-per-day", "5000"),
    )
    info = verify(data, made.stdout.strip())
    assert info.scopes == ("query", "admin")
    assert info.limits == KeyLimits(requests_per_minute=600, concurrent_requests=None, tokens_per_day=5_000)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("90d", lambda made: made + timedelta(days=90)),
        ("12h", lambda made: made + timedelta(hours=12)),
        ("2199-03-31", lambda _: datetime(2199, 3, 31, tzinfo=UTC)),
        ("2199-03-31T10:30+02:00", lambda _: datetime(2199, 3, 31, 8, 30, tzinfo=UTC)),
    ],
)
def test_end_is_a_span_or_a_date(data, text, ends):
    assert keys("create", "guest", "--expires", text).exit_code == 0
    (info,) = list_keys(data)
    assert abs(info.expires_at - ends(info.created_at)) < timedelta(seconds=5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "a", "--expires", "soon"), "--expires 'soon' is no time: write 90d, 12h, or a date"),
        (("create", "a", "--expires", ""), "--expires '' is no time"),
        (("create", "a", "--expires", "0001-01-01T00:00+14:00"), "is no time"),
        (("create", "a", "--expires", "0d"), "which is past"),
        (("create", "a", "--expires", "2020-01-01"), "2020-01-01 00:00 UTC, which is past"),
        (("create", "a", "--scope", "root"), "('root') must be one or more of query, feedback, admin"),
        (("create", "a", "--tokens-per-day", "0"), "tokens_per_day = 0 cannot be"),
        (("create", "a", "--requests-per-minute", "1.5"), "--requests-per-minute '1.5' is no limit: write a number"),
        (("create", "a", "--concurrent-requests", "-1"), "--concurrent-requests '-1' is no limit"),
        (("limit", "ffffffff", "--tokens-per-day", "9"), "no key with the id 'ffffffff'"),
        (("limit", "ffffffff"), "Nothing to change: name --requests-per-minute"),
    ],
)
def test_bad_input_prints_one_sentence_and_makes_no_key(data, arguments, told):
    result = keys(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert told in result.stderr
    assert list_keys(data) == []


def test_list_shows_scopes_limits_and_ends_in_80_columns(data):
    keys("create", "[Ann] laptop", "--expires", "2199-03-31", "--tokens-per-day", "none")
    keys("create", "lost", "--scope", "feedback")
    keys("revoke", list_keys(data)[1].key_id)
    listed = keys("list").stdout
    assert max(len(line) for line in listed.splitlines()) <= 80
    for shown in ("[Ann] laptop", "query", "feedback", "2199-03-31", "60", "8", "1,000,000", "revoked"):
        assert shown in listed


def test_list_tells_which_keys_have_expired(data):
    create_key(data, "guest", expires_at=now() + timedelta(milliseconds=50))
    while list_keys(data)[0].is_live(now()):
        pass
    assert "expired" in keys("list").stdout


def test_list_as_json_holds_everything_but_what_belongs_to_the_secret(data):
    key = keys("create", "läptop", "--expires", "2199-03-31").stdout.strip()
    result = keys("list", "--json")
    (info,) = list_keys(data)
    assert json.loads(result.stdout) == [
        {
            "key_id": info.key_id,
            "name": "läptop",
            "created_at": info.created_at.isoformat().replace("+00:00", "Z"),
            "revoked_at": None,
            "expires_at": "2199-03-31T00:00:00Z",
            "scopes": ["query", "feedback"],
            "limits": KeyLimits().model_dump(),
        }
    ]
    for secret in (key[12:], info.salt, info.secret_hash):
        assert secret not in result.stdout


def test_limit_changes_what_it_names_and_says_what_holds(data):
    key_id = keys("create", "laptop").stdout[3:11]
    said = keys("limit", key_id, "--tokens-per-day", "5000000", "--requests-per-minute", "none").stdout
    assert said == "laptop: any number of requests/minute, 8 at once, 5,000,000 tokens/day.\n"
    assert list_keys(data)[0].limits == KeyLimits(requests_per_minute=None, tokens_per_day=5_000_000)
