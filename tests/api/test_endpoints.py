"""Every paid endpoint: what its calls leave in the books, however they end."""

import asyncio

import aiohttp
import pytest
from paid_bodies import BODIES, ENDPOINT_ALIASES, UNPRICED, payload
from support import cost_of, set_limit

STREAMED = {
    "/chat/completions": {"stream": True},
    "/responses": {"stream": True},
    "/messages": {"stream": True},
    "/audio/speech": {"streaming": True},
}
"""What makes the same call one whose answer comes in pieces."""
CASES = [
    *(pytest.param(path, BODIES[path], id=path) for path in BODIES),
    *(
        pytest.param(path, BODIES[path] | more, id=f"{path} streamed")
        for path, more in STREAMED.items()
    ),
]
NANOS = 10**9

pytestmark = pytest.mark.shares_service


def post(caller, path, body, **more):
    """A call, to be used with ``async with``."""
    url = "/v1" + path.format(network="base-mainnet")
    return caller.service.http.post(url, headers=caller.headers, **payload(body), **more)


def charged(upstream):
    """What Venice charged for all calls, in nano-dollars."""
    return sum(call.charged_nanos for call in upstream.calls)


def endpoint_of(path):
    """The name of a path in the books."""
    return ENDPOINT_ALIASES.get(path, path)


def at_venice(path):
    """Where Venice gets the call."""
    return endpoint_of(path).format(network="base-mainnet")


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_an_answer_is_booked_at_its_cost(upstream, caller, path, body):
    """To the nano-dollar what Venice charged; where Venice states no price, it is unknown."""
    async with post(caller, path, body) as response:
        assert response.status == 200, await response.text()
        assert await response.read()

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["endpoint"]) == ("ok", endpoint_of(path))
    assert charged(upstream) > 0
    if path in UNPRICED:
        assert (entry["cost_usd"], entry["cost_source"]) == (None, "unknown")
    else:
        assert cost_of(entry) * NANOS == charged(upstream)
    await caller.audit()


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_a_refused_call_is_not_booked(upstream, caller, path, body):
    """And Venice does not hear of it; its price may be asked."""
    await set_limit(caller, unit="requests", period="day", ceiling=0)
    async with post(caller, path, body) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            400,
            "call_too_large",
        )

    assert await caller.entries() == []
    assert charged(upstream) == 0


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_venices_refusal_costs_nothing(upstream, caller, path, body):
    """Whatever the limits: there is room for the next call at once."""
    upstream.faults.push(at_venice(path), "content_policy")
    async with post(caller, path, body) as response:
        assert response.status == 422
        assert (await response.json())["error"]["code"] == "upstream_rejected"

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", "not_charged")
    assert entry["cost_usd"] == "0.00"
    await caller.audit()


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_an_unknown_end_is_booked_at_the_bound(upstream, caller, path, body):
    """Nobody knows what Venice charged: never more than the bound is taken for it, and never
    nothing where there is a price."""
    upstream.faults.push(at_venice(path), "disconnect")
    async with post(caller, path, body) as response:
        assert response.status == 502

    entry = await caller.only_entry()
    assert entry["outcome"] == "upstream_cut"
    assert entry["cost_source"] == "unknown" if path in UNPRICED else cost_of(entry) > 0
    await caller.audit()


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_a_caller_that_leaves_is_booked(upstream, caller, path, body):
    """Once, and with nothing held afterwards."""
    upstream.faults.push(at_venice(path), "hang")
    with pytest.raises(TimeoutError):
        async with post(caller, path, body, timeout=aiohttp.ClientTimeout(total=0.3)):
            pass
    async with asyncio.timeout(5):
        while not await caller.entries():
            await asyncio.sleep(0.01)

    assert (await caller.only_entry())["outcome"] == "client_closed"
    await caller.audit()
