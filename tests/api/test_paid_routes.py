"""No route that costs money can be reached without a model of its cost."""

import pytest
from paid_bodies import (
    BODIES,
    ENDPOINT_ALIASES,
    QUOTED_ENDPOINTS,
    UNPRICED,
    payload,
)
from support import MODEL, make_settings, running, set_alias, set_limit
from yarl import URL

from service import app as application
from service.gateway import ENDPOINTS, FREE_PATHS

FIXED = {path for path in BODIES if path.startswith(("/augment/", "/crypto/"))}
"""Endpoints with a fixed price, whatever the catalog has."""
OTHER = "/api/v1/{other}"
"""An unknown path: it has no price, so a limit of money refuses it."""
PREFIXES = ("/v1", "/api/v1")

pytestmark = pytest.mark.shares_service


def paid_calls(upstream):
    """Return the calls that reached Venice and cost something there."""
    return [call for call in upstream.calls if call.method == "POST" and "quote" not in call.path]


async def refusal(service, caller, url, **body):
    """Send a call; return the response's status and code."""
    async with service.http.post(url, headers=caller.headers, **body) as response:
        return response.status, (await response.json())["error"]["code"]


def callers_routes(service):
    """Return the path of every caller's route that does more than read."""
    return {
        route.resource.canonical
        for route in service.app.router.routes()
        if route.method not in ("GET", "HEAD")
        and not route.resource.canonical.startswith(("/admin/", "/dashboard/"))
    }


async def test_every_route_is_paid_or_known_to_be_free(service):
    """A new route must be listed in this file with a cost model, or as known to be free."""
    paid = {prefix + path for path in BODIES for prefix in PREFIXES}
    free_paths = (*FREE_PATHS, "/messages/count_tokens")
    free = {prefix + path for path in free_paths for prefix in PREFIXES}
    own = {"/", "/v1/quote", "/v1/quote/{path}", "/v1/key/rotate"}

    assert callers_routes(service) == paid | free | own | {OTHER}
    assert {endpoint.path for endpoint in ENDPOINTS} | set(ENDPOINT_ALIASES) == set(BODIES)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", BODIES)
async def test_without_money_nothing_reaches_venice(service, upstream, caller, path, prefix):
    """With a ceiling of zero each paid route is refused before Venice gets the call."""
    await set_limit(caller, unit="usd", period="lifetime", ceiling="0")

    status, code = await refusal(
        service,
        caller,
        prefix + path.format(network="base-mainnet"),
        **payload(BODIES[path]),
    )

    assert (status, code) == (
        402,
        "price_unknown" if path in UNPRICED else "limit_exceeded",
    )
    assert paid_calls(upstream) == []


@pytest.mark.parametrize("path", sorted(set(BODIES) - UNPRICED - QUOTED_ENDPOINTS - FIXED))
async def test_a_model_without_a_price_is_refused(service, upstream, caller, path):
    """A model without a price is refused under a limit of money, even with money left."""
    await set_limit(caller, unit="usd", period="lifetime", ceiling="100")
    catalog = service.app[application.api.CATALOG]
    for name in catalog.names:
        upstream.listing.change(name, {"pricing": None})
    await catalog.sync()

    assert await refusal(service, caller, "/v1" + path, **payload(BODIES[path])) == (
        402,
        "price_unknown",
    )
    assert paid_calls(upstream) == []


ACCOUNT = ["api_keys", "billing/usage", "x402/top-up"]
DETOURS = ["{}", "x/../{}", "x/%2e%2e/{}", "./{}", "/{}", "%2F{}", "x/..%2f{}", "x\\..\\{}", "{}/"]


CLOSED = [
    "user",
    "keys",
    "users/me",
    "account",
    "new",
    "new/keys",
    "new/api_keys/x",
    "new/Billing",
    "new/thing;x",
    "new/%2e%2e",
    "new/th%20ing",
    "new/%C3%A9",
    "new//thing",
    "new/thing/",
    "new/*",
    "NEW/thing",
    "Unknown",
    "unknown/more",
    "chat/Completions",
    "Chat/Completions",
    "video/Retrieve",
    "VIDEO/complete",
    "image/generate/",
    "models2",
]


