"""Informational responses (1xx) before the response: a few are ignored, and any number has a
deadline."""

import asyncio
import time

import pytest
from odd_venice import MODEL, odd_venice, serving, whole

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
ANSWER = whole(
    b'{"id":"c","model":"m","choices":[{"index":0,"finish_reason":"stop","message":'
    b'{"role":"assistant","content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
)


@pytest.fixture
async def venice():
    """A running OddVenice."""
    async with odd_venice() as venice:
        yield venice


@pytest.fixture
async def caller(database_address, venice):
    """A caller of a service with short timeouts."""
    changes = {"venice_silence_timeout_s": 1.0, "venice_connect_timeout_s": 1.0}
    async with serving(database_address, venice, **changes) as service:
        yield await service.new_caller()


async def test_a_few_are_ignored(caller, venice):
    """A few informational responses are ignored, as HTTP requires."""
    venice.answer = INTERIM * 5 + ANSWER
    async with caller.chat(model=MODEL) as response:
        assert response.status == 200


@pytest.mark.parametrize("count", [1, 10_000])
async def test_endless_ones_have_a_deadline(caller, venice, count):
    """Endless informational responses, or silence after one, end the call at the deadline."""

    async def answer(_, writer):
        for _ in range(count):
            writer.write(INTERIM)
            await writer.drain()
            await asyncio.sleep(0.02)
        await asyncio.sleep(60)

    venice.answer = answer
    began = time.monotonic()
    async with asyncio.timeout(20), caller.chat(model=MODEL) as response:
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "upstream_timeout"
    assert time.monotonic() - began < 10
