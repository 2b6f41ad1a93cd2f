import logging
import traceback

import pytest
from pydantic import SecretStr

from ev_platform.errors import UserError
from ev_platform.training.base import sha256_weights
from ev_platform.training.publish import files_of, publish

from .hub import TOKEN, run_hub

REPO = "acme/charging"


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    # Xet is another server's protocol; the variable of that name was read when the library was imported.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with run_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "vocab.txt").write_text("a")
    (folder / ".env").write_text("HF_TOKEN=not for the hub")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "left.json").write_text("{}")
    return folder


def send(hub, files, **changes):
    arguments = {"token": SecretStr(TOKEN), "endpoint": hub.url} | changes
    return publish(files, changes.pop("repo_id", REPO), **{k: v for k, v in arguments.items() if k != "repo_id"})


def test_publish_puts_regular_and_large_files_into_one_private_commit(hub, folder):
    card = b"---\nlicense: mit\n---\n# Charging\n"
    done = send(hub, files_of(folder) | {"README.md": card}, message="First")
    assert hub.repos == {REPO: "private"}
    wanted = ["README.md", "config.json", "model.safetensors", "sub/vocab.txt"]
    assert hub.commits == [(REPO, "main", "First", wanted)]
    stored = {path: hub.files[REPO, path] for path in wanted}
    assert stored == {
        "README.md": card,
        "config.json": b"{}",
        "model.safetensors": b"weights" * 1000,
        "sub/vocab.txt": b"a",
    }
    assert done.n_bytes == {path: len(data) for path, data in stored.items()}
    assert done.url == f"{hub.url}/{REPO}/commit/{done.commit}"
    assert len(done.commit) == 40


def test_publish_again_sends_only_what_changed(hub, folder):
    send(hub, files_of(folder))
    (folder / "config.json").write_text('{"a": 1}')
    n_stored = len(hub.large)
    send(hub, files_of(folder), message="Second")
    assert hub.commits[1] == (REPO, "main", "Second", ["config.json"])
    assert len(hub.large) == n_stored
    third = send(hub, files_of(folder))
    assert len(hub.commits) == 2
    assert third.commit == hub.answer("GET", f"/api/models/{REPO}", {"authorization": f"Bearer {TOKEN}"}, b"")[1]["sha"]


def test_publish_onto_a_branch_goes_there(hub, folder):
    send(hub, files_of(folder), revision="v2")
    assert [branch for _, branch, _, _ in hub.commits] == ["v2"]


def test_publish_in_public_makes_a_public_repository(hub, folder):
    send(hub, files_of(folder), private=False)
    assert hub.repos == {REPO: "public"}


def test_private_publication_into_a_public_repository_is_refused_before_anything_is_sent(hub, folder):
    hub.repos[REPO] = "public"
    with pytest.raises(UserError, match=f"{REPO} is public already: make it private on the hub"):
        send(hub, files_of(folder))
    assert hub.files == hub.large == {}


def test_dry_run_lists_files_with_sizes_and_asks_nothing_of_the_hub(hub, folder):
    done = send(hub, files_of(folder), dry_run=True, token=None)
    assert done.n_bytes == {"config.json": 2, "model.safetensors": 7000, "sub/vocab.txt": 1}
    assert (done.url, done.commit) == (None, None)
    assert hub.requests == []


@pytest.mark.parametrize("token", [None, SecretStr(""), SecretStr(" ")])
def test_publish_without_token_names_the_variable(hub, folder, token):
    with pytest.raises(UserError, match=f"Publishing {REPO} needs a token with write access: set HF_TOKEN"):
        send(hub, files_of(folder), token=token)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["charging", "a/b/c", "acme/", "acme/char ging", "../x"])
def test_name_that_is_no_repository_is_told(hub, folder, repo_id):
    with pytest.raises(UserError, match="write owner/name"):
        send(hub, files_of(folder), repo_id=repo_id)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("/api/repos/create", 401, "does not accept the token in HF_TOKEN (401)"),
        ("/api/", 403, f"The token in HF_TOKEN may not write to {REPO} (403)"),
        ("/preupload/", 403, f"The token in HF_TOKEN may not write to {REPO} (403)"),
        ("/preupload/", 404, "has no repository or branch"),
        ("/commit/", 409, f"Somebody else was changing {REPO} (409): publish again"),
        ("/commit/", 412, f"Somebody else was changing {REPO} (412): publish again"),
        ("/commit/", 503, "failed (503): publish again later"),
        ("/api/repos/create", 500, "failed (500): publish again later"),
        ("/api/repos/create", 429, "too many requests (429)"),
        ("/api/repos/create", 418, f"refused to publish {REPO} (418)"),
        ("/store/", 403, f"may not write to {REPO} (403)"),
    ],
)
def test_refusal_of_the_hub_is_one_sentence_without_the_token(hub, folder, where, status, told, caplog):
    # The worst server: it repeats what it was sent.
    hub.faults[where] = (status, {"error": f"bad: Bearer {TOKEN}"})
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        send(hub, files_of(folder))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value, chain=True))
    assert TOKEN not in caplog.text
    assert hub.commits == []


def test_wrong_token_is_told_without_it(hub, folder):
    with pytest.raises(UserError, match=r"does not accept the token in HF_TOKEN \(401\)") as caught:
        send(hub, files_of(folder), token=SecretStr("hf_wrongwrong"))
    assert "hf_wrong" not in str(caught.value)


def test_card_that_the_hub_rejects_is_told(hub, folder):
    with pytest.raises(UserError, match=r"does not accept the front matter of README\.md"):
        send(hub, files_of(folder) | {"README.md": b"no front matter"})
    assert hub.commits == []


def test_hub_that_is_not_there_is_told(hub, folder):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 could not be reached \(ConnectError\)"):
        send(hub, files_of(folder), endpoint="http://127.0.0.1:1")


def test_weights_that_differ_from_their_record_are_not_published(folder):
    sha256, _ = sha256_weights(folder)
    assert "model.safetensors" in files_of(folder, sha256)
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="are not those of its record: materialize the asset again"):
        files_of(folder, sha256)


def test_folder_without_files_is_told(tmp_path):
    (tmp_path / ".hidden").write_text("a")
    with pytest.raises(UserError, match="holds no file to publish"):
        files_of(tmp_path)
