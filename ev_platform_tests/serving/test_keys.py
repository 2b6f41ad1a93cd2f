import os
import threading

import pytest

from ev_platform.errors import UserError
from ev_platform.serving.keys import create_key, list_keys, revoke_key, verify


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
