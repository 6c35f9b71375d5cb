"""Lists across organizations: the ledger, calls in flight, limits near their end, keys."""

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from support import MODEL, ORGANIZATIONS, set_limit

LEDGER = "/admin/v1/ledger"


@pytest.fixture
async def other(service):
    """A caller of another organization."""
    return await service.new_caller("other")


@pytest.fixture
async def called(service, upstream, caller, other):
    """Calls of two organizations that differ in everything; return all entries, newest first."""
    tags = {"x-rialto-tags": "team=a,feature=search", "x-request-id": "req-1"}
    async with service.http.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "a"}], "user": "alice"},
        headers={**caller.headers, **tags},
    ) as response:
        assert response.status == 200
    async with caller.chat("[tokens=300]", model="kimi-k2-6", user="bob") as response:
        assert response.status == 200
    async with service.http.post(
        "/v1/embeddings",
        json={"model": "text-embedding-bge-m3", "input": "a"},
        headers=caller.headers,
    ) as response:
        assert response.status == 200, await response.text()
    upstream.faults.push("/chat/completions", "detailed", times=1)
    async with other.chat() as response:
        assert response.status == 400
    async with other.chat(user="alice") as response:
        assert response.status == 200
    return await listed(service)


async def listed(service, path=LEDGER, **query):
    """Return the entries that a search finds."""
    status, page = await service.operate("GET", path, params=query)
    assert status == 200, page
    return page["entries"]


async def test_entries_of_all_organizations(caller, other, called):
    """The operator sees every organization's entries, newest settlement first, with the names."""
    assert len(called) == 5
    times = [entry["counted_at"] for entry in called]
    assert times == sorted(times, reverse=True)
    assert {entry["organization_id"] for entry in called} == {
        caller.organization_id,
        other.organization_id,
    }
    newest = called[0]
    assert (newest["organization_name"], newest["key_name"]) == ("other", "other")
    assert newest["key_prefix"] == other.key[:10]


FILTERS = [
    ({"model": "kimi-k2-6"}, lambda e: e["model"] == "kimi-k2-6"),
    ({"outcome": "upstream_rejected"}, lambda e: e["outcome"] == "upstream_rejected"),
    ({"endpoint": "/embeddings"}, lambda e: e["endpoint"] == "/embeddings"),
    ({"tag": "team=a"}, lambda e: (e["tags"] or {}).get("team") == "a"),
    ({"tag": "team=b"}, lambda _: False),
    ({"kind": "call"}, lambda _: True),
    ({"kind": "credit"}, lambda _: False),
    ({"request_id": "req-1"}, lambda e: e["request_id"] == "req-1"),
    ({"request_id": "req-1", "to": "2020-01-01"}, lambda e: e["request_id"] == "req-1"),
    ({"request_id": "req-1", "model": "kimi-k2-6"}, lambda _: False),
    ({"request_id": "req-2"}, lambda _: False),
    ({"organization": "other"}, lambda e: e["organization_name"] == "other"),
    ({"organization": "other", "key": "other"}, lambda e: e["key_name"] == "other"),
    ({"key": "acme"}, lambda e: e["key_name"] == "acme"),
    ({"key": "acme", "model": MODEL}, lambda e: (e["key_name"], e["model"]) == ("acme", MODEL)),
    ({"to": "2020-01-01"}, lambda _: False),
    ({"from": "2999-01-01"}, lambda _: False),
    ({"model": "", "outcome": "", "kind": "", "tag": "", "cost_over": ""}, lambda _: True),
]
"""Queries, and which entries each finds."""


async def test_each_filter(service, called):
    """Each filter finds exactly the entries that it describes, alone and with others."""
    for query, wanted in FILTERS:
        expected = [entry for entry in called if wanted(entry)]
        assert await listed(service, **query) == expected, query


async def test_filters_by_amounts_and_times(service, called):
    """An amount is compared to the nano-dollar; a period has its start and not its end."""
    cheapest, *_, second, first = sorted(called, key=lambda entry: Decimal(entry["cost_usd"]))
    assert Decimal(cheapest["cost_usd"]) == 0 < Decimal(second["cost_usd"])
    assert await listed(service, cost_over=second["cost_usd"]) == [first]
    middle = called[2]["counted_at"]

    assert await listed(service, **{"from": middle}) == called[:3]
    assert await listed(service, to=middle) == called[3:]


