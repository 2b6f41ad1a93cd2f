"""The Anthropic client against a server that speaks its API: statuses, errors, retries, caching, batches."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from pydantic import BaseModel, Field

from ev_platform.errors import UserError
from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.anthropic_client import LONGEST_REPLY, AnthropicClient
from ev_platform.teachers.calls import Call, LostBatchError
from ev_platform_tests.teachers.anthropic_api import ApiError
from ev_platform_tests.teachers.anthropic_server import AnthropicServer

KEY = "sk-ant-very-secret-0815"
SYSTEM = "You write questions about charging stations. " * 200


class Item(BaseModel):
    plan: int = Field(ge=1)
    question: str
    answer: str


class Items(BaseModel):
    questions: list[Item] = Field(min_length=1, max_length=9)


def call(number=0, *, model="claude-haiku-4-5", system=SYSTEM, max_tokens=500, prompt=None):
    prompt = (
        prompt
        or f"Cable number {number} is tested by an electrician every 12 months.\n\n1. kind number\n2. kind reason"
    )
    return Call("generate", model, "v1", system, prompt, Items, max_tokens)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(**options):
        servers.append(AnthropicServer(tmp_path / f"server{len(servers)}.jsonl", **{"api_key": KEY, **options}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def client_of(server, *, key=KEY, **config):
    config = TeacherConfig(provider="anthropic", model="claude-haiku-4-5", **{"timeout_s": 5, **config})
    return AnthropicClient(config, key, server.url)


def send(client, *calls):
    async def run():
        try:
            return await asyncio.gather(*map(client.send, calls))
        finally:
            await client.aclose()

    return asyncio.run(run())


def answer_error(server, status, message):
    """Have every message answered with an error; return the list of requests that it fills."""
    asked = []

    def answer(params, request_id):
        asked.append(request_id)
        raise ApiError(status, message)

    server.message = answer
    return asked


# ---- replies ----


def test_send_ok_returns_the_raw_text_usage_model_and_request_id(serve):
    server = serve()
    [reply] = send(client_of(server), call())
    assert (reply.status, reply.detail, reply.n_unsettled) == ("ok", None, 0)
    assert [item.plan for item in Items.model_validate_json(reply.text).questions] == [1, 2]
    assert reply.model == "claude-haiku-4-5"
    assert reply.request_id == server.events[0]["request_id"]
    assert 0 < reply.latency_ms < 5000
    stats = server.stats()
    usage = {k: v for k, v in stats["usage"].items() if v}
    assert usage == {
        "n_input_tokens": reply.usage.n_input_tokens,
        "n_cache_write_tokens": reply.usage.n_cache_write_tokens,
        "n_output_tokens": reply.usage.n_output_tokens,
    }
    assert stats["cost_usd"] == pytest.approx(
        (reply.usage.n_input_tokens + 1.25 * reply.usage.n_cache_write_tokens + 5 * reply.usage.n_output_tokens) / 1e6
    )


def test_send_second_call_with_the_same_system_part_reads_it_from_the_cache(serve):
    client = client_of(serve())
    [first], [second] = send(client, call(1)), send(client, call(2))  # two loops, one client
    assert first.usage.n_cache_write_tokens > 1024
    assert first.usage.n_cache_read_tokens == 0
    assert second.usage.n_cache_read_tokens == first.usage.n_cache_write_tokens
    assert second.usage.n_cache_write_tokens == 0


def test_send_without_a_system_part_is_accepted(serve):
    [reply] = send(client_of(serve()), call(system=""))
    assert (reply.status, reply.usage.n_cache_write_tokens) == ("ok", 0)


@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        ("refused", "refused", "the model declined: declined by the test server"),
        ("truncated", "truncated", "the reply hit max_tokens"),
        ("malformed", "ok", None),  # whether it is JSON is `ask`'s to judge
    ],
)
def test_send_reply_that_is_of_no_use_keeps_its_status_and_usage(serve, fault, status, detail):
    server = serve(faults={fault: 1.0})
    [reply] = send(client_of(server), call())
    assert (reply.status, reply.detail) == (status, detail)
    assert reply.usage.n_output_tokens == server.events[0]["usage"]["n_output_tokens"] > 0
    assert server.stats()["n_requests"] == 1
    if fault == "malformed":
        with pytest.raises(ValueError, match="Invalid JSON"):
            Items.model_validate_json(reply.text)


def test_send_stop_for_the_context_window_is_truncated(serve):
    server = serve()
    answer = server._message
    server._message = lambda *args: {**answer(*args), "stop_reason": "model_context_window_exceeded"}
    [reply] = send(client_of(server), call())
    assert (reply.status, reply.detail) == ("truncated", "the reply filled the model's context window")


# ---- what is repeated, and what may have been counted ----


@pytest.mark.parametrize(("fault", "status"), [("rate_limited", 429), ("server_error", 500), ("overloaded", 529)])
def test_send_answered_error_is_repeated_by_the_sdk_and_then_succeeds(serve, fault, status):
    server = serve(faults={fault: 1.0}, retry_after_s=0.1)
    [reply] = send(client_of(server), call())
    assert (reply.status, reply.n_unsettled) == ("ok", 0)
    assert [event["status"] for event in server.events] == [status, 200]
    assert server.stats()["n_answered"] == 1


@pytest.mark.parametrize(("fault", "status"), [("rate_limited", 429), ("server_error", 500), ("overloaded", 529)])
def test_send_error_that_stays_is_a_failed_reply_after_max_retries(serve, fault, status):
    server = serve(faults={fault: 1.0}, retry_after_s=0.05, fault_times=99)
    [reply] = send(client_of(server, max_retries=1), call())
    assert (reply.status, reply.n_unsettled, reply.usage.n_input_tokens) == ("failed", 0, 0)
    assert reply.detail.startswith(f"Anthropic answered {status}: ")
    assert reply.request_id == server.events[-1]["request_id"]
    assert len(server.events) == 2
    assert server.stats()["cost_usd"] == 0


def test_send_429_waits_as_long_as_retry_after_says(serve):
    server = serve(faults={"rate_limited": 1.0}, retry_after_s=1.3)
    send(client_of(server), call())
    first, second = (event["at"] for event in server.events)
    assert 1.3 <= second - first < 2.3


@pytest.mark.parametrize(
    ("fault", "detail"),
    [("stalled", "no answer within 0.4 s"), ("dropped", "the connection broke off before the answer")],
)
def test_send_attempt_that_broke_off_is_not_repeated_and_marked_unsettled(serve, fault, detail):
    server = serve(faults={fault: 1.0}, stall_s=1.0)
    [reply] = send(client_of(server, timeout_s=0.4), call())
    assert (reply.status, reply.n_unsettled) == ("failed", 1)
    assert reply.detail.startswith(detail)
    stats = server.stats()
    assert (stats["n_requests"], stats["n_answered"], stats["n_broken_off"]) == (1, 1, 1)
    assert stats["cost_usd"] > 0


def test_send_gateway_timeout_is_not_repeated_and_marked_unsettled(serve):
    server = serve()
    asked = answer_error(server, 504, "upstream request timeout")
    [reply] = send(client_of(server), call())
    assert (reply.status, reply.n_unsettled) == ("failed", 1)
    assert reply.detail == "a server before the model answered 504"
    assert len(asked) == 1


def test_send_to_a_closed_port_is_repeated_and_then_a_user_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = AnthropicClient(TeacherConfig(provider="anthropic", model="m", max_retries=1), KEY, address)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/? cannot be reached .*check the network") as caught:
        send(client, call())
    assert time.monotonic() - started > 0.3, "the SDK did not try again"
    assert KEY not in str(caught.value)


# ---- what is wrong with one call, and with all ----


def test_send_prompt_too_long_is_a_failed_reply(serve):
    server = serve(context_window=3000)
    long, short = send(client_of(server), call(prompt="word " * 9000), call())
    assert long.status == "failed"
    assert long.detail.startswith("Anthropic answered 400: prompt is too long: ")
    assert (long.n_unsettled, short.status) == (0, "ok")


@pytest.mark.parametrize(
    ("options", "changes", "sentence"),
    [
        ({"api_key": "another"}, {}, "answered 401: invalid x-api-key: set ANTHROPIC_API_KEY"),
        ({"allowed": False}, {}, "answered 403: .*: use a key that may use claude-haiku-4-5"),
        ({}, {"model": "gpt-4"}, r"answered 404: model: gpt-4: correct teacher.model \(gpt-4\)"),
        ({}, {"max_tokens": 0}, "answered 400: max_tokens: .* concerns every call"),
        ({}, {"max_tokens": LONGEST_REPLY + 1}, "set teacher.max_tokens to at most 21333"),
    ],
)
def test_send_what_is_wrong_with_all_calls_is_one_sentence_without_the_key(serve, options, changes, sentence):
    server = serve(**options)
    with pytest.raises(UserError, match=sentence) as caught:
        send(client_of(server), call(**changes))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.stats()["n_answered"] == 0


def test_send_key_is_in_no_log_line_and_in_no_error_that_repeats_it(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(faults={"rate_limited": 1.0}, retry_after_s=0.05)
    client = client_of(server)
    send(client, call())
    client.get_batch(client.create_batch([call()]).batch_id)
    answer_error(server, 400, f"bad words: {KEY}")
    [reply] = send(client, call(1))
    assert (reply.status, reply.detail) == ("failed", "Anthropic answered 400: bad words: ***")
    answer_error(server, 401, f"no such key: {KEY}")
    with pytest.raises(UserError, match=r"no such key: \*\*\*") as caught:
        send(client, call(2))
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "Retrying request" in caplog.text, "the SDK's log was not caught"
    assert KEY not in caplog.text
    assert all(KEY not in repr(record.args) for record in caplog.records)


# ---- many ----


def test_send_hundreds_with_every_fault_end_with_a_status_and_the_count_agrees(serve):
    names = ("rate_limited", "server_error", "overloaded", "dropped", "malformed", "refused", "truncated")
    server = serve(faults=dict.fromkeys(names, 0.05), retry_after_s=0.05)
    client = client_of(server)
    gate = asyncio.Semaphore(8)

    async def one(number):
        async with gate:
            return await client.send(call(number))

    async def run():
        replies = await asyncio.gather(*map(one, range(200)))
        await client.aclose()
        return replies

    replies = asyncio.run(run())
    stats = server.stats()
    assert {reply.status for reply in replies} == {"ok", "refused", "truncated", "failed"}
    assert stats["n_contents"] == stats["n_answered"] == 200
    assert stats["n_repeated"] == 0
    assert set(stats["by_fault"]) == set(names)
    assert sum(reply.n_unsettled for reply in replies) == stats["n_broken_off"] == stats["by_fault"]["dropped"]
    counted = sum(event["usage"].get("n_output_tokens", 0) for event in server.events if event["fault"] != "dropped")
    assert sum(reply.usage.n_output_tokens for reply in replies) == counted


# ---- tokens and batches ----


def test_count_tokens_is_what_the_call_then_uses_and_costs_nothing(serve):
    server = serve()
    client = client_of(server)
    n = client.count_tokens(call())
    assert server.stats()["cost_usd"] == 0
    [reply] = send(client, call())
    assert n == reply.usage.n_input_tokens + reply.usage.n_cache_write_tokens


def test_count_tokens_with_a_wrong_key_is_a_user_error(serve):
    with pytest.raises(UserError, match="401"):
        client_of(serve(), key="wrong").count_tokens(call())


def test_batch_round_trip_returns_every_call_with_its_reply_at_half_the_price(serve):
    server = serve(batch_delay_s=0.3, faults={"server_error": 0.3, "refused": 0.3}, seed=3)
    client = client_of(server)
    calls = [call(number) for number in range(20)]
    batch = client.create_batch(calls)
    assert (batch.n_calls, batch.is_ended) == (20, False)
    with pytest.raises(ConnectionError, match="Has it finished processing"):
        client.batch_results(batch.batch_id)
    deadline = time.monotonic() + 5
    while not client.get_batch(batch.batch_id).is_ended:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    results = dict(client.batch_results(batch.batch_id))
    assert set(results) == {c.call_id for c in calls}
    assert [i for i, _ in client.batch_results(batch.batch_id)] != [c.call_id for c in calls], "order is not promised"
    assert {reply.status for reply in results.values()} == {"ok", "refused", "failed"}
    failed = next(reply for reply in results.values() if reply.status == "failed")
    assert failed.detail == "Anthropic answered api_error: server error"
    done = [reply for reply in results.values() if reply.status == "ok"]
    assert all(reply.latency_ms is None and Items.model_validate_json(reply.text) for reply in done)
    totals = [
        (r.usage.n_input_tokens + 1.25 * r.usage.n_cache_write_tokens + 0.1 * r.usage.n_cache_read_tokens)
        + 5 * r.usage.n_output_tokens
        for r in results.values()
    ]
    assert server.stats()["cost_usd"] == pytest.approx(sum(totals) / 2 / 1e6)


def test_batch_results_name_expired_cancelled_and_wrong_requests(serve):
    server = serve(faults={"stalled": 1.0}, batch_delay_s=0.2)
    client = client_of(server)
    expired, cancelled = client.create_batch([call(1)]), client.create_batch([call(2)])
    server.cancel_batch(cancelled.batch_id)
    for batch in (expired, cancelled):
        server.end_batch(batch.batch_id)
    [(_, first)], [(_, second)] = (client.batch_results(b.batch_id) for b in (expired, cancelled))
    assert (first.status, first.detail) == ("failed", "the batch ended before its turn came")
    assert (second.status, second.detail) == ("failed", "the batch was cancelled")
    wrong = client.create_batch([call(model="gpt-4")])
    server.end_batch(wrong.batch_id)
    [(_, third)] = client.batch_results(wrong.batch_id)
    assert (third.status, third.detail) == ("failed", "Anthropic answered not_found_error: model: gpt-4")
    assert server.stats()["cost_usd"] == 0


def test_list_batches_returns_those_since_a_time_newest_first_over_pages(serve):
    server = serve()
    client = client_of(server)
    made = [client.create_batch([call(number)]).batch_id for number in range(3)]
    for entry in server._batches.values():
        entry["batch"]["created_at"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    since = datetime.now(UTC).isoformat()
    made += [client.create_batch([call(number)]).batch_id for number in range(3, 108)]
    assert [batch.batch_id for batch in client.list_batches(since)] == made[:2:-1]
    assert len(client.list_batches((datetime.now(UTC) - timedelta(hours=2)).isoformat())) == 108


def test_create_batch_that_broke_off_is_not_repeated_and_is_found_again(serve):
    server = serve(dropped_batch_creates=1)
    client = client_of(server)
    since = datetime.now(UTC).isoformat()
    with pytest.raises(ConnectionError, match="broke off before the answer"):
        client.create_batch([call()])
    [batch] = client.list_batches(since)
    [(call_id, reply)] = client.batch_results(batch.batch_id)
    assert (call_id, reply.status) == (call().call_id, "ok")
    assert server.stats()["n_requests"] == 1


def test_batch_whose_results_the_provider_no_longer_keeps_is_lost(serve):
    server = serve()
    client = client_of(server)
    batch = client.create_batch([call()])
    [entry] = server._batches.values()
    entry["batch"] |= {"archived_at": datetime.now(UTC).isoformat(), "results_url": None}
    with pytest.raises(LostBatchError, match=f"no longer keeps the results of {batch.batch_id}: set teacher.resend"):
        client.get_batch(batch.batch_id)


def test_batch_that_the_provider_does_not_have_is_a_user_error(serve):
    with pytest.raises(UserError, match="msgbatch_0 was made with another key, or is older"):
        client_of(serve()).get_batch("msgbatch_0")


# ---- the server itself ----


def test_server_refuses_a_request_without_version_or_with_unknown_fields(serve):
    server = serve()
    body = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}

    def post(body, headers=headers):
        reply = httpx2.post(f"{server.url}/v1/messages", json=body, headers=headers)
        return reply.status_code, reply.json(), reply.headers

    status, answer, answered = post(body)
    assert (status, answer["type"], answer["stop_reason"]) == (200, "message", "end_turn")
    assert int(answered["anthropic-ratelimit-requests-remaining"]) < int(answered["anthropic-ratelimit-requests-limit"])
    for changes, said in [
        ({"temprature": 1}, "temprature: Extra inputs are not permitted"),
        ({"max_tokens": None}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role: Input should be 'user' or 'assistant'"),
        ({"messages": []}, "messages: at least one message is required"),
    ]:
        status, answer, answered = post({**body, **changes})
        assert (status, answer["error"]) == (400, {"type": "invalid_request_error", "message": said})
        assert answer["request_id"] == answered["request-id"]
    assert post(body, {"x-api-key": KEY})[1]["error"]["message"] == "anthropic-version: header is required"
    assert post(body, {"anthropic-version": "2023-06-01"})[0] == 401


def test_server_over_its_rate_answers_429_with_retry_after(serve):
    server = serve(requests_per_minute=2, retry_after_s=7)
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    body = {"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    replies = [httpx2.post(f"{server.url}/v1/messages", json=body, headers=headers) for _ in range(4)]
    late = [reply for reply in replies if reply.status_code == 429]
    assert late, "two a minute were allowed, and four came"
    assert late[0].headers["retry-after"] == "7"
    assert late[0].headers["anthropic-ratelimit-requests-remaining"] == "0"


def test_server_process_counts_on_after_it_was_killed(tmp_path):
    log = tmp_path / "count.jsonl"
    command = [sys.executable, "-m", "ev_platform_tests.teachers.anthropic_server", "--log", str(log), "--api-key", KEY]
    costs = []
    for number in range(2):
        process = subprocess.Popen([*command, "--input-usd", "2"], stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().strip()
            config = TeacherConfig(provider="anthropic", model="claude-haiku-4-5")
            send(AnthropicClient(config, KEY, url), call(number), call(0))
            costs.append(httpx2.get(f"{url}/_stats").json())
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
    assert [stats["n_answered"] for stats in costs] == [2, 4]
    assert [stats["n_contents"] for stats in costs] == [1, 2]
    assert costs[1]["n_repeated"] == 1  # call 0 was asked three times
    assert costs[1]["cost_usd"] > costs[0]["cost_usd"] > 0
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 4
