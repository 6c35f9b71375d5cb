"""Audit events of all organizations over the API."""

import pytest
from support import ORGANIZATIONS, set_limit

from service.audit import OPERATOR_ORGANIZATION_ID

pytestmark = pytest.mark.shares_service

PATH = "/admin/v1/audit-events"


async def found(service, **query):
    """Return the actions of the events for a query, newest first."""
    status, body = await service.operate("GET", PATH, params=query)
    assert status == 200, body
    return [event["action"] for event in body["events"]]


async def test_events_of_all_organizations(service):
    """Events of several organizations come newest first, with names, and each is in its place."""
    first, second = await service.new_caller("first one"), await service.new_caller("second one")
    await set_limit(first, unit="usd", period="day", ceiling="1")
    status, body = await service.operate("GET", PATH, params={"limit": 7})
    assert status == 200
    assert [(event["organization_name"], event["action"]) for event in body["events"]] == [
        ("first one", "limit.create"),
        ("second one", "api_key.create"),
        ("second one", "organization.create"),
        ("first one", "api_key.create"),
        ("first one", "organization.create"),
        *[(event["organization_name"], event["action"]) for event in body["events"][5:]],
    ]
    assert all(event["is_whole"] for event in body["events"])
    assert body["events"][3]["target_name"] == "first one"
    assert body["events"][3]["target"] == first.key_id
    assert second.key not in str(body)


async def test_filters_and_pages(service):
    """Events are found by organization, actor, action and target, and come page by page."""
    caller = await service.new_caller("found again")
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    own = {"organization": "found again"}
    assert await found(service, **own) == [
        "api_key.revoke",
        "api_key.create",
        "organization.create",
    ]
    assert await found(service, **own, action="organization") == ["organization.create"]
    assert await found(service, **own, actor="command-line") == []
    assert await found(service, **own, target=caller.key[:10]) == [
        "api_key.revoke",
        "api_key.create",
    ]
    _, body = await service.operate("GET", PATH, params={**own, "limit": 2})
    assert await found(service, **own, before=body["next"]) == ["organization.create"]
    status, body = await service.operate("GET", PATH, params={"before": "nonsense"})
    assert (status, body["error"]["param"]) == (400, "before")


async def test_a_key_is_found_as_an_actor(service):
    """What a key changed is found by the key's prefix, name or id."""
    caller = await service.new_caller("with a chief")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, chief = await service.operate("POST", path, json={"name": "the chief", "role": "admin"})
    headers = {"Authorization": f"Bearer {chief['key']}"}
    async with service.http.post(path, json={"name": "made"}, headers=headers) as answer:
        assert answer.status == 201
    for actor in (chief["prefix"], "the chief", chief["id"], f"api_key:{chief['id']}"):
        query = {"organization": "with a chief", "actor": actor}
        assert await found(service, **query) == ["api_key.create"]
        _, body = await service.operate("GET", PATH, params=query)
        assert body["events"][0]["actor_name"] == "the chief"


async def test_an_administrator_does_not_see_the_operators_keys(service):
    """A key of role operator that changed something has a name for the operator alone."""
    caller = await service.new_caller("with a visitor")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    operators = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/keys"
    _, visitor = await service.operate(
        "POST", operators, json={"name": "the visitor", "role": "operator"}
    )
    _, chief = await service.operate("POST", path, json={"name": "the chief", "role": "admin"})
    headers = {"Authorization": f"Bearer {visitor['key']}"}
    async with service.http.post(path, json={"name": "made"}, headers=headers) as answer:
        assert answer.status == 201

    _, body = await service.operate("GET", PATH, params={"organization": "with a visitor"})
    assert body["events"][0]["actor_name"] == "the visitor"
    headers = {"Authorization": f"Bearer {chief['key']}"}
    async with service.http.get(PATH, headers=headers) as answer:
        seen = await answer.json()
    assert seen["events"][0]["actor"] == f"api_key:{visitor['id']}"
    assert "the visitor" not in str(seen)
    assert visitor["prefix"] not in str(seen)
