"""A model on the Hugging Face Hub: one commit with the given files, private unless a person says otherwise.

What does not belong here: which files a model consists of (`packages`), and what its card says (`card`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from ev_platform.errors import UserError
from ev_platform.training.base import sha256_weights

Files = Mapping[str, Path | bytes]


@dataclass(frozen=True, slots=True)
class Published:
    """What was published, or would be.

    Attributes:
        url: Page of the commit; None after a dry run.
        commit: Its hash; None after a dry run. Where nothing had changed, that of the latest commit.
        n_bytes: Size of each file by its path in the repository.
    """

    url: str | None
    commit: str | None
    n_bytes: dict[str, int]


def files_of(folder: Path, sha256: str | None = None) -> dict[str, Path]:
    """Return the files of a model directory by their path in a repository; hidden ones stay at home.

    Args:
        folder: Model directory.
        sha256: Of its weights, as the artifact's record has it; None where there is no record.

    Raises:
        UserError: If the folder holds no file, or other weights than its record says.
    """
    paths = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {p.as_posix(): file for p, file in paths.items() if not any(part.startswith(".") for part in p.parts)}
    if not files:
        raise UserError(f"{folder} holds no file to publish: materialize the stage training first.")
    if sha256 is not None and sha256_weights(folder)[0] != sha256:
        raise UserError(f"The weights in {folder} are not those of its record: materialize the asset again.")
    return files


def publish(
    files: Files,
    repo_id: str,
    *,
    token: SecretStr | None,
    private: bool = True,
    message: str = "Publish model",
    revision: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
) -> Published:
    """Make a model repository if there is none, and put files into it with one commit.

    Files of the same names are replaced; others that the repository holds stay. A file that has not changed is not sent
    again. A server that stores large files without Xet needs `HF_HUB_DISABLE_XET=1` in the environment.

    Args:
        files: Path in the repository to a local file, or to the bytes themselves.
        repo_id: `owner/name`.
        token: With the right to write there.
        private: Whether the repository is to be private; one that is public already is then refused.
        message: Of the commit.
        revision: Branch; the repository's main branch where None.
        endpoint: Of the hub; the public one where None.
        dry_run: Whether the files are only listed; nothing is asked of the hub.

    Raises:
        UserError: If there is no token, the name is none, or the hub refuses or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    sizes = {path: len(it) if isinstance(it, bytes) else it.stat().st_size for path, it in sorted(files.items())}
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a repository: write owner/name.") from error
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} does not say whose repository it is: write owner/name.")
    if dry_run:
        return Published(None, None, sizes)
    if token is None or not token.get_secret_value().strip():
        raise UserError(f"Publishing {repo_id} needs a token with write access: set HF_TOKEN.")
    api = HfApi(endpoint=endpoint, token=token.get_secret_value().strip())
    with _told(repo_id, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        # An existing repository keeps its visibility, whatever was asked for.
        if private and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} is public already: make it private on the hub, or publish it with private off.")
        operations = [
            CommitOperationAdd(path, it if isinstance(it, bytes) else str(it)) for path, it in sorted(files.items())
        ]
        made = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return Published(made.commit_url, made.oid, sizes)


@contextmanager
def _told(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one sentence, in which the token cannot stand."""
    from httpx2 import HTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = _reason(repo_id, urlsplit(endpoint).netloc, error)
        if reason is None:
            raise
        # Without the error itself: a server may repeat the token in what it answers.
        raise UserError(reason) from None


def _reason(repo_id: str, host: str, error: Exception) -> str | None:
    from httpx2 import HTTPError

    # The upload of a large file wraps what went wrong.
    cause: Any = error
    while not isinstance(cause, HTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return f"The hub at {host} does not accept the front matter of README.md: correct the model card."
    if not isinstance(cause, HTTPError):
        return None
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is None:
        return f"The hub at {host} could not be reached ({type(cause).__name__}): check the network and HF_ENDPOINT."
    reasons = {
        401: f"The hub at {host} does not accept the token in HF_TOKEN (401): make a new one with write access.",
        403: f"The token in HF_TOKEN may not write to {repo_id} (403): give it write access, or name a repository "
        "of your own.",
        404: f"The hub at {host} has no repository or branch for {repo_id} as asked for (404): check both names.",
        409: f"Somebody else was changing {repo_id} (409): publish again.",
        412: f"Somebody else was changing {repo_id} (412): publish again.",
        429: f"The hub at {host} has had too many requests (429): publish again later.",
    }
    if status >= 500:
        return f"The hub at {host} failed ({status}): publish again later; what has arrived is not sent twice."
    return reasons.get(status, f"The hub at {host} refused to publish {repo_id} ({status}).")
