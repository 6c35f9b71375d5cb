"""Nothing that costs money is reachable without a model of what it costs."""

import pytest
from support import MODEL, limited

from service import app as application

BODIES = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
}
"""A small call for each paid route, the same under ``/api/v1``."""
FREE = {"/v1/quote"}
"""What asks Venice for nothing."""


def callers_routes(service):
    """Method and path of every route that callers use and that is no mere reading."""
    return {
        (route.method, route.resource.canonical)
        for route in service.app.router.routes()
        if route.method not in ("GET", "HEAD")
        and not route.resource.canonical.startswith("/admin/")
    }


async def test_every_route_is_paid_or_known_to_be_free(service):
    """A new route needs its place in this file, and so a cost model or a reason to need none."""
    known = {f"{prefix}{path}" for path in BODIES for prefix in ("", "/api")} | FREE

    assert {path for _, path in callers_routes(service)} - known == set()


@pytest.mark.parametrize("path", [f"{prefix}{path}" for path in BODIES for prefix in ("", "/api")])
async def test_without_money_nothing_reaches_venice(service, upstream, caller, path):
    """With a limit of nothing each paid route is refused before Venice hears of the call; so is a
    model without a price."""
    await limited(caller, unit="usd", period="lifetime", ceiling="0")
    body = BODIES[path.removeprefix("/api")]
    catalog = service.app[application.api.CATALOG]
    for price_is_known in (True, False):
        if not price_is_known:
            del catalog._prices[MODEL]
        async with service.http.post(path, json=body, headers=caller.headers) as response:
            error = (await response.json())["error"]
        assert response.status == 402
        assert error["code"] == ("limit_exceeded" if price_is_known else "price_unknown")

    assert [call for call in upstream.calls if call.method == "POST"] == []
