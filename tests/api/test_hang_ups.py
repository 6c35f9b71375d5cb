"""Callers that hang up whose key wants the answer read to its end: billed exactly."""

import asyncio

import pytest
from support import cost_of, limited

from service.api import GATEWAY


@pytest.fixture
async def caller(service):
    """Somebody whose answers are finished without them."""
    caller = await service.new_caller(settings={"on_disconnect": "finish"})
    await limited(caller, unit="usd", period="day", ceiling="100")
    await limited(caller, unit="concurrency", ceiling=10)
    return caller


async def settled(caller):
    """The one entry, once it is there."""
    async with asyncio.timeout(10):
        while not (entries := await caller.entries()):
            await asyncio.sleep(0.02)
    (entry,) = entries
    return entry


def charged(upstream):
    """What Venice charged for the one call, in US dollars, which it was left to finish."""
    (call,) = upstream.calls.to("/chat/completions")
    assert call.cut_at is None
    return call.charged_nanos / 10**9


@pytest.mark.parametrize("maximum", [100, 20_000])
@pytest.mark.parametrize("stream", [True, False])
async def test_it_costs_what_venice_charges(upstream, caller, stream, maximum):
    """Streamed, plain, or put together: the entry has Venice's own word."""
    content = "[tokens=30][delay=0.02]"
    waiting = asyncio.create_task(
        caller.chat(content, stream=stream, max_tokens=maximum).__aenter__()
    )
    async with asyncio.timeout(5):
        while not upstream.calls.to("/chat/completions"):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    if waiting.done():
        waiting.result().close()
    waiting.cancel()

    entry = await settled(caller)

    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "reported")
    assert entry["output_tokens"] == 30
    assert float(cost_of(entry)) == charged(upstream)


async def test_a_stream_left_in_the_middle_is_finished(upstream, caller):
    """Its hold stays until then, so that limits go on counting it."""
    async with caller.chat("[tokens=60][delay=0.02]", stream=True) as response:
        for _ in range(6):
            await response.content.readline()
        response.close()
    await asyncio.sleep(0.1)
    gateway = caller.service.app[GATEWAY]
    assert gateway.open_calls == 1

    entry = await settled(caller)
    assert (entry["cost_source"], entry["output_tokens"]) == ("reported", 60)
    assert float(cost_of(entry)) == charged(upstream)
    assert gateway.open_calls == 0


async def test_one_that_venice_breaks_is_estimated(upstream, caller):
    """What is known by then is what is booked."""
    upstream.faults.push("/chat/completions", "cut", after=20)
    async with caller.chat("[tokens=60][delay=0.02]", stream=True) as response:
        await response.content.readline()
        response.close()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert 10 < entry["output_tokens"] <= 20


async def test_a_shutdown_ends_it(upstream, caller):
    """And its entry is written."""
    upstream.faults.push("/chat/completions", "stall", after=5)
    async with caller.chat("[tokens=60]", stream=True) as response:
        await response.content.readline()
        await upstream.faults.wait_held(1)
        response.close()
    gateway = caller.service.app[GATEWAY]
    await asyncio.sleep(0.1)
    assert gateway.open_calls == 1

    await gateway.close()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert gateway.open_calls == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_what_venice_refuses_after_all_costs_nothing(upstream, caller, stream):
    """It never ran."""
    upstream.faults.push("/chat/completions", "slow_headers", seconds=0.5)
    body = "word " * 200_000
    waiting = asyncio.create_task(caller.chat(body, stream=stream).__aenter__())
    async with asyncio.timeout(5):
        while not upstream.calls.to("/chat/completions"):
            await asyncio.sleep(0.01)
    waiting.cancel()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "not_charged")
