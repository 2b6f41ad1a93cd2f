"""Replies from a file, for tests and for runs that must not pay, and the writing of such a file.

A line is JSON: `call_id` (a call's `content_id`, which is the same whoever is asked) and the fields of a `Reply`
(`status`, `text`, `usage`, ...); the last line of a call counts.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ev_platform.errors import UserError
from ev_platform.identity import sha256_of
from ev_platform.teachers.calls import Call, Client, Reply
from ev_platform.teachers.connections import WithoutBatches

_REPLY = TypeAdapter(Reply)
STATUSES = ("ok", "refused", "truncated", "failed")


def read_recording(path: Path) -> dict[str, Reply]:
    """Return the reply to each call.

    Raises:
        UserError: If the file is not there, or a line is no reply.
    """
    replies = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recording {path} cannot be read ({error}): correct teacher.recording.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            call_id, reply = fields.pop("call_id"), _REPLY.validate_python(fields)
            if reply.status not in STATUSES:
                raise ValueError(f"its status is {reply.status!r}")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
            raise UserError(
                f"{path}, line {number}, is no recorded reply ({reason}): remove it, or record it again."
            ) from error
        replies[call_id] = reply
    return replies


class RecordedClient(WithoutBatches):
    """Answers from a file.

    Args:
        path: JSONL, as `RecordingClient` writes it.

    Raises:
        UserError: If the file is not there, or a line is no reply.
    """

    provider = "recorded"

    def __init__(self, path: Path):
        self._path = path
        self._replies = read_recording(path)
        self.source = f"{self.provider} {sha256_of(path)}"

    async def send(self, call: Call) -> Reply:
        """Return the recorded reply; a failed one where there is none."""
        reply = self._replies.get(call.content_id)
        return reply or Reply(
            "failed", detail=f"{self._path} has no reply to the {call.purpose} call {call.content_id}"
        )

    def count_tokens(self, call: Call) -> int:
        """Return the recorded tokens of the prompt; 0 where there are none."""
        reply = self._replies.get(call.content_id)
        if reply is None:
            return 0
        usage = reply.usage
        return usage.n_input_tokens + usage.n_cache_write_tokens + usage.n_cache_read_tokens

    async def aclose(self) -> None:
        """Do nothing."""


class RecordingClient(WithoutBatches):
    """Asks another client, one call at a time, and appends each reply to a file for `RecordedClient`.

    Failed replies are not recorded, since they say nothing about the call.

    Args:
        client: Who answers.
        path: Appended to.
    """

    def __init__(self, client: Client, path: Path):
        self.provider = client.provider
        self.source: str = getattr(client, "source", "")
        self._client = client
        self._path = path
        self._lock = threading.Lock()

    async def send(self, call: Call) -> Reply:
        """Ask the other client, and record its reply."""
        reply = await self._client.send(call)
        if reply.status != "failed":
            line = json.dumps(
                {"call_id": call.content_id, "purpose": call.purpose, **asdict(reply)}, ensure_ascii=False
            )
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        return reply

    def count_tokens(self, call: Call) -> int:
        """Return what the other client counts."""
        return self._client.count_tokens(call)

    async def aclose(self) -> None:
        """Close the other client."""
        await self._client.aclose()
