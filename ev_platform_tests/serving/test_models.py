"""Streamed answers as the routes read them, without HTTP."""

import asyncio

import pytest

from ev_platform.serving.exchange import Delta
from ev_platform.serving.models import Pieces
from ev_platform.serving.schemas import ApiError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_stream_that_is_cancelled_from_elsewhere_ends_with_a_fault():
    async def stream():
        yield Delta("Every")
        raise asyncio.CancelledError  # as of a call that somebody else has given up

    pieces = Pieces(stream())
    async with asyncio.timeout(5):
        assert await pieces.next() == Delta("Every")
        with pytest.raises(ApiError) as refused:
            await pieces.next()
    assert refused.value.status == 500
