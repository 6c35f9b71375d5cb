"""Venice's client asks the gateway about limits and balances."""

from decimal import Decimal

import pytest
import venice_ai
from support import MODEL, set_limit


@pytest.fixture
async def client(caller):
    """Venice's client with a caller's key."""
    url = f"{caller.service.url}/api/v1"
    async with venice_ai.VeniceClient(base_url=url, api_key=caller.key) as client:
        yield client


async def test_without_limits(client, upstream):
    """A caller without limits sees no bound, and nothing of the operator's account."""
    limits = (await client.api_keys.get_rate_limits()).data
    balance = await client.billing.get_balance()

    assert limits.accessPermitted
    assert limits.rateLimits == []
    assert limits.balances.USD == 1_000_000_000
    assert (balance.can_consume, balance.balances.usd, balance.balances.diem) == (True, None, None)
    account = ("/api_keys/rate_limits", "/billing/balance")
    assert [call for call in upstream.calls if call.path in account] == []


async def test_money(client, caller):
    """The balance is what the tightest limit of money leaves, to the nano-dollar."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_limit(caller, unit="usd", period="day", ceiling="0.123456789", of_key=True)
    await set_limit(caller, unit="usd", period="day", ceiling="0", model="venice-sd35")
    async with caller.chat(content="[tokens=7]") as response:
        await response.read()
    await set_limit(caller, unit="usd", period="day", ceiling="0", each_end_user=True)
    left = Decimal("0.123456789") - Decimal((await caller.only_entry())["cost_usd"])

    for path in ("/v1/billing/balance", "/api/v1/billing/balance"):
        async with caller.service.http.get(path, headers=caller.headers) as response:
            assert str(left) in await response.text()
    assert (await client.billing.get_balance()).balances.usd == float(left)


@pytest.mark.parametrize("ceiling", ["0", "0.00"])
async def test_spent(client, caller, ceiling):
    """A caller whose money is used up has no access."""
    await set_limit(caller, unit="usd", period="lifetime", ceiling=ceiling)

    assert not (await client.api_keys.get_rate_limits()).data.accessPermitted
    assert not (await client.billing.get_balance()).can_consume


async def test_rates(client, caller):
    """Each model is listed with the lowest rate limit that binds its calls."""
    await set_limit(caller, unit="requests", period="minute", ceiling=60)
    await set_limit(caller, unit="requests", period="minute", ceiling=90, of_key=True)
    await set_limit(caller, unit="requests", period="minute", ceiling=30, model=MODEL)
    await set_limit(caller, unit="tokens", period="minute", ceiling=1000, model=MODEL)
    stated = {
        model.apiModelId: {rate.type: rate.amount for rate in model.rateLimits}
        for model in (await client.api_keys.get_rate_limits()).data.rateLimits
    }

    assert stated[MODEL] == {"RPM": 30, "TPM": 1000}
    assert stated["venice-sd35"] == {"RPM": 60}


async def test_another_caller_sees_nothing_of_it(caller, service):
    """A caller of another organization does not see these limits."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    other = await service.new_caller("other")
    async with service.http.get("/v1/billing/balance", headers=other.headers) as response:
        assert (await response.json())["balances"]["usd"] is None
    async with service.http.get("/v1/billing/balance") as response:
        assert response.status == 401
