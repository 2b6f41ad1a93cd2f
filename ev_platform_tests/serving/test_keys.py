import json
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ev_platform.errors import UserError
from ev_platform.serving import keys as keys_module
from ev_platform.serving.keys import (
    UNLIMITED,
    KeyInfo,
    KeyLimits,
    change_limits,
    create_key,
    has_live_key,
    list_keys,
    revoke_key,
    to_limits,
    verify,
)
from ev_platform.storage import now

# As `create_key` wrote it before keys had scopes, an expiry and limits.
OLD_KEY = "ev_5b4c9a1e_" + "s" * 43
OLD_FILE = [
    {
        "key_id": "5b4c9a1e",
        "name": "laptop",
        "salt": "00112233445566778899aabbccddeeff",
        "secret_hash": "7e742116ad39b270aea620e0bd77373fecb78ac48b5f393a0a32ad3f5c397210",
        "created_at": "2026-11-01T08:00:00Z",
        "revoked_at": None,
    }
]


def test_key_just_made_is_accepted_under_its_name(tmp_path):
    key = create_key(tmp_path, "laptop")
    info = verify(tmp_path, key)
    assert info is not None
    assert info.name == "laptop"
    assert key.startswith(f"ev_{info.key_id}_")
    assert len(key) == len("ev_12345678_") + 43


def test_key_with_one_letter_changed_is_refused(tmp_path):
    key = create_key(tmp_path, "laptop")
    wrong = key[:-2] + ("A" if key[-2] != "A" else "B") + key[-1]
    assert verify(tmp_path, wrong) is None


def test_secret_of_one_key_with_the_id_of_another_is_refused(tmp_path):
    first, second = create_key(tmp_path, "a"), create_key(tmp_path, "b")
    assert verify(tmp_path, first[:12] + second[12:]) is None


@pytest.mark.parametrize("presented", ["", "ev_", "ev_00000000_" + "x" * 43, "ev_é", "x" * 100_000])
def test_key_that_was_never_made_is_refused(tmp_path, presented):
    create_key(tmp_path, "laptop")
    assert verify(tmp_path, presented) is None


def test_key_without_any_file_is_refused(tmp_path):
    assert verify(tmp_path, "ev_00000000_" + "x" * 43) is None


def test_keys_file_holds_no_secret_and_is_private(tmp_path):
    keys = [create_key(tmp_path, "laptop"), create_key(tmp_path, "phone")]
    file = tmp_path / "keys.json"
    for key in keys:
        assert key[12:] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_same_secret_file_differs_by_salt(tmp_path):
    create_key(tmp_path, "a")
    create_key(tmp_path, "b")
    first, second = list_keys(tmp_path)
    assert first.salt != second.salt


def test_revoked_key_is_refused_at_once_and_others_are_not(tmp_path):
    lost, kept = create_key(tmp_path, "lost"), create_key(tmp_path, "kept")
    assert verify(tmp_path, lost) is not None
    revoke_key(tmp_path, lost[3:11])
    assert verify(tmp_path, lost) is None
    assert verify(tmp_path, kept) is not None
    assert [(key.name, key.revoked_at is not None) for key in list_keys(tmp_path)] == [("lost", True), ("kept", False)]


def test_revoking_twice_keeps_the_first_date(tmp_path):
    key = create_key(tmp_path, "lost")
    assert revoke_key(tmp_path, key[3:11]).revoked_at == revoke_key(tmp_path, key[3:11]).revoked_at


def test_revoking_an_unknown_id_says_which_there_are(tmp_path):
    key = create_key(tmp_path, "laptop")
    with pytest.raises(UserError, match=rf"no key with the id 'ffffffffx'.*holds {key[3:11]}"):
        revoke_key(tmp_path, "ffffffffx")


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "two\nlines"])
def test_name_that_is_unusable_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="1 to 64 printable characters"):
        create_key(tmp_path, name)
    assert list_keys(tmp_path) == []


def test_keys_made_at_the_same_time_are_all_kept(tmp_path):
    made = []
    threads = [threading.Thread(target=lambda n=n: made.append(create_key(tmp_path, f"n{n}"))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 12
    assert all(verify(tmp_path, key) for key in made)


def test_damaged_file_is_told_without_quoting_it(tmp_path):
    create_key(tmp_path, "laptop")
    file = tmp_path / "keys.json"
    digest = list_keys(tmp_path)[0].secret_hash
    file.write_text(file.read_text().replace('"name"', '"nom"'))
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="damaged") as caught:
        list_keys(tmp_path)
    assert digest not in str(caught.value)


def test_file_of_before_scopes_keeps_working_with_defaults(tmp_path):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(OLD_FILE))
    info = verify(tmp_path, OLD_KEY)
    assert info is not None
    assert (info.scopes, info.expires_at, info.limits) == (("query", "feedback"), None, KeyLimits())
    create_key(tmp_path, "phone")
    assert verify(tmp_path, OLD_KEY) == info


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        (("query",), {"query"}),
        (("query", "feedback"), {"query", "feedback"}),
        (("feedback", "feedback"), {"feedback"}),
        (("admin",), {"query", "feedback", "admin"}),
    ],
)
def test_key_may_what_its_scopes_say_and_admin_everything(tmp_path, scopes, may):
    info = verify(tmp_path, create_key(tmp_path, "a", scopes=scopes))
    assert {scope for scope in keys_module.SCOPES if info.may(scope)} == may
    assert {scope for scope in keys_module.SCOPES if has_live_key(tmp_path, scope)} == may


