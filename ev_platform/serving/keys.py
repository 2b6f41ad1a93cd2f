"""API keys: made, listed, revoked and checked against one file, `<data>/keys.json`.

A key reads `ev_<id>_<secret>`. The id names it in lists; the secret is 256 random bits and is shown once. The file
holds a salted BLAKE2b hash of the secret. A slow password hash (scrypt, argon2) would add latency to every request and
no safety: it protects secrets that can be guessed, and 2^256 values cannot. There is no default key.

What does not belong here: HTTP (`gate`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ev_platform.errors import UserError
from ev_platform.storage import now, write_atomic

_KEY = re.compile(r"ev_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class KeyInfo(BaseModel):
    """One key, as `keys.json` holds it.

    Attributes:
        key_id: Second part of the key; not a secret.
        name: Who or what it was made for.
        salt: 16 random bytes, hexadecimal.
        secret_hash: BLAKE2b-256 of the secret with that salt, hexadecimal.
        created_at: UTC.
        revoked_at: UTC; None while the key is good.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: str
    name: str
    salt: str
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None = None


_KEYS = TypeAdapter(tuple[KeyInfo, ...])


def create_key(root: Path, name: str) -> str:
    """Make a key and return it; it cannot be shown again.

    Raises:
        UserError: If the name is not 1 to 64 printable characters.
    """
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UserError(f"The key's name {name[:80]!r} must be 1 to 64 printable characters: say who will use it.")
    secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
    with _editing(root) as keys:
        taken = {key.key_id for key in keys}
        key_id = next(new for new in iter(lambda: secrets.token_hex(4), None) if new not in taken)
        keys.append(KeyInfo(key_id=key_id, name=name, salt=salt, secret_hash=_hash(secret, salt), created_at=now()))
    return f"ev_{key_id}_{secret}"


def list_keys(root: Path) -> list[KeyInfo]:
    """Return every key that was ever made, oldest first, revoked ones too.

    Raises:
        UserError: If `keys.json` is damaged.
    """
    file = root / "keys.json"
    try:
        stat = file.stat()
    except FileNotFoundError:
        return []
    # Every write makes a new file, so these three change with it.
    return list(_read(file, stat.st_ino, stat.st_mtime_ns, stat.st_size))


def revoke_key(root: Path, key_id: str) -> KeyInfo:
    """Revoke a key, effective with the next request; a revoked key stays revoked, with its first date.

    Raises:
        UserError: If there is no key with this id.
    """
    with _editing(root) as keys:
        for index, key in enumerate(keys):
            if key.key_id == key_id:
                keys[index] = key.model_copy(update={"revoked_at": key.revoked_at or now()})
                return keys[index]
        known = ", ".join(key.key_id for key in keys) or "none yet"
        raise UserError(f"There is no key with the id {key_id[:16]!r} in {root / 'keys.json'}: it holds {known}.")


def verify(root: Path, presented: str) -> KeyInfo | None:
    """Return the live key that was presented, or None where it is malformed, unknown, wrong or revoked.

    Raises:
        UserError: If `keys.json` is damaged.
    """
    parts = _KEY.fullmatch(presented)
    if parts is None:
        return None
    for key in list_keys(root):
        if key.key_id == parts[1]:
            is_right = hmac.compare_digest(_hash(parts[2], key.salt), key.secret_hash)
            return key if is_right and key.revoked_at is None else None
    return None


def _hash(secret: str, salt: str) -> str:
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=bytes.fromhex(salt), person=b"ev-api-key").hexdigest()


@lru_cache(maxsize=4)
def _read(file: Path, inode: int, mtime_ns: int, n_bytes: int) -> tuple[KeyInfo, ...]:
    try:
        return _KEYS.validate_json(file.read_bytes())
    except ValidationError as error:
        # Its own text would quote the file.
        raise UserError(
            f"{file} is damaged ({error.error_count()} errors): put a backup back, or delete it and make new keys."
        ) from None


@contextlib.contextmanager
def _editing(root: Path) -> Iterator[list[KeyInfo]]:
    """Yield the keys and store them when the block ends without an error; one process at a time."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / "keys.lock").open("w") as lock:
        # Without it, making one key while another is revoked could bring the revoked one back.
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list_keys(root)
        yield keys
        write_atomic(root / "keys.json", _KEYS.dump_json(tuple(keys), indent=1), mode=0o600)