OWN_QUESTIONS = {
    "/models",
    "/models/traits",
    "/models/compatibility_mapping",
    "/api_keys/rate_limits",
}
"""The requests that the service itself sends to Venice."""


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", CLOSED)
async def test_unopened_paths_are_closed(service, upstream, caller, method, path):
    """A path that the operator has not opened is closed, and so is one that Venice may take for a
    known path with its price and owner."""
    url = URL(f"/api/v1/{path}", encoded=True)
    async with service.http.request(method, url, headers=caller.headers, json={}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
    assert {call.path for call in upstream.calls} <= OWN_QUESTIONS


@pytest.mark.parametrize("path", ["video/retrieve", "video/queue", "chat/completions"])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_another_method_of_a_known_path_is_closed(database_address, upstream, method, path):
    """Another method of a known path stays closed even if the operator has opened its whole
    family."""
    opened = ("/video/*", "/chat/*")
    settings = make_settings(database_address, upstream.url, venice_other_paths=opened)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with service.http.request(
            method, f"/api/v1/{path}?queue_id=x", headers=caller.headers
        ) as response:
            assert response.status == 404
    assert upstream.calls.to(f"/{path}") == []


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/new/thing", "/new/a/b-c_d.e", "/unknown"])
async def test_opened_paths_are_passed_on(service, upstream, caller, method, path):
    """A path that the operator has opened reaches Venice unchanged."""
    async with service.http.request(
        method, f"/api/v1{path}?a=b", headers=caller.headers
    ) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "upstream_rejected"
    (call,) = upstream.calls.to(path)
    assert (call.method, dict(call.query)) == (method, {"a": "b"})


@pytest.mark.parametrize("detour", DETOURS)
async def test_the_account_is_not_reachable(service, upstream, caller, detour):
    """No spelling of a path reaches the operator's account at Venice."""
    for spelling in (*ACCOUNT, *map(str.upper, ACCOUNT)):
        url = URL(f"/api/v1/{detour.format(spelling)}", encoded=True)
        async with service.http.get(url, headers=caller.headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")

    assert {call.path for call in upstream.calls} <= OWN_QUESTIONS


@pytest.mark.parametrize("path", ["/crypto/rpc/%2e%2e", "/crypto/rpc/..%2Fbilling"])
async def test_a_name_in_a_path_stays_one_segment(service, upstream, caller, path):
    """A name in a path stays one segment, also in known paths."""
    url = URL(f"/api/v1{path}", encoded=True)
    async with service.http.post(url, headers=caller.headers, json={"method": "a"}) as response:
        assert response.status == 404

    assert paid_calls(upstream) == []


async def test_an_unknown_path_has_no_price(service, upstream, caller):
    """An unknown path has no price, because Venice may charge anything for it."""
    await set_limit(caller, unit="usd", period="lifetime", ceiling="100")

    assert await refusal(service, caller, "/api/v1/new/thing", json={}) == (402, "price_unknown")
    assert paid_calls(upstream) == []


@pytest.mark.parametrize(
    ("path", "body", "kept"),
    [
        ("/api/v1/new/Zq7-words", {}, "new/*"),
        ("/api/v1/unknown?q=Zq7-words", {}, "unknown"),
        ("/v1/crypto/rpc/Zq7.words", {"method": "a"}, None),
        (f"/v1/crypto/rpc/{'zq7' * 20}", {"method": "a"}, None),
        ("/v1/crypto/rpc/base-mainnet", {"method": "a"}, "crypto/rpc/base-mainnet"),
        ("/v1/chat/completions", {"model": f"{MODEL}:character_slug=Zq7-words"}, MODEL),
        ("/v1/chat/completions", {"model": "alias:character_slug=Zq7-words"}, MODEL),
    ],
)
async def test_callers_names_are_not_stored(service, upstream, caller, capsys, path, body, kept):
    """The ledger and the log have the operator's or Venice's name of a path, network or model,
    never the caller's text."""
    if body.get("model", "").startswith("alias"):
        await set_alias(service, "alias", [MODEL])
    if "model" in body:
        body = {**body, "messages": [{"role": "user", "content": "x"}]}
    upstream.faults.push("*", "rate_spent", times=1)
    async with service.http.post(path, headers=caller.headers, json=body) as response:
        await response.read()

    entries = await caller.entries()
    assert [entry["model"] for entry in entries] == ([] if kept is None else [kept])
    assert "zq7" not in (str(entries) + capsys.readouterr().out).lower()
