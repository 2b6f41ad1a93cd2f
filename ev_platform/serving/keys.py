"""API keys: made, listed, limited, revoked and checked against one file, `<data>/keys.json`.

A key reads `ev_<id>_<secret>`. The id names it in lists; the secret is 256 random bits and is shown once. The file
holds a salted BLAKE2b hash of the secret. A slow password hash (scrypt, argon2) would add latency to every request and
no safety: it protects secrets that can be guessed, and 2^256 values cannot. There is no default key.

A running server reads the file anew when it changes, so every change holds from the next request on.

What does not belong here: HTTP (`gate`), counting what a key has used (`limits`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.storage import now

Scope = Literal["query", "feedback", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# What a person who asks and rates needs.
DEFAULT_SCOPES: tuple[Scope, ...] = ("query", "feedback")

_KEY = re.compile(r"ev_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


class KeyLimits(BaseModel):
    """What one key may use; None is no limit.

    Attributes:
        requests_per_minute: In any 60 seconds. One a second is more than a person types, and enough for a small
            program. The upper bound bounds the memory of a server, which remembers each request for a minute.
        concurrent_requests: At once. Eight keys at the default fill the waiting line of a replica (64); one cannot.
        tokens_per_day: Of prompts and answers, from midnight to midnight UTC. The default is about 2,000 answers from
            passages: a day of a small team.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Annotated[int, Field(ge=1, le=100_000)] | None = 60
    concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] | None = 8
    tokens_per_day: Annotated[int, Field(ge=1, le=10**15)] | None = 1_000_000


# For keys that live as long as one program of the platform's own, such as the replay of an evaluation.
UNLIMITED = KeyLimits(requests_per_minute=None, concurrent_requests=None, tokens_per_day=None)


def _are_bytes(text: str) -> str:
    bytes.fromhex(text)
    return text


_Hex = Annotated[str, AfterValidator(_are_bytes)]


class KeyInfo(BaseModel):
    """One key, as `keys.json` holds it.

    Attributes:
        key_id: Second part of the key; not a secret.
        name: Who or what it was made for.
        salt: 16 random bytes, hexadecimal.
        secret_hash: BLAKE2b-256 of the secret with that salt, hexadecimal.
        created_at: UTC.
        revoked_at: UTC; None while the key is not revoked.
        expires_at: UTC; from then on it is refused. None where it never expires.
        scopes: What it may do; `admin` may do everything.
        limits: What it may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: str
    name: str
    salt: Annotated[_Hex, Field(min_length=32, max_length=32)]
    secret_hash: Annotated[_Hex, Field(min_length=64, max_length=64)]
    created_at: datetime
    revoked_at: datetime | None = None
    # What follows has defaults because files of before 2026-11-21 do not have it.
    expires_at: AwareDatetime | None = None
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    limits: KeyLimits = KeyLimits()

    def is_live(self, at: datetime) -> bool:
        """Tell whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    def may(self, scope: Scope) -> bool:
        """Tell whether it has a scope."""
        return scope in self.scopes or "admin" in self.scopes


_KEYS = TypeAdapter(tuple[KeyInfo, ...])
# Stands in for the key of an id that is not in the file; nobody knows a secret with this hash.
_NOBODY = KeyInfo(key_id="", name="", salt="0" * 32, secret_hash="0" * 64, created_at=datetime.min.replace(tzinfo=UTC))


def create_key(
    root: Path,
    name: str,
    *,
    scopes: Collection[str] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
    limits: KeyLimits | None = None,
) -> str:
    """Make a key and return it; it cannot be shown again.

    Args:
        root: Data folder.
        name: Who will use it.
        scopes: What it may do.
        expires_at: With its time zone; None is never.
        limits: What it may use; the defaults of `KeyLimits` where None.

    Raises:
        UserError: If the name is not 1 to 64 printable characters, there is no such scope, or it would be born expired.
    """
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UserError(f"The key's name {name[:80]!r} must be 1 to 64 printable characters: say who will use it.")
    if not scopes or set(scopes) - set(SCOPES):
        named = ", ".join(scopes)[:80]
        raise UserError(f"The key's scopes ({named!r}) must be one or more of {', '.join(SCOPES)}.")
    made_at = now()
    if expires_at is not None and expires_at <= made_at:
        raise UserError(f"The key would expire at {expires_at:%Y-%m-%d %H:%M} UTC, which is past: choose a later time.")
    secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
    with _editing(root) as keys:
        key_id = next(new for new in iter(lambda: secrets.token_hex(4), None) if new not in keys)
        keys[key_id] = KeyInfo(
            key_id=key_id,
            name=name,
            salt=salt,
            secret_hash=_hash(secret, salt),
            created_at=made_at,
            expires_at=expires_at,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            limits=limits or KeyLimits(),
        )
    return f"ev_{key_id}_{secret}"