async def test_an_end_user_is_of_one_organization(service, caller, called):
    """An end user is found by the plain name within an organization, and nowhere else."""
    found = await listed(service, organization=caller.organization_id, end_user="alice")
    assert [entry["request_id"] for entry in found] == ["req-1"]
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger"
    assert await listed(service, path, end_user="alice") == found

    status, refused = await service.operate("GET", LEDGER, params={"end_user": "alice"})
    assert (status, refused["error"]["param"]) == (400, "end_user")


@pytest.mark.parametrize("path", [LEDGER, f"{ORGANIZATIONS}/acme/ledger"])
async def test_pages_follow_each_other(service, called, path):
    """Pages of one entry, each by the cursor of the one before, are the whole list."""
    whole = await listed(service, path)
    entries, after = [], ""
    while after is not None:
        _, page = await service.operate("GET", path, params={"limit": 1, "after": after})
        entries += page["entries"]
        after = page["next"]

    assert entries == whole
    assert len(whole) > 2


async def test_an_entrys_id_is_a_cursor(service, caller, called):
    """The ledger of an organization goes on after an entry of its own, and after no other's."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger"
    own = [entry for entry in called if entry["organization_id"] == caller.organization_id]

    assert await listed(service, path, after=own[0]["id"]) == own[1:]
    assert await listed(service, path, after=called[0]["id"]) == []


INVALID = [
    ({"after": "x"}, "after"),
    ({"after": "f" * 48}, "after"),
    ({"after": "0123456789abcdef0123456789abcdef"}, "after"),
    ({"outcome": "nice"}, "outcome"),
    ({"kind": "refund"}, "kind"),
    ({"cost_over": "much"}, "cost_over"),
    ({"tag": "team"}, "tag"),
    ({"from": "2026-11-02", "to": "2026-11-01"}, "from"),
    ({"limit": "0"}, "limit"),
    ({"model": "\0"}, "model"),
    ({"key": "\0"}, "key"),
]
"""Queries, and the parameter that is wrong."""


async def test_an_invalid_parameter_is_named(service):
    """An invalid parameter is a 400 that names it."""
    for query, param in INVALID:
        status, body = await service.operate("GET", LEDGER, params=query)
        assert (status, body["error"]["param"]) == (400, param), query


async def admin_headers(service, caller):
    """Create an administrator of the caller's organization; return its headers."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, made = await service.operate("POST", path, json={"name": "admin", "role": "admin"})
    return {"Authorization": f"Bearer {made['key']}"}


async def test_an_administrator_sees_its_own(service, caller, other, called):
    """Each list shows an administrator its own organization, without asking for it."""
    await set_limit(caller, unit="requests", period="day", ceiling=3)
    await set_limit(other, unit="requests", period="day", ceiling=2)
    headers = await admin_headers(service, caller)
    own = {caller.organization_id}
    for path, name in (
        (LEDGER, "entries"),
        (f"{LEDGER}?request_id=req-1", "entries"),
        (f"{LEDGER}?organization=acme", "entries"),
        ("/admin/v1/limits?near=0", "limits"),
        ("/admin/v1/keys", "keys"),
        ("/admin/v1/keys?q=other", "keys"),
        ("/admin/v1/keys?prefix=rk_", "keys"),
        ("/admin/v1/calls", "calls"),
    ):
        async with service.http.get(path, headers=headers) as response:
            found = (await response.json())[name]
        assert {one["organization_id"] for one in found} <= own, path
        assert bool(found) is ("q=other" not in path and name != "calls"), path


async def test_calls_in_flight(service, caller, other):
    """A call is listed while it is in flight, with its names and what is held, and not after."""
    async with caller.chat("[tokens=200][delay=0.02]", stream=True, user="alice") as response:
        await response.content.readany()
        status, page = await service.operate("GET", "/admin/v1/calls")
        (call,) = page["calls"]
        request_id = response.headers["x-request-id"]
        _, nothing = await service.operate("GET", "/admin/v1/calls?organization=other")

    assert (status, page["next"], nothing["calls"]) == (200, None, [])
    assert (call["request_id"], call["is_stream"]) == (request_id, True)
    assert (call["organization_name"], call["key_name"]) == ("acme", "acme")
    assert (call["model"], call["endpoint"]) == (MODEL, "/chat/completions")
    assert 0 <= call["age_s"] < 60
    assert Decimal(call["held_usd"]) > 0
    assert call["held_tokens"] > 0
    async with asyncio.timeout(10):
        while (await service.operate("GET", "/admin/v1/calls"))[1]["calls"]:
            await asyncio.sleep(0.02)


