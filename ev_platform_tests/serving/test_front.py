import asyncio

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from ev_platform.serving.front import Front


async def silent(scope, receive, send):
    """Do what Serve's proxy does where the gateway has died under a request."""


def ask(app, path="/v1/models", **headers):
    async def run():
        transport = httpx.ASGITransport(Front(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

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


def test_headers_that_steer_the_proxy_do_not_reach_it():
    async def echo(scope, receive, send):
        await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)

    names = ask(echo, x_request_timeout_seconds="1", x_request_disconnect_disabled="?1", x_kept="1").json()
    assert "x-kept" in names
    assert not {"x-request-timeout-seconds", "x-request-disconnect-disabled"} & set(names)


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
