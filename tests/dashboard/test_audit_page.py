"""The page of the audit: who changed what, and the chain that proves it."""

import re
from uuid import UUID

import pytest
from reading import rows_of, text_of
from support import OPERATOR_KEY, ORGANIZATIONS, set_limit
from visits import visiting

from service import api

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/audit"


async def new_administrator(caller):
    """Make an administrator's key of the caller's organization; return it."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, made = await caller.service.operate("POST", path, json={"name": "chief", "role": "admin"})
    return made


async def harm(service, organization_id, statement):
    """Change the events of an organization past the guard of the table."""
    async with service.app[api.DATABASE].transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(f"{statement} AND organization_id = '{UUID(organization_id)}'")


async def actions(visitor, **query):
    """Return the rows of the page for a query."""
    async with visitor.http.get(PAGE, params=query) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    return rows_of(text, "Chain"), text


async def test_who_changed_what(service):
    """Each change is listed with its time, the key that made it by name, what changed by name, and
    the detail."""
    caller = await service.new_caller("watched")
    administrator = await new_administrator(caller)
    headers = {"Authorization": f"Bearer {administrator['key']}"}
    body = {"unit": "usd", "period": "day", "ceiling": "1.25"}
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    async with service.http.post(path, json=body, headers=headers) as answer:
        assert answer.status == 201
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    async with visiting(service, OPERATOR_KEY) as visitor:
        rows, text = await actions(visitor, organization="watched")
    assert [row["What"] for row in rows] == [
        "api_key.revoke",
        "limit.create",
        "api_key.create",
        "api_key.create",
        "organization.create",
    ]
    assert rows[0]["Who"] == "operator"
    assert rows[0]["Which"] == "watched"
    assert rows[1]["Who"] == f"chief {administrator['prefix']}"
    assert "ceiling 1.25" in rows[1]["Detail"]
    assert {row["Organization"] for row in rows} == {"watched"}
    assert [row["Chain"] for row in rows] == ["5 ✓", "4 ✓", "3 ✓", "2 ✓", "1 ✓"]
    assert "The chain holds for the 5 events shown" in text
    assert caller.key not in text


async def test_filters(service):
    """Events are found by organization, actor, action and target: by names, prefixes and ids."""
    caller = await service.new_caller("filtered")
    administrator = await new_administrator(caller)
    await set_limit(caller, unit="usd", period="day", ceiling="1")
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    organization = {"organization": caller.organization_id}
    async with visiting(service, OPERATOR_KEY) as visitor:
        for query, expected in (
            ({"action": "api_key."}, ["api_key.revoke", "api_key.create", "api_key.create"]),
            ({"action": "limit."}, ["limit.create"]),
            ({"target": caller.key[:10]}, ["api_key.revoke", "api_key.create"]),
            ({"target": caller.key_id}, ["api_key.revoke", "api_key.create"]),
            ({"target": "chief"}, ["api_key.create"]),
            ({"actor": administrator["prefix"]}, []),
            ({"actor": "rialto"}, []),
            ({"actor": "operator", "action": "limit."}, ["limit.create"]),
        ):
            rows, text = await actions(visitor, **organization, **query)
            assert [row["What"] for row in rows] == expected, query
            for value in query.values():
                assert f'value="{value}"' in text
        assert "Nothing fits these filters." in text or rows
        everywhere, _ = await actions(visitor, action="organization.create")
        assert "filtered" in {row["Organization"] for row in everywhere}
        async with visitor.http.get(PAGE, params={"organization": "no such"}) as answer:
            assert answer.status == 404
            assert "no such" in text_of(await answer.text())


async def test_pages_hold_each_event_once(service, monkeypatch):
    """From page to page every event of all organizations comes once, newest first."""
    monkeypatch.setattr("service.dashboard.pages.audit.PAGE", 4)
    first, second = await service.new_caller("one"), await service.new_caller("two")
    for number in range(4):
        for caller in (first, second):
            await set_limit(caller, unit="usd", period="day", ceiling=f"{number + 1}")
    seen, path = [], f"{PAGE}?action=limit."
    async with visiting(service, OPERATOR_KEY) as visitor:
        while path:
            _, text = await visitor.get(path)
            seen += [(row["Organization"], row["Chain"]) for row in rows_of(text, "Chain")]
            found = re.search(r'href="([^"]*)" rel="next"', text)
            path = found and found[1].replace("&amp;", "&")
        status, _ = await visitor.get(f"{PAGE}?before=nonsense")
    expected = [(name, f"{number} ✓") for number in (6, 5, 4, 3) for name in ("two", "one")]
    assert [one for one in seen if one[0] in ("one", "two")] == expected
    assert len(seen) == len(set(seen))
    assert status == 400


@pytest.mark.parametrize(
    ("statement", "broken", "at"),
    [
        ("UPDATE public.audit_events SET actor = 'nobody' WHERE sequence = 2", {2}, 2),
        ("UPDATE public.audit_events SET hash = sha256('x') WHERE sequence = 3", {3}, 3),
        ("UPDATE public.audit_events SET detail = '{}' WHERE sequence = 1", {1}, 1),
        ("DELETE FROM public.audit_events WHERE sequence = 2", {3}, 2),
        ("DELETE FROM public.audit_events WHERE sequence = 3", set(), 3),
    ],
    ids=["actor", "hash", "detail", "middle", "end"],
)
async def test_a_broken_chain_is_shown(own_service, statement, broken, at):
    """An event that was altered, or follows one that is gone, is marked on the page; going through
    the whole chain also finds that the newest is gone."""
    service = own_service
    caller = await service.new_caller("tampered")
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    await harm(service, caller.organization_id, statement)
    async with visiting(service, OPERATOR_KEY) as visitor:
        rows, text = await actions(visitor, organization="tampered")
        found = {int(row["Chain"].split()[0]) for row in rows if "broken" in row["Chain"]}
        assert found == broken
        assert ("The chain is broken" in text) == bool(broken)
        _, text = await actions(visitor, organization="tampered", proof="whole")
        assert f"breaks at event {at}" in text_of(text)
    await harm(service, caller.organization_id, "DELETE FROM public.audit_events WHERE true")
    await service.app[api.DATABASE].fetch(
        "UPDATE public.organizations SET audit_sequence = 0 WHERE id = $1",
        UUID(caller.organization_id),
    )


async def test_a_whole_chain_is_proven(service):
    """The link on the page goes through the whole chain of an organization."""
    await service.new_caller("whole chain")
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await actions(visitor, organization="whole chain")
        link = re.search(r'href="([^"]*proof=whole[^"]*)"', text)[1].replace("&amp;", "&")
        _, text = await visitor.get(link)
    assert "holds, from its first event to its newest" in text_of(text)


async def test_an_administrator_sees_its_own_organization(service):
    """An administrator sees the events of its organization, whatever it asks for."""
    caller, other = await service.new_caller("home"), await service.new_caller("abroad")
    administrator = await new_administrator(caller)
    async with visiting(service, administrator["key"]) as visitor:
        for query in ({}, {"organization": other.organization_id}, {"target": other.key_id}):
            rows, text = await actions(visitor, **query)
            assert "abroad" not in text
            assert other.key[:10] not in text
            assert len(rows) == (0 if "target" in query else 3)
