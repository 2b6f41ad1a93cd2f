import asyncio

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from ev_platform.serving.front import Front


async def silent(scope, receive, send):
    """Do what Serve's proxy does where the gateway has died under a request."""


def ask(app, path="/v1/models", **headers):
    return send(app, [(name.replace("_", "-"), value) for name, value in headers.items()], path)


def send(app, headers, path="/v1/models"):
    async def run():
        transport = httpx.ASGITransport(Front(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize("app", [silent, PlainTextResponse("Request 7 timed out.", 408), PlainTextResponse("no", 503)])
def test_what_the_proxy_says_of_a_fault_is_told_in_openais_form(app):
    reply = ask(app)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert reply.headers["retry-after"] == "5"
    assert reply.headers["x-request-id"]


def test_what_the_gateway_says_passes_unchanged():
    refused = ask(JSONResponse({"error": {"code": "overloaded"}}, 503))
    assert (refused.status_code, refused.json()) == (503, {"error": {"code": "overloaded"}})
    figures = ask(PlainTextResponse("requests_total 7"))  # such as Prometheus reads
    assert (figures.status_code, figures.text) == (200, "requests_total 7")


def test_request_id_of_gateway_and_proxy_is_told_once():
    answer = JSONResponse({})
    answer.raw_headers += [(b"x-request-id", b"mine"), (b"x-request-id", b"mine")]
    assert ask(answer).headers.get_list("x-request-id") == ["mine"]


def test_headers_that_steer_the_proxy_do_not_reach_it():
    async def echo(scope, receive, send):
        await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)

    steering = ["X-Request-Timeout-Seconds", "x-request-disconnect-disabled", "x-session-id", "x_session_id"]
    steering += ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id"]
    names = send(echo, [(name, b"\xff") for name in steering] + [("x-kept", b"\xff")]).json()
    assert "x-kept" in names
    assert not {name.lower() for name in steering} & set(names)


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-/"])
def test_serves_own_paths_are_not_found(path):
    reply = ask(PlainTextResponse("ev_platform"), path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("request_id", ["a b", "x" * 65, b"\xe9", "new\tline"])
def test_request_id_that_is_none_is_refused(request_id):
    reply = ask(JSONResponse({}), x_request_id=request_id)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-request-id")


def test_request_id_of_the_client_passes():
    assert ask(JSONResponse({}), x_request_id="from-the_client.7").status_code == 200


def test_second_request_id_that_is_none_is_refused():
    reply = send(JSONResponse({}), [("x-request-id", "mine"), ("x-request-id", b"\xff")])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-request-id")


def test_fault_of_the_proxy_is_told_in_openais_form_and_logged_without_its_words(capsys):
    async def stumble(scope, receive, send):
        raise UnicodeDecodeError("utf-8", b"secret", 0, 1, "invalid start byte")

    reply = ask(stumble)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    told = capsys.readouterr().err
    assert "UnicodeDecodeError" in told
    assert "secret" not in told
