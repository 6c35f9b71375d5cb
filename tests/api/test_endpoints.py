"""The ledger entry of a call on every paid endpoint, however the call ends."""

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
"""Members that turn the same call into a streamed one."""
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
    """Post a call, for use with ``async with``."""
    url = "/v1" + path.format(network="base-mainnet")
    return caller.service.http.post(url, headers=caller.headers, **payload(body), **more)


def charged(upstream):
    """Return what Venice charged for all calls, in nano-dollars."""
    return sum(call.charged_nanos for call in upstream.calls)


def endpoint_of(path):
    """Return the name of a path's endpoint in the ledger."""
    return ENDPOINT_ALIASES.get(path, path)


def at_venice(path):
    """Return the path at which Venice receives the call."""
    return endpoint_of(path).format(network="base-mainnet")


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_a_response_is_recorded_at_its_cost(upstream, caller, path, body):
    """The entry has exactly what Venice charged, or an unknown cost where Venice states no
    price."""
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
async def test_a_refused_call_is_not_recorded(upstream, caller, path, body):
    """A call that a limit refuses has no entry and is not sent to Venice."""
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
    """A call that Venice refuses is recorded as not charged."""
    upstream.faults.push(at_venice(path), "content_policy")
    async with post(caller, path, body) as response:
        assert response.status == 422
        assert (await response.json())["error"]["code"] == "upstream_rejected"

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", "not_charged")
    assert entry["cost_usd"] == "0.00"
    await caller.audit()


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_an_unknown_end_is_recorded_at_the_bound(upstream, caller, path, body):
    """A call that Venice cuts is recorded at an estimate within its bound, and never at zero if it
    has a price."""
    upstream.faults.push(at_venice(path), "disconnect")
    async with post(caller, path, body) as response:
        assert response.status == 502

    entry = await caller.only_entry()
    assert entry["outcome"] == "upstream_cut"
    assert entry["cost_source"] == "unknown" if path in UNPRICED else cost_of(entry) > 0
    await caller.audit()


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_a_caller_that_leaves_is_recorded(upstream, caller, path, body):
    """A call whose caller leaves has one entry, and nothing is held afterwards."""
    upstream.faults.push(at_venice(path), "hang")
    with pytest.raises(TimeoutError):
        async with post(caller, path, body, timeout=aiohttp.ClientTimeout(total=0.3)):
            pass
    async with asyncio.timeout(5):
        while not await caller.entries():
            await asyncio.sleep(0.01)

    assert (await caller.only_entry())["outcome"] == "client_closed"
    await caller.audit()