@pytest.mark.parametrize("scopes", [(), ("root",), ("query", "Admin")])
def test_scope_that_there_is_not_is_refused(tmp_path, scopes):
    with pytest.raises(UserError, match="must be one or more of query, feedback, admin"):
        create_key(tmp_path, "a", scopes=scopes)
    assert list_keys(tmp_path) == []


def test_key_born_expired_is_refused(tmp_path):
    with pytest.raises(UserError, match="is past: choose a later time"):
        create_key(tmp_path, "a", expires_at=now() - timedelta(seconds=1))


def test_key_expires_while_it_is_in_use(tmp_path):
    key = create_key(tmp_path, "guest", expires_at=now() + timedelta(milliseconds=300))
    assert verify(tmp_path, key) is not None
    assert has_live_key(tmp_path, "query")
    threading.Event().wait(0.31)
    assert verify(tmp_path, key) is None
    assert not has_live_key(tmp_path, "query")


@settings(max_examples=200, deadline=None)
@given(st.datetimes(timezones=st.just(UTC)), st.none() | st.datetimes(timezones=st.just(UTC)), st.booleans())
def test_key_is_live_until_the_moment_it_expires_and_never_once_revoked(at, expires_at, is_revoked):
    info = KeyInfo.model_validate(
        {
            **OLD_FILE[0],
            "secret_hash": "0" * 64,
            "revoked_at": datetime(2026, 1, 1, tzinfo=UTC) if is_revoked else None,
            "expires_at": expires_at,
        }
    )
    assert info.is_live(at) is (not is_revoked and (expires_at is None or at < expires_at))


def test_there_is_no_live_key_without_file_nor_when_all_are_revoked(tmp_path):
    assert not has_live_key(tmp_path, "query")
    revoke_key(tmp_path, create_key(tmp_path, "lost", scopes=("admin",))[3:11])
    assert not has_live_key(tmp_path, "query")


def test_limits_that_are_named_change_and_the_others_stay(tmp_path):
    key = create_key(tmp_path, "a", limits=to_limits({"requests_per_minute": 7}))
    change_limits(tmp_path, key[3:11], {"tokens_per_day": 5, "concurrent_requests": None})
    assert verify(tmp_path, key).limits == KeyLimits(requests_per_minute=7, concurrent_requests=None, tokens_per_day=5)


def test_limits_of_an_unknown_id_cannot_be_changed(tmp_path):
    with pytest.raises(UserError, match="no key with the id 'ffffffff'"):
        change_limits(tmp_path, "ffffffff", {"tokens_per_day": 5})


@pytest.mark.parametrize(("name", "value"), [("requests_per_minute", 0), ("tokens_per_day", -1), ("tokens", 5)])
def test_limit_that_cannot_be_is_named_and_changes_nothing(tmp_path, name, value):
    key = create_key(tmp_path, "a", limits=UNLIMITED)
    with pytest.raises(UserError, match=f"limit {name} = {value} cannot be"):
        change_limits(tmp_path, key[3:11], {name: value})
    assert verify(tmp_path, key).limits == UNLIMITED


@pytest.mark.parametrize("is_known", [True, False])
def test_a_wrong_secret_is_hashed_whether_its_id_is_known_or_not(tmp_path, monkeypatch, is_known):
    key = create_key(tmp_path, "a")
    hashed = []
    one_hash = keys_module._hash
    monkeypatch.setattr(keys_module, "_hash", lambda *args: hashed.append(args) or one_hash(*args))
    assert verify(tmp_path, f"ev_{key[3:11] if is_known else '00000000'}_{'x' * 43}") is None
    assert len(hashed) == 1


@pytest.mark.parametrize(
    "content", ["", "{}", "[{}]", "\x00", '[{"key_id": "a"}]', json.dumps(OLD_FILE).replace("7e742116", "\u00e9" * 8)]
)
def test_damaged_file_is_one_sentence_and_no_other_error(tmp_path, content):
    (tmp_path / "keys.json").write_text(content)
    for call in (list_keys, lambda root: verify(root, OLD_KEY), lambda root: create_key(root, "a")):
        with pytest.raises(UserError, match="damaged"):
            call(tmp_path)
    assert (tmp_path / "keys.json").read_text() == content


def test_file_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path, OLD_KEY)
