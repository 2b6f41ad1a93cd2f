"""Replies from a file, and the recording of them."""

import asyncio
import json

import pytest
from pydantic import BaseModel

from ev_platform.errors import UserError
from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.anthropic_client import AnthropicClient
from ev_platform.teachers.calls import Call
from ev_platform.teachers.recorded_client import RecordedClient, RecordingClient
from ev_platform_tests.teachers.anthropic_server import AnthropicServer


class Answer(BaseModel):
    answer: str


def call(number):
    return Call("answer", "claude-haiku-4-5", "v1", "Be brief.", f"What about cable {number} of the set?", Answer, 64)


def send(client, *calls):
    async def run():
        return [await client.send(one) for one in calls]

    return asyncio.run(run())


@pytest.fixture
def recording(tmp_path):
    """Record three calls to the server, one of which fails; yield (file, replies)."""
    server = AnthropicServer(tmp_path / "count.jsonl", context_window=100)
    asked = RecordingClient(
        AnthropicClient(TeacherConfig(provider="anthropic", model="claude-haiku-4-5"), "key", server.url),
        tmp_path / "recording.jsonl",
    )
    long = Call("answer", "claude-haiku-4-5", "v1", "", "word " * 500, Answer, 64)
    replies = send(asked, call(1), long, call(2))
    yield tmp_path / "recording.jsonl", replies
    server.close()


def test_recorded_reply_is_the_one_that_was_given(recording):
    path, (first, failed, second) = recording
    assert (first.status, failed.status, second.status) == ("ok", "failed", "ok")
    client = RecordedClient(path)
    assert send(client, call(2), call(1)) == [second, first]
    assert client.count_tokens(call(1)) == first.usage.n_input_tokens > 0
    assert len(path.read_text().splitlines()) == 2, "the failed reply was recorded"


def test_recorded_unknown_call_is_a_failed_reply_that_names_call_and_file(recording):
    path, _ = recording
    [reply] = send(RecordedClient(path), call(3))
    assert reply.status == "failed"
    assert reply.detail == f"{path} has no reply to the answer call {call(3).call_id}"


def test_recorded_last_line_of_a_call_counts(recording):
    path, _ = recording
    with path.open("a") as file:
        file.write("\n" + json.dumps({"call_id": call(1).call_id, "status": "refused", "detail": "no"}) + "\n")
    [reply] = send(RecordedClient(path), call(1))
    assert (reply.status, reply.detail) == ("refused", "no")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"call_id": "c"}',
        '{"call_id": "c", "status": "fine"}',
        '{"call_id": "c", "status": "ok", "text": 3}',
    ],
)
def test_recorded_line_that_is_no_reply_is_a_user_error_with_its_number(tmp_path, line):
    path = tmp_path / "recording.jsonl"
    path.write_text('{"call_id": "call_1", "status": "ok"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"recording.jsonl, line 2, is no recorded reply \(.+\): remove it"):
        RecordedClient(path)


def test_recorded_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl cannot be read .*teacher.recording"):
        RecordedClient(tmp_path / "none.jsonl")
