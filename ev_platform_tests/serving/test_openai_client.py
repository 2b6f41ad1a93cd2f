"""The official client library against a real server: what its users do, unchanged."""

import asyncio

import openai  # noqa: TID253
import pytest

from ev_platform.serving.config import ServingConfig
from ev_platform.serving.keys import KeyLimits, create_key
from ev_platform_tests.serving.fakes import fake_release
from ev_platform_tests.serving.server import QUESTION, Server
from ev_platform_tests.serving.test_streaming import WORDS, WritingEngine

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


def client_of(server, key=None, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or server.key, max_retries=0, **options)


def test_chat_is_answered_with_its_sources(client):
    answer = client.chat.completions.create(model="fake_task", messages=MESSAGES, temperature=0, max_tokens=16)
    assert answer.choices[0].message.content.startswith("temperature=0.0 seed=0 max_new_tokens=16 ")
    assert (answer.model, answer.choices[0].finish_reason) == ("fake_task@3", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.sources[0]["chunk_id"] == "chk_manual"
    assert answer.id == f"chatcmpl-{answer._request_id}"


def test_chat_is_streamed_with_usage_and_sources(tmp_path):
    with Server(tmp_path, fake_release(engine=WritingEngine())) as server, client_of(server) as client:
        stream = client.chat.completions.create(
            model="fake_task", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        with client.chat.completions.stream(model="fake_task", messages=MESSAGES) as helped:
            final = helped.get_final_completion()
    assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == WORDS
    assert chunks[4].choices[0].finish_reason == "stop"
    assert chunks[4].sources[1]["chunk_id"] == "chk_cable"
    assert chunks[5].usage.completion_tokens == 3
    assert final.choices[0].message.content == "".join(WORDS)


def test_asynchronous_client_gets_the_same(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
            whole = await client.chat.completions.create(model="fake_task", messages=MESSAGES)
            stream = await client.chat.completions.create(model="fake_task", messages=MESSAGES, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed


def test_models_are_listed(client):
    (card,) = client.models.list()
    assert (card.id, card.object, card.owned_by, card.version) == ("fake_task", "model", "ev-platform", "fake_task@3")


def test_raw_response_tells_request_id_and_limits(server):
    key = create_key(server.root, "raw")
    with client_of(server, key) as client:
        raw = client.chat.completions.with_raw_response.create(model="fake_task", messages=MESSAGES)
    assert raw.http_response.status_code == 200
    assert raw.parse().id == f"chatcmpl-{raw.headers['x-request-id']}"
    assert int(raw.headers["x-ratelimit-remaining-requests"]) == 59


def test_same_question_gets_the_same_answer_and_stop_ends_it(client):
    def ask(**options):
        return client.chat.completions.create(model="fake_task", messages=MESSAGES, temperature=0, **options)

    first, second = (ask(seed=1).choices[0].message.content for _ in range(2))
    assert first == second
    before, mark, _ = first.partition("RCD")
    assert mark
    for stop in ("RCD", ["nowhere", "RCD"]):
        cut = ask(seed=1, stop=stop).choices[0]
        assert (cut.message.content.strip(), cut.finish_reason) == (before.strip(), "stop")


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 49}, openai.BadRequestError, "invalid_value"),
        ({"n": 2}, openai.BadRequestError, "unsupported"),
        ({"messages": [{"role": "system", "content": "Be rude."}, *MESSAGES]}, openai.BadRequestError, "unsupported"),
        ({"messages": [{"role": "user", "content": "a " * 200}]}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": []}, openai.UnprocessableEntityError, "invalid_value"),
        ({"messages": [{"role": "user", "content": "explode"}]}, openai.InternalServerError, "internal_error"),
    ],
)
def test_refusals_are_the_librarys_exceptions(client, options, error, code):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": "fake_task", "messages": MESSAGES} | options)
    assert raised.value.code == code
    assert raised.value.body["message"]
    assert raised.value.request_id


def test_keys_that_may_not_are_the_librarys_exceptions(server):
    def ask(key):
        with client_of(server, key) as client:
            client.chat.completions.create(model="fake_task", messages=MESSAGES)

    with pytest.raises(openai.AuthenticationError) as wrong:
        ask("ev_00000000_" + "x" * 43)
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError) as scope:
        ask(create_key(server.root, "rates only", scopes=("feedback",)))
    assert scope.value.code == "missing_scope"
    slow = create_key(server.root, "slow", limits=KeyLimits(requests_per_minute=1))
    ask(slow)
    with pytest.raises(openai.RateLimitError) as limited:
        ask(slow)
    assert limited.value.code == "rate_limit_exceeded"
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 60


def test_fault_in_a_stream_is_the_librarys_exception(tmp_path):
    engine = WritingEngine(explodes=True)
    with Server(tmp_path, fake_release(engine=engine)) as server, client_of(server) as client:
        stream = client.chat.completions.create(model="fake_task", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert raised.value.code == "internal_error"


def test_timeout_is_the_librarys_exception(tmp_path):
    with Server(tmp_path, config=ServingConfig(request_timeout_s=0.1)) as server, client_of(server) as client:
        server.release.engine.may_answer.clear()
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="fake_task", messages=MESSAGES)
        server.release.engine.may_answer.set()
    assert (raised.value.status_code, raised.value.code) == (504, "timeout")


def test_client_that_closes_its_stream_stops_the_engine(tmp_path):
    engine = WritingEngine()
    with Server(tmp_path, fake_release(engine=engine)) as server, client_of(server) as client:
        engine.may_answer.clear()
        stream = client.chat.completions.create(model="fake_task", messages=MESSAGES, stream=True)
        next(stream)
        assert engine.has_begun.wait(5)
        stream.close()
        assert engine.was_stopped.wait(5)