async def test_calls_in_flight_are_paged(service, caller):
    """A page of calls goes on after the last call of the page before, oldest first."""
    streams = [await caller.chat("[tokens=400][delay=0.02]", stream=True) for _ in range(3)]
    _, whole = await service.operate("GET", "/admin/v1/calls")
    _, first = await service.operate("GET", "/admin/v1/calls?limit=2")
    _, second = await service.operate("GET", f"/admin/v1/calls?limit=2&after={first['next']}")
    for stream in streams:
        stream.close()

    ids = [call["id"] for call in whole["calls"]]
    assert len(ids) == 3
    assert [call["id"] for call in first["calls"] + second["calls"]] == ids


async def test_limits_near_their_end(service, caller, other):
    """Limits of all organizations are listed by the share that is used, nearest to the end first,
    with the numbers that the organization's own list has."""
    spent = await set_limit(caller, unit="requests", period="day", ceiling=2)
    half = await set_limit(other, unit="requests", period="day", ceiling=4)
    await set_limit(caller, unit="requests", period="month", ceiling=100)
    await set_limit(caller, unit="requests", period="day", ceiling=2, each_end_user=True)
    for one in (caller, caller, other, other):
        async with one.chat() as response:
            assert response.status == 200

    _, near = await service.operate("GET", "/admin/v1/limits")
    _, more = await service.operate("GET", "/admin/v1/limits?near=0.5")
    _, one = await service.operate("GET", "/admin/v1/limits?near=0.5&limit=1")
    _, own = await service.operate("GET", f"{ORGANIZATIONS}/{caller.organization_id}/limits")

    assert [limit["id"] for limit in near["limits"]] == [spent["id"]]
    assert [limit["id"] for limit in more["limits"]] == [spent["id"], half["id"]]
    assert [limit["share"] for limit in more["limits"]] == [1.0, 0.5]
    assert [limit["id"] for limit in one["limits"]] == [spent["id"]]
    assert (one["is_cut"], more["is_cut"]) == (True, False)
    (shown,) = near["limits"]
    assert (shown["organization_name"], shown["key_name"]) == ("acme", None)
    (same,) = [limit for limit in own["limits"] if limit["id"] == spent["id"]]
    assert same.items() <= shown.items()


async def test_a_share_is_from_0_to_1(service):
    """Another share is a 400 that names the parameter."""
    for near in ("1.1", "-0.1", "80%", "", "nan"):
        status, body = await service.operate("GET", "/admin/v1/limits", params={"near": near})
        assert (status, body["error"]["param"]) == (400, "near"), near


async def test_keys_are_searched(service, caller, other):
    """Keys are found by their beginning, and by a part of their or their organization's name in any
    case; the list never has a key."""
    path = f"{ORGANIZATIONS}/{other.organization_id}/keys"
    _, made = await service.operate("POST", path, json={"name": "Nightly Batch"})

    async def found(**query):
        status, page = await service.operate("GET", "/admin/v1/keys", params=query)
        assert status == 200
        assert not any(key in str(page) for key in (caller.key, other.key, made["key"]))
        return [key["id"] for key in page["keys"]]

    assert set(await found()) == {caller.key_id, other.key_id, made["id"]}
    assert await found(prefix=caller.key[:10]) == [caller.key_id]
    assert await found(prefix=caller.key) == [caller.key_id]
    assert await found(prefix="rk_%") == []
    assert await found(q="nightly b") == [made["id"]]
    assert await found(q="OTHER") == [other.key_id, made["id"]]
    assert await found(q="%") == []
    assert await found(q="batch", organization="acme") == []
    assert await found(limit=1) == [caller.key_id]
    assert await found(limit=1, after=caller.key_id) == [other.key_id]


async def test_a_cursor_survives_new_entries(service, caller, called):
    """Entries that are settled between two pages come on neither of them twice."""
    _, first = await service.operate("GET", LEDGER, params={"limit": 2})
    async with caller.chat() as response:
        assert response.status == 200
    _, second = await service.operate("GET", LEDGER, params={"limit": 100, "after": first["next"]})

    assert first["entries"] + second["entries"] == called


async def test_a_key_without_an_organization_that_is_ambiguous(service, caller, other):
    """A name of several keys is a 400 that lists them."""
    for one in (caller, other):
        path = f"{ORGANIZATIONS}/{one.organization_id}/keys"
        await service.operate("POST", path, json={"name": "same"})
    status, body = await service.operate("GET", LEDGER, params={"key": "same"})

    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert body["error"]["message"].count("rk_") == 2


async def test_times_are_those_of_settlement(service, called):
    """The newest entry was settled a moment ago, by the database's clock."""
    at = datetime.fromisoformat(called[0]["counted_at"])

    assert abs(datetime.now(at.tzinfo) - at) < timedelta(minutes=1)
