"""Nothing that costs money is reachable without a model of what it costs."""

import pytest
from paid_bodies import BODIES, OTHER_NAMES, QUOTED, UNPRICED, sent
from support import limited
from yarl import URL

from service import app as application
from service.gateway import ENDPOINTS, FREE_PATHS

FIXED = {path for path in BODIES if path.startswith(("/augment/", "/crypto/"))}
"""What costs the same whatever the catalogue says."""
OTHER = "/api/v1/{other}"
"""What is not known here: without a price, so refused where there is a limit of money."""
PREFIXES = ("/v1", "/api/v1")

pytestmark = pytest.mark.shares_service


def paid_calls(upstream):
    """What reached Venice and costs something there."""
    return [call for call in upstream.calls if call.method == "POST" and "quote" not in call.path]


async def refusal(service, caller, url, **body):
    """Status and code of the answer to a call."""
    async with service.http.post(url, headers=caller.headers, **body) as response:
        return response.status, (await response.json())["error"]["code"]


def callers_routes(service):
    """The path of every route that callers use and that is no mere reading."""
    return {
        route.resource.canonical
        for route in service.app.router.routes()
        if route.method not in ("GET", "HEAD")
        and not route.resource.canonical.startswith("/admin/")
    }


async def test_every_route_is_paid_or_known_to_be_free(service):
    """A new route needs its place in this file, and so a cost model or a reason to need none."""
    paid = {prefix + path for path in BODIES for prefix in PREFIXES}
    free_paths = (*FREE_PATHS, "/messages/count_tokens")
    free = {prefix + path for path in free_paths for prefix in PREFIXES}
    quotes = {"/v1/quote", "/v1/quote/{path}"}

    assert callers_routes(service) == paid | free | quotes | {OTHER}
    assert {endpoint.path for endpoint in ENDPOINTS} | set(OTHER_NAMES) == set(BODIES)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", BODIES)
async def test_without_money_nothing_reaches_venice(service, upstream, caller, path, prefix):
    """With a limit of nothing each paid route is refused before Venice hears of the call."""
    await limited(caller, unit="usd", period="lifetime", ceiling="0")

    status, code = await refusal(
        service, caller, prefix + path.format(network="base-mainnet"), **sent(BODIES[path])
    )

    assert (status, code) == (402, "price_unknown" if path in UNPRICED else "limit_exceeded")
    assert paid_calls(upstream) == []


@pytest.mark.parametrize("path", sorted(set(BODIES) - UNPRICED - QUOTED - FIXED))
async def test_a_model_without_a_price_is_refused(service, upstream, caller, path):
    """Even with money left: what a call costs must be known where it is limited."""
    await limited(caller, unit="usd", period="lifetime", ceiling="100")
    catalog = service.app[application.api.CATALOG]
    for name in catalog.names:
        upstream.listing.change(name, {"pricing": None})
    await catalog.sync()

    assert await refusal(service, caller, "/v1" + path, **sent(BODIES[path])) == (
        402,
        "price_unknown",
    )
    assert paid_calls(upstream) == []


ACCOUNT = ["api_keys", "billing/usage", "x402/top-up"]
DETOURS = ["{}", "x/../{}", "x/%2e%2e/{}", "./{}", "/{}", "%2F{}", "x/..%2f{}", "x\\..\\{}", "{}/"]


@pytest.mark.parametrize("detour", DETOURS)
async def test_the_account_is_not_reachable(service, upstream, caller, detour):
    """Whatever a server may make of a path."""
    for spelling in (*ACCOUNT, *map(str.upper, ACCOUNT)):
        url = URL(f"/api/v1/{detour.format(spelling)}", encoded=True)
        async with service.http.get(url, headers=caller.headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")

    lists = {"/models", "/models/traits", "/models/compatibility_mapping"}
    assert {call.path for call in upstream.calls} <= lists


@pytest.mark.parametrize("path", ["/crypto/rpc/%2e%2e", "/crypto/rpc/..%2Fbilling"])
async def test_a_name_in_a_path_stays_one(service, upstream, caller, path):
    """Also in the paths that are known."""
    url = URL(f"/api/v1{path}", encoded=True)
    async with service.http.post(url, headers=caller.headers, json={"method": "a"}) as response:
        assert response.status == 404

    assert paid_calls(upstream) == []


async def test_a_path_that_is_not_known_has_no_price(service, upstream, caller):
    """Venice may charge anything for what it adds tomorrow."""
    await limited(caller, unit="usd", period="lifetime", ceiling="100")

    assert await refusal(service, caller, "/api/v1/new/thing", json={}) == (402, "price_unknown")
    assert paid_calls(upstream) == []
