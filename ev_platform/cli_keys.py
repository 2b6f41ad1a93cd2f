"""`ev-platform keys`: make, list, limit and revoke the API keys of the endpoint.

What does not belong here: how keys are stored and checked (`serving.keys`).
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ev_platform.errors import UserError
from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, say

if TYPE_CHECKING:
    from ev_platform.serving.keys import KeyInfo

keys_app = typer.Typer(
    no_args_is_help=True, help="API keys of the endpoint.\n\nExample: `ev-platform keys create laptop`"
)

_NO_LIMIT = "none"
KeyId = Annotated[str, typer.Argument(help="Id, as `keys list` shows it.")]
Requests = Annotated[str | None, typer.Option(help=f"In any 60 seconds; a number or '{_NO_LIMIT}'.")]
Concurrent = Annotated[str | None, typer.Option(help=f"At once; a number or '{_NO_LIMIT}'.")]
Tokens = Annotated[str | None, typer.Option(help=f"Prompts and answers, each day UTC; a number or '{_NO_LIMIT}'.")]


@keys_app.command("create")
@plain_errors
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: query, feedback or admin, which may do everything; may be repeated. "
            "query and feedback by default."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="When it ends: 90d, 12h, or a date (from its first minute UTC). Never by default."),
    ] = None,
    requests_per_minute: Requests = None,
    concurrent_requests: Concurrent = None,
    tokens_per_day: Tokens = None,
) -> None:
    """Make a key and print it; it is not stored and cannot be shown again.

    Example: `ev-platform keys create laptop --expires 90d`
    """
    from ev_platform.serving.keys import DEFAULT_SCOPES, create_key, to_limits

    key = create_key(
        get_settings().data_root,
        name,
        scopes=scope or DEFAULT_SCOPES,
        expires_at=None if expires is None else _to_time(expires),
        limits=to_limits(_to_changes(requests_per_minute, concurrent_requests, tokens_per_day)),
    )
    # The bare key on stdout, so that it can be captured: KEY=$(ev-platform keys create laptop)
    sys.stdout.write(key + "\n")


@keys_app.command("list")
@plain_errors
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List keys with their scopes, ends and limits, without their secrets; an empty cell is no end, or no limit.

    Example: `ev-platform keys list`
    """
    from ev_platform.serving.keys import list_keys

    keys = list_keys(get_settings().data_root)
    if as_json:
        shown = [key.model_dump(mode="json", exclude={"salt", "secret_hash"}) for key in keys]
        sys.stdout.write(json.dumps(shown, ensure_ascii=False, indent=2) + "\n")
        return
    # Narrow enough for a terminal of 80 columns; the rest is in the JSON form.
    table = Table("id", "name", "scopes", "ends", "per\nminute", "at\nonce", "tokens\na day")
    for key in keys:
        limits = ["" if value is None else f"{value:,}" for value in key.limits.model_dump().values()]
        table.add_row(key.key_id, escape(key.name), "\n".join(key.scopes), _end(key), *limits)
    console.print(table)


@keys_app.command("limit")
@plain_errors
def limit(
    key_id: KeyId,
    requests_per_minute: Requests = None,
    concurrent_requests: Concurrent = None,
    tokens_per_day: Tokens = None,
) -> None:
    """Change what a key may use; what is not named stays. A running endpoint follows with the next request.

    Example: `ev-platform keys limit 1f2e3d4c --tokens-per-day 5000000`
    """
    from ev_platform.serving.keys import change_limits

    changes = _to_changes(requests_per_minute, concurrent_requests, tokens_per_day)
    if not changes:
        raise UserError(
            "Nothing to change: name --requests-per-minute, --concurrent-requests or --tokens-per-day, or several."
        )
    key = change_limits(get_settings().data_root, key_id, changes)
    say(f"{key.name}: {_limits(key)}.")


@keys_app.command("revoke")
@plain_errors
def revoke(key_id: KeyId) -> None:
    """Revoke a key; a running endpoint refuses it from then on.

    Example: `ev-platform keys revoke 1f2e3d4c`
    """
    from ev_platform.serving.keys import revoke_key

    say(f"Revoked {revoke_key(get_settings().data_root, key_id).name}.")


def _to_time(text: str) -> datetime:
    """Return the moment that `90d`, `12h`, a date, or a date and time stands for; UTC where it names no zone."""
    span = re.fullmatch(r"(\d{1,5})([dh])", text)
    if span:
        return datetime.now(UTC) + timedelta(**{"days" if span[2] == "d" else "hours": int(span[1])})
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the second in the year 1 or 9999
        raise UserError(f"--expires {text[:40]!r} is no time: write 90d, 12h, or a date such as 2027-03-31.") from None


def _to_changes(*texts: str | None) -> dict[str, int | None]:
    """Return the limits that were named, given in the order of `KeyLimits`."""
    from ev_platform.serving.keys import KeyLimits

    changes: dict[str, int | None] = {}
    for name, text in zip(KeyLimits.model_fields, texts, strict=True):
        if text is None:
            continue
        if not re.fullmatch(rf"[0-9]{{1,16}}|{_NO_LIMIT}", text):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {text[:40]!r} is no limit: write a number, or '{_NO_LIMIT}' for no limit.")
        changes[name] = None if text == _NO_LIMIT else int(text)
    return changes


def _end(key: KeyInfo) -> str:
    if key.revoked_at:
        return f"revoked\n{key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return ""
    return ("" if key.is_live(datetime.now(UTC)) else "expired\n") + f"{key.expires_at:%Y-%m-%d}"


def _limits(key: KeyInfo) -> str:
    def say_limit(value: Any, unit: str) -> str:
        return f"{'any number of' if value is None else f'{value:,}'} {unit}"

    return ", ".join(
        (
            say_limit(key.limits.requests_per_minute, "requests/minute"),
            say_limit(key.limits.concurrent_requests, "at once"),
            say_limit(key.limits.tokens_per_day, "tokens/day"),
        )
    )
