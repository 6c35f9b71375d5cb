"""An administrator's pages and forms are those of its own organization; all else is not there."""

import pytest
from support import OPERATOR_KEY, ORGANIZATIONS, limits_of, set_limit
from visits import visiting

from service.dashboard.routes import ROUTES

pytestmark = pytest.mark.shares_service

SECTIONS = ("requests", "organizations", "refusals")
OWN = [
    route
    for route in ROUTES
    if (route.section or route.page) in SECTIONS and route.roles and "admin" in route.roles
]
WITH_ID = [route for route in OWN if "{" in route.path]
OPERATORS = [
    route
    for route in ROUTES
    if (route.section or route.page) in SECTIONS and route.roles and "admin" not in route.roles
]
NO_ID = "01900000-0000-7000-8000-000000000000"
FIELDS = {
    "name": "taken over",
    "ceiling": "9",
    "unit": "usd",
    "period": "month",
    "overlap_seconds": "0",
    "raised_to": "9",
    "raised_until": "2100-01-01T00:00",
    "is_confirmed": "true",
    "confirm": "victim",
}


def name_of(route):
    """The id of a parameter."""
    return f"{route.method} {route.path}"


class Victim:
    """An organization with a key, a limit and a call, which somebody else asks for."""

    def __init__(self, caller, limit, request_id):
        self.caller = caller
        self.limit = limit
        self.request_id = request_id

    def path(self, route, id_kind="id"):
        """The path of a route with the ids, or the names and prefixes, of the organization."""
        page = route.page
        if page.startswith("organization"):
            value = self.caller.organization_id if id_kind == "id" else "victim"
        elif page == "key":
            value = self.caller.key_id if id_kind == "id" else self.caller.key[:10]
        else:
            value = self.limit["id"]
        return route.path.replace("{id}", value).replace("{request_id}", self.request_id)

    async def state(self):
        """Everything of the organization that a form could change."""
        service, owner = self.caller.service, self.caller.organization_id
        _, organization = await service.operate("GET", f"{ORGANIZATIONS}/{owner}")
        _, keys = await service.operate("GET", f"{ORGANIZATIONS}/{owner}/keys")
        _, events = await service.operate("GET", f"{ORGANIZATIONS}/{owner}/audit-events")
        for key in keys["keys"]:
            key.pop("last_used_at", None)
        return organization, keys, await limits_of(self.caller), events


@pytest.fixture
async def victim(service):
    """An organization that belongs to somebody else."""
    caller = await service.new_caller("victim")
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    async with caller.chat() as response:
        await response.read()
        return Victim(caller, limit, response.headers["x-request-id"])


async def new_administrator(service):
    """Make an organization with an administrator; return the key."""
    return (await service.new_caller("intruder", role="admin")).key


@pytest.mark.parametrize("id_kind", ["id", "name"])
@pytest.mark.parametrize("route", WITH_ID, ids=name_of)
async def test_another_organizations_ids_are_not_found(service, victim, route, id_kind):
    """An administrator that asks for a page of another organization, or sends a form there, gets
    404, learns nothing and changes nothing."""
    path = victim.path(route, id_kind)
    before = await victim.state()
    async with visiting(service, await new_administrator(service)) as visitor:
        if route.is_form:
            token = await visitor.token("/dashboard/requests")
            status, text, _ = await visitor.post(path, {**FIELDS, "csrf": token})
        else:
            status, text = await visitor.get(path)
        nothing = path
        for known in (victim.caller.organization_id, victim.caller.key_id, victim.limit["id"]):
            nothing = nothing.replace(known, NO_ID)
        if not route.is_form and nothing != path:
            _, other_text = await visitor.get(nothing)
            lines = [line for line in text.splitlines() if 'role="alert"' in line]
            assert lines
            assert lines == [line for line in other_text.splitlines() if 'role="alert"' in line]
    assert status == 404
    for secret in (victim.caller.key[:10], victim.caller.key_id, victim.limit["id"]):
        # The page may name what was asked for.
        assert secret in path or secret not in text
    assert await victim.state() == before


@pytest.mark.parametrize("route", WITH_ID, ids=name_of)
async def test_the_operator_finds_them(service, victim, route):
    """The same paths lead to something for the operator, so the test above can fail."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        if route.is_form:
            status, text, _ = await visitor.post(victim.path(route), {**FIELDS, "csrf": "x"})
            assert status == 403
            assert "another session" in text
        else:
            assert (await visitor.get(victim.path(route)))[0] == 200


@pytest.mark.parametrize("route", OPERATORS, ids=name_of)
async def test_what_is_the_operators_is_closed(service, victim, route):
    """An administrator cannot rename, suspend or delete its own organization, nor make one."""
    own = await service.new_caller("own", role="admin")
    path = route.path.replace("{id}", own.organization_id)
    async with visiting(service, own.key) as visitor:
        if route.is_form:
            token = await visitor.token("/dashboard/requests")
            fields = {**FIELDS, "confirm": "own", "csrf": token}
            status, _, _ = await visitor.post(path, fields)
        else:
            status, _ = await visitor.get(path)
    assert status == 403
    _, organization = await service.operate("GET", f"{ORGANIZATIONS}/{own.organization_id}")
    assert (organization["name"], organization["status"]) == ("own", "active")


@pytest.mark.parametrize("route", OWN + OPERATORS, ids=name_of)
async def test_a_holder_has_none_of_these_pages(service, victim, route):
    """A key that makes calls opens none of these pages and sends none of these forms, not even for
    its own organization."""
    path = victim.path(route)
    before = await victim.state()
    async with visiting(service, victim.caller.key) as visitor:
        if route.is_form:
            token = await visitor.token("/dashboard/own")
            status, _, _ = await visitor.post(path, {**FIELDS, "csrf": token})
        else:
            status, _ = await visitor.get(path)
    assert status == 403
    assert await victim.state() == before


@pytest.mark.parametrize("route", WITH_ID, ids=name_of)
async def test_an_id_that_is_none_is_not_found(service, route):
    """A path with an id that belongs to nothing, or that is none, is a page that says so."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        token = await visitor.token("/dashboard/requests")
        for value in (NO_ID, "nosuch", "%3Cb%3E", "%00", "a%2Fb"):
            path = route.path.replace("{id}", value).replace("{request_id}", value)
            if route.is_form:
                status, text, _ = await visitor.post(path, {**FIELDS, "csrf": token})
            else:
                status, text = await visitor.get(path)
            assert status == 404, (path, status)
            assert "<b>" not in text