def list_keys(root: Path) -> list[KeyInfo]:
    """Return every key that was ever made, oldest first, revoked and expired ones too.

    Raises:
        UserError: If `keys.json` is damaged or cannot be read.
    """
    return list(_keys(root).values())


def has_live_key(root: Path, scope: Scope) -> bool:
    """Tell whether a request that needs this scope could pass now.

    Raises:
        UserError: If `keys.json` is damaged or cannot be read.
    """
    at = now()
    return any(key.is_live(at) and key.may(scope) for key in list_keys(root))


def revoke_key(root: Path, key_id: str) -> KeyInfo:
    """Revoke a key, effective with the next request; a revoked key stays revoked, with its first date.

    Raises:
        UserError: If there is no key with this id.
    """
    with _editing(root) as keys:
        key = _find(root, keys, key_id)
        keys[key_id] = key.model_copy(update={"revoked_at": key.revoked_at or now()})
        return keys[key_id]


def change_limits(root: Path, key_id: str, changes: Mapping[str, int | None]) -> KeyInfo:
    """Change some limits of a key, effective with the next request.

    Args:
        root: Data folder.
        key_id: Second part of the key.
        changes: Attributes of `KeyLimits` and their new values; the others stay.

    Raises:
        UserError: If there is no key with this id, or a value is out of range.
    """
    with _editing(root) as keys:
        key = _find(root, keys, key_id)
        keys[key_id] = key.model_copy(update={"limits": to_limits(key.limits.model_dump() | dict(changes))})
        return keys[key_id]


def to_limits(values: Mapping[str, int | None]) -> KeyLimits:
    """Return limits, the defaults where they are not named.

    Raises:
        UserError: If a value is out of range.
    """
    try:
        return KeyLimits.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"The limit {first['loc'][0]} = {first['input']!r} cannot be: {first['msg']}.") from None


def verify(root: Path, presented: str) -> KeyInfo | None:
    """Return the live key that was presented, or None where it is malformed, unknown, wrong, expired or revoked.

    Raises:
        UserError: If `keys.json` is damaged or cannot be read.
    """
    parts = _KEY.fullmatch(presented)
    if parts is None:
        return None
    # The same work for an id that exists and one that does not, for a live key and a revoked one.
    key = _keys(root).get(parts[1], _NOBODY)
    is_right = hmac.compare_digest(_hash(parts[2], key.salt), key.secret_hash)
    is_live = key.is_live(now())
    return key if is_right and is_live else None


def _hash(secret: str, salt: str) -> str:
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=bytes.fromhex(salt), person=b"ev-api-key").hexdigest()


def _find(root: Path, keys: Mapping[str, KeyInfo], key_id: str) -> KeyInfo:
    if key_id not in keys:
        known = ", ".join(keys) or "none yet"
        raise UserError(f"There is no key with the id {key_id[:16]!r} in {root / 'keys.json'}: it holds {known}.")
    return keys[key_id]


def _keys(root: Path) -> Mapping[str, KeyInfo]:
    """Return the keys by id, oldest first."""
    file = root / "keys.json"
    try:
        stat = file.stat()
        # Every write makes a new file, so these three change with it.
        return _read(file, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): let this process read it.") from error


@lru_cache(maxsize=4)
def _read(file: Path, inode: int, mtime_ns: int, n_bytes: int) -> Mapping[str, KeyInfo]:
    try:
        return {key.key_id: key for key in _KEYS.validate_json(file.read_bytes())}
    except ValidationError as error:
        # Its own text would quote the file.
        raise UserError(
            f"{file} is damaged ({error.error_count()} errors): put a backup back, or delete it and make new keys."
        ) from None


@contextlib.contextmanager
def _editing(root: Path) -> Iterator[dict[str, KeyInfo]]:
    """Yield the keys and store them when the block ends without an error; one process at a time."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / "keys.lock").open("w") as lock:
        # Without it, making one key while another is revoked could bring the revoked one back.
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = dict(_keys(root))
        yield keys
        write_atomic(root / "keys.json", _KEYS.dump_json(tuple(keys.values()), indent=1), mode=0o600)
