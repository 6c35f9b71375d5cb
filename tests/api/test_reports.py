"""Usage reports, the ledger export, what a caller sees of itself, and quotes."""

import asyncio
import csv
import io
import json
import random
import tracemalloc
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import aiohttp
import pytest
from faults import TcpProxy
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, limits_of, make_settings, running, set_limit

from service import app as application
from service.ids import uuid7
from service.reports import rollups, usage

pytestmark = pytest.mark.shares_service

START = datetime(2026, 11, 1, tzinfo=UTC)
GROUPS = (
    *("day", "model", "key", "end_user", "endpoint", "tag", "organization", "outcome", "hour"),
)
FIELDS = (
    *("calls", "failures", "input_tokens", "cached_input_tokens", "output_tokens"),
    "unknown_costs",
)


def id_of(at):
    """Return a UUIDv7 of that instant."""
    return f"{int(at.timestamp() * 1000):012x}" + uuid7().hex[12:]


def an_entry(chance, kind, calls):
    """Return a ledger row: a call, or a correction or credit of one."""
    at = START + timedelta(minutes=chance.randrange(30 * 24 * 60))
    cost = chance.choice([None, 0, 1, 7, 10**9, chance.randrange(10**13)])
    entry = {
        "id": id_of(at - timedelta(minutes=chance.randrange(60))),
        "kind": kind,
        "api_key_id": chance.choice(["key a", "key b"]),
        "end_user": chance.choice([None, "alice", "bob"]),
        "endpoint": "/chat/completions",
        "model": chance.choice(["m", "other"]),
        "outcome": chance.choice(["ok", "ok", "client_closed", "upstream_error"]),
        "requests": 1,
        "input_tokens": chance.randrange(1000),
        "cached_input_tokens": chance.randrange(10),
        "output_tokens": chance.randrange(1000),
        "cost_nanos": cost,
        "cost_source": "unknown" if cost is None else "reported",
        "tags": chance.choice([None, {"team": "a"}, {"team": "b", "feature": "=x"}]),
        "first_byte_ms": chance.choice([None, 10, 700, 10**6]),
        "duration_ms": chance.randrange(10**5),
        "counted_at": at,
        "amends_id": None,
        "note": None,
    }
    if kind != "call":
        call = chance.choice(calls)
        entry |= {"requests": 0, "cost_nanos": -5, "cost_source": "manual", "note": "=1+1"}
        entry |= {"amends_id": call["id"]} | {
            name: call[name] for name in ("api_key_id", "end_user", "model", "tags")
        }
    return entry


@pytest.fixture
async def booked(service, caller):
    """Write entries of a month and return them."""
    chance = random.Random(7)
    calls = [an_entry(chance, "call", ()) for _ in range(200)]
    entries = calls + [
        # A call is corrected once.
        an_entry(chance, chance.choice(["correction", "credit"]), [call])
        for call in chance.sample(calls, 20)
    ]
    keys = {"key a": caller.key_id, "key b": str(uuid7())}
    database = service.app[application.api.DATABASE]
    digests = {}
    for name in ("alice", "bob"):
        made = await set_limit(caller, unit="requests", period="day", ceiling=9, end_user=name)
        digests[name] = made["end_user"]
        await service.operate("DELETE", f"/admin/v1/limits/{made['id']}")
    for entry in entries:
        entry["api_key_id"] = keys[entry["api_key_id"]]
        entry["end_user"] = digests.get(entry["end_user"])
        columns = list(entry)
        values = [
            json.dumps(value) if name == "tags" and value else value
            for name, value in entry.items()
        ]
        casts = {"tags": "::text::jsonb", "end_user": ""}
        places = [f"${n + 1}{casts.get(name, '')}" for n, name in enumerate(columns)]
        values[columns.index("end_user")] = entry["end_user"] and bytes.fromhex(entry["end_user"])
        await database.fetch(
            f"INSERT INTO public.ledger_entries (organization_id, request_id,"
            f" {', '.join(columns)}) VALUES ('{caller.organization_id}', '-r',"
            f" {', '.join(places)})",
            *values,
        )
        entry["organization_id"] = caller.organization_id
    await roll_up(database)
    return entries


async def roll_up(database):
    """Bring the roll-ups up to the present. A rebuild finds entries that a test wrote into the
    past."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollups, "MARGIN", timedelta(0))
        for _ in range(2):
            while not await rollups.roll_up(database):
                await asyncio.sleep(0.05)
    async for _ in rollups.rebuild(database):
        pass


@pytest.fixture(params=["rolled up", "not rolled up"])
async def source(request, service, booked):
    """Where reports find the entries."""
    if request.param == "not rolled up":
        database = service.app[application.api.DATABASE]
        await database.fetch("DELETE FROM derived.usage_cursor")
        await database.fetch("DELETE FROM derived.usage")


def summed(entries, group_by):
    """Return the sums that a report must have, by group."""
    sums = defaultdict(lambda: defaultdict(int))
    for entry in entries:
        keys = {
            "day": [f"{entry['counted_at']:%Y-%m-%d}"],
            "model": [entry["model"]],
            "key": [entry["api_key_id"]],
            "end_user": [entry["end_user"]],
            "endpoint": [entry["endpoint"]],
            "tag": [f"{name}={value}" for name, value in (entry["tags"] or {}).items()] or [None],
            "organization": [entry["organization_id"]],
            "outcome": [entry["outcome"]],
            "hour": [f"{entry['counted_at']:%Y-%m-%dT%H:00:00Z}"],
            "all": ["all"],
        }[group_by]
        for key in keys:
            of_key = sums[key]
            of_key["calls"] += entry["requests"]
            of_key["failures"] += entry["requests"] * (entry["outcome"] == "upstream_error")
            for name in ("input_tokens", "cached_input_tokens", "output_tokens"):
                of_key[name] += entry[name]
            of_key["cost_nanos"] += entry["cost_nanos"] or 0
            of_key["unknown_costs"] += entry["cost_nanos"] is None
    return sums


def check(sums, expected):
    """Assert that the sums are exact to the nano-dollar."""
    assert Decimal(sums["cost_usd"]) * 10**9 == expected["cost_nanos"]
    assert [sums[name] for name in FIELDS] == [expected[name] for name in FIELDS]


@pytest.mark.parametrize("group_by", GROUPS)
async def test_sums_are_exact(service, caller, booked, source, group_by):
    """Sums are exact by each group and in total, and leave out other organizations' entries."""
    await service.new_caller("other")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    query = {"group_by": group_by, "from": "2026-11-01", "to": "2026-12-01"}
    _, report = await service.operate("GET", path, params=query)

    expected = summed(booked, group_by)
    assert {group["key"] for group in report["groups"]} == set(expected)
    for group in report["groups"]:
        check(group, expected[group["key"]])
    check(report["total"], summed(booked, "all")["all"])
    assert (report["is_cut"], report["from"]) == (False, "2026-11-01T00:00:00Z")


def times_of(entries, name):
    """Return the percentiles that a report should be near to; None without times."""
    times = sorted(entry[name] for entry in entries if entry[name] is not None)
    return [times[int(share * (len(times) - 1))] for share in (0.5, 0.95)] if times else [None] * 2


async def test_times_are_percentiles(service, caller, booked, source):
    """Times to the first byte and durations are within the buckets of their percentiles."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    query = {"group_by": "model", "from": "2026-11-01", "to": "2026-12-01"}
    _, report = await service.operate("GET", path, params=query)

    for group in report["groups"]:
        of_model = [entry for entry in booked if entry["model"] == group["key"]]
        for name in ("first_byte", "duration"):
            p50, p95 = times_of(of_model, f"{name}_ms")
            assert p50 * 0.5 <= group[f"{name}_p50_ms"] <= p50 * 2
            # The last bucket has no end.
            assert min(p95, 120_000) * 0.5 <= group[f"{name}_p95_ms"] <= p95 * 2
    _, empty = await service.operate("GET", path, params={"from": "2001-01-01", "to": "2001-01-02"})
    assert empty["total"]["duration_p50_ms"] is None


async def test_the_operator_sees_all_organizations(service, caller, booked, source):
    """``GET /admin/v1/usage`` sums all organizations, or the one that is named, with names beside
    ids; an administrator gets its own."""
    month = {"from": "2026-11-01", "to": "2026-12-01"}
    other = await service.new_caller("other")
    async with other.chat() as response:
        assert response.status == 200
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    _, organization = await service.operate("GET", path)
    _, admin = await service.operate("POST", f"{path}/keys", json={"name": "a", "role": "admin"})
    mine = summed(booked, "all")["all"]
    sums = {}
    for group_by in GROUPS:
        query = {**month, "group_by": group_by}
        status, report = await service.operate("GET", "/admin/v1/usage", params=query)
        assert status == 200, report
        sums[group_by] = report
        assert report["total"] == sums["day"]["total"]
        query["organization"] = caller.organization_id
        _, report = await service.operate("GET", "/admin/v1/usage", params=query)
        check(report["total"], mine)
        del query["organization"]
        headers = {"Authorization": f"Bearer {admin['key']}"}
        async with service.http.get("/admin/v1/usage", params=query, headers=headers) as response:
            assert (await response.json())["groups"] == report["groups"]
    by_organization = {group["key"]: group for group in sums["organization"]["groups"]}
    by_key = {group["key"]: group for group in sums["key"]["groups"]}

    check(by_organization[caller.organization_id], mine)
    assert by_organization[caller.organization_id]["name"] == organization["name"]
    assert by_organization[other.organization_id]["calls"] == 1
    assert by_key[other.key_id]["name"]
    assert by_key[other.key_id]["calls"] == 1
    assert sums["model"]["groups"][0]["name"] is None
    query = {**month, "api_key_id": caller.key_id}
    _, report = await service.operate("GET", "/admin/v1/usage", params=query)
    check(
        report["total"],
        summed([e for e in booked if e["api_key_id"] == caller.key_id], "all")["all"],
    )
    query = {**month, "model": "other", "group_by": "organization"}
    _, report = await service.operate("GET", "/admin/v1/usage", params=query)
    of_other = summed([e for e in booked if e["model"] == "other"], "all")["all"]
    check(next(g for g in report["groups"] if g["key"] == caller.organization_id), of_other)


async def test_usage_of_all_is_refused(service, caller):
    """An administrator gets no other organization's usage, and an end user needs one."""
    other = await service.new_caller("other")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, admin = await service.operate("POST", path, json={"name": "a", "role": "admin"})
    for key, query, status in (
        (admin["key"], {"organization": other.organization_id}, 403),
        (admin["key"], {"organization": "no such"}, 404),
        (admin["key"], {}, 200),
        (caller.key, {}, 403),
        (OPERATOR_KEY, {"organization": str(uuid7())}, 404),
        (OPERATOR_KEY, {"end_user": "alice"}, 400),
        (OPERATOR_KEY, {"end_user": "alice", "organization": caller.organization_id}, 200),
    ):
        headers = {"Authorization": f"Bearer {key}"}
        async with service.http.get("/admin/v1/usage", params=query, headers=headers) as response:
            assert response.status == status, (query, await response.text())


async def test_users_of_deprecated_models_are_named(service, caller):
    """A deprecated model that was called is listed with who called it, and no other model is."""
    database = service.app[application.api.DATABASE]
    assert await usage.deprecated_models_used(database, 7) == []
    async with caller.chat(model="llama-3.2-3b") as response:
        assert response.status == 200
        cost_usd = response.headers["x-rialto-cost-usd"]
    async with caller.chat() as response:
        assert response.status == 200
    for _ in range(2):
        (model,) = await usage.deprecated_models_used(database, 7)
        assert (model.model, model.replacement) == ("llama-3.2-3b", "llama-3.3-70b")
        assert model.removed_on.startswith("2027-01-31")
        (user,) = model.users
        assert (str(user.organization_id), str(user.api_key_id)) == (
            caller.organization_id,
            caller.key_id,
        )
        assert (user.calls, user.cost_usd) == (1, cost_usd)
        await roll_up(database)


async def test_a_key_shows_when_it_was_used(service, caller):
    """A key has the time of its last call once that is rolled up."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, before = await service.operate("GET", path)
    async with caller.chat() as response:
        assert response.status == 200
    await roll_up(service.app[application.api.DATABASE])
    _, after = await service.operate("GET", path)

    assert [key["last_used_at"] for key in before["keys"]] == [None]
    (entry,) = await caller.entries()
    assert [key["last_used_at"] for key in after["keys"]] == [entry["counted_at"]]


async def test_entries_are_filtered(service, caller, booked):
    """Reports filter by time, key, plain name of the end user, model and tag, and by all
    together."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    month = {"from": "2026-11-01", "to": "2026-12-01"}
    alice = next(entry["end_user"] for entry in booked if entry["end_user"])
    _, of_users = await service.operate("GET", path, params={**month, "group_by": "end_user"})
    middle = START + timedelta(days=10, hours=3)
    for query, wanted in (
        ({"from": "2026-11-11T04:00:00+01:00"}, lambda e: e["counted_at"] >= middle),
        ({"to": "2026-11-11T03:00:00Z"}, lambda e: e["counted_at"] < middle),
        ({"api_key_id": caller.key_id}, lambda e: e["api_key_id"] == caller.key_id),
        ({"model": "m"}, lambda e: e["model"] == "m"),
        ({"tag": "feature==x"}, lambda e: (e["tags"] or {}).get("feature") == "=x"),
        (
            {"model": "m", "tag": "team=a"},
            lambda e: e["model"] == "m" and (e["tags"] or {}).get("team") == "a",
        ),
    ):
        status, report = await service.operate("GET", path, params={**month, **query})
        assert status == 200, report
        check(report["total"], summed([e for e in booked if wanted(e)], "all")["all"])
    totals = {group["key"]: group["calls"] for group in of_users["groups"]}
    _, report = await service.operate("GET", path, params={**month, "end_user": "alice"})
    assert report["total"]["calls"] in (totals[alice], *totals.values())
    assert {totals[key] for key in totals if key} >= {report["total"]["calls"]}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"group_by": "colour"}, "group_by"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-11-01T00:00:00"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-02"}, "from"),
        ({"api_key_id": "x"}, "api_key_id"),
        ({"tag": "team"}, "tag"),
        ({"from": "0000-01-01"}, "from"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
        ({"to": "10000-01-01"}, "to"),
        ({"from": "-0001-01-01"}, "from"),
        ({"from": "infinity"}, "from"),
        ({"from": "20261101"}, "from"),
        ({"from": "２０２６-11-01"}, "from"),
        ({"from": "\0"}, "from"),
    ],
)
async def test_an_invalid_parameter_is_named(service, caller, query, param):
    """An invalid parameter is a 400 that names it with the rule."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    status, body = await service.operate("GET", path, params=query)

    assert (status, body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "query",
    [
        {"from": "0001-01-01"},
        {"from": "0001-01-01T00:00:00Z"},
        {"from": "0001-01-01T00:00:00-14:00", "to": "9999-12-31T23:59:59.999999999+14:00"},
        {"to": "9999-12-31"},
        {"to": "9999-12-31T23:59:59.999999Z"},
        {"from": "1969-12-31", "to": "1970-01-01"},
    ],
)
async def test_the_ends_of_the_calendar_are_dates_too(service, caller, query):
    """Every route that takes a date accepts Go's zero time and the last day of the calendar."""
    async with caller.chat() as response:
        assert response.status == 200
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    calls = 0 if "1970" in query.get("to", "") else 1
    for wanted in GROUPS:
        query_ = {**query, "group_by": wanted}
        status, report = await service.operate("GET", f"{path}/usage", params=query_)
        assert (status, report["total"]["calls"]) == (200, calls), report
    for name in ("csv", "jsonl"):
        _, text = await exported(service, caller, **{"from": "0001-01-01", **query, "format": name})
        assert text.count("\n") == calls + (name == "csv")
    async with service.http.get("/v1/usage", params=query, headers=caller.headers) as response:
        assert response.status == 200


async def test_reports_are_limited_to_the_key(service, caller):
    """An admin sees its own organization; a caller sees its own key, and no groups of keys."""
    other = await service.new_caller("other")
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    _, admin = await service.operate(
        "POST",
        f"{ORGANIZATIONS}/{other.organization_id}/keys",
        json={"name": "admin", "role": "admin"},
    )
    for who, url, status in (
        (admin["key"], f"{path}/usage", 403),
        (admin["key"], f"{path}/ledger/export", 403),
        (admin["key"], f"{ORGANIZATIONS}/{other.organization_id}/usage", 200),
        (caller.key, f"{path}/usage", 403),
        (caller.key, "/v1/usage", 200),
        (caller.key, "/v1/usage?group_by=key", 400),
        (OPERATOR_KEY, "/v1/usage", 403),
        (OPERATOR_KEY, f"{ORGANIZATIONS}/{uuid7()}/usage", 404),
    ):
        headers = {"Authorization": f"Bearer {who}"}
        async with service.http.get(url, headers=headers) as response:
            assert response.status == status, (url, await response.text())


async def test_a_caller_sees_what_it_used_and_may_use(service, caller):
    """A caller sees its own key's usage and the limits that bind it."""
    second = (
        await service.operate(
            "POST", f"{ORGANIZATIONS}/{caller.organization_id}/keys", json={"name": "second"}
        )
    )[1]
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_limit(caller, unit="requests", period="minute", ceiling=60, of_key=True)
    await set_limit(caller, unit="tokens", period="day", ceiling=10**6, each_end_user=True)
    await set_limit(caller, unit="requests", period="day", ceiling=9, end_user="bob")
    await set_limit(caller, unit="requests", period="day", ceiling=1, api_key_id=second["id"])
    async with caller.chat(user="alice") as response:
        cost_usd = response.headers["x-rialto-cost-usd"]
    async with service.http.get("/v1/usage", headers=caller.headers) as response:
        usage = await response.json()
    async with service.http.get("/v1/limits?end_user=alice", headers=caller.headers) as response:
        limits = {limit["unit"]: limit for limit in (await response.json())["limits"]}

    assert (usage["total"]["calls"], usage["total"]["cost_usd"]) == (1, cost_usd)
    assert limits.keys() == {"usd", "requests", "tokens"}
    assert (limits["requests"]["used"], limits["requests"]["left"]) == (1, 59)
    assert limits["tokens"]["used"] > 0
    assert Decimal(limits["usd"]["left"]) == 5 - Decimal(cost_usd)


async def exported(service, caller, **query):
    """Return the decoded export."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger/export"
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    query = {"from": "2026-11-01", "to": "2026-12-01", **query}
    async with service.http.get(path, params=query, headers=headers) as response:
        assert response.status == 200
        return response.headers, await response.text()


async def test_the_export_has_every_entry(service, caller, booked):
    """The exports as CSV and as JSON lines have the same entries, and no cell starts a formula."""
    headers, text = await exported(service, caller, format="csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    _, text = await exported(service, caller, format="jsonl")
    entries = [json.loads(line) for line in text.splitlines()]

    assert headers["Content-Type"] == "text/csv; charset=utf-8"
    assert headers["Content-Disposition"].endswith('Z.csv"')
    assert [row["id"] for row in rows] == [entry["id"] for entry in entries]
    assert sorted(row["id"].replace("-", "") for row in rows) == sorted(
        entry["id"] for entry in booked
    )
    for row, entry in zip(rows, entries, strict=True):
        assert row["cost_usd"] == (entry["cost_usd"] or "")
        assert (json.loads(row["tags"]) if row["tags"] else None) == entry["tags"]
        assert row["note"] == ("'=1+1" if entry["note"] else "")
        assert row["request_id"] == "'-r"
    listed = {entry["id"]: entry for entry in await caller.entries()}
    for entry in listed.values():
        # The list has names beside ids, which may change, so they are in no export.
        assert entry.pop("organization_id") == caller.organization_id
        assert entry.pop("organization_name") == "acme"
        assert entry.pop("key_name") in ("acme", None)
        assert entry.pop("key_prefix") in (caller.key[:10], None)
    times = {"counted_at", "created_at"}
    for entry in entries:
        for name, value in listed.get(entry["id"], {}).items():
            if name in times:
                assert datetime.fromisoformat(entry[name]) == datetime.fromisoformat(value)
            else:
                assert entry[name] == value
    assert list(rows[0]) == list(entries[0]) == list(next(iter(listed.values())))
    total = sum(Decimal(entry["cost_usd"] or 0) for entry in entries) * 10**9
    assert total == summed(booked, "all")["all"]["cost_nanos"]


INSERT_MANY = """
    INSERT INTO public.ledger_entries (
        organization_id, id, kind, api_key_id, request_id, endpoint, model, outcome, requests,
        cost_nanos, cost_source, counted_at
    )
    SELECT $1, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - i), 12, '0')
                || substr(md5(i::text), 1, 20))::uuid,
           'call', $1, 'r', '/chat/completions', 'm', 'ok', 1, 7, 'reported', now()
    FROM generate_series(1, $2::integer) i
"""


async def test_a_large_export_takes_no_more_memory(service, caller):
    """An export of 60,000 entries (20 MB) is read and sent in pages, of which only a few are in
    memory."""
    database = service.app[application.api.DATABASE]
    await database.fetch(INSERT_MANY, caller.organization_id, 60_000)
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger/export?format=jsonl"
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    tracemalloc.start()
    try:
        lines = size = 0
        async with service.http.get(path, headers=headers) as response:
            async for chunk in response.content.iter_any():
                lines += chunk.count(b"\n")
                size += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert lines == 60_000
    assert size > 20_000_000
    assert peak < 10_000_000


async def test_a_failed_export_is_visibly_incomplete(database_address, upstream):
    """An export that loses the database ends without the end of its body, which clients notice."""
    async with TcpProxy(database_address) as proxy:
        settings = make_settings(proxy.address, upstream.url, database_acquire_timeout_s=0.5)
        async with running(settings) as service:
            caller = await service.new_caller()
            database = service.app[application.api.DATABASE]
            await database.fetch(INSERT_MANY, caller.organization_id, 100_000)
            path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger/export"
            headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
            with pytest.raises(aiohttp.ClientPayloadError):
                async with service.http.get(path, headers=headers) as response:
                    await response.content.readany()
                    proxy.refuse()
                    proxy.reset()
                    await response.read()


async def test_reports_leave_connections_to_the_calls(service, caller):
    """Any number of concurrent reports use two of the five connections."""
    database = service.app[application.api.DATABASE]
    most = open_now = 0

    async def read():
        nonlocal most, open_now
        async with database.reading() as conn:
            open_now += 1
            most = max(most, open_now)
            await conn.fetch("SELECT pg_sleep(0.1)")
            open_now -= 1

    reading = asyncio.gather(*(read() for _ in range(8)))
    async with caller.chat() as response:
        assert response.status == 200
    await reading
    assert most == 2


async def quoted(caller, **members):
    """Return the quote of a call."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **members}
    async with caller.service.http.post("/v1/quote", json=body, headers=caller.headers) as response:
        return response.status, await response.json()


async def test_a_quote_predicts_the_call(service, upstream, caller):
    """A quote states what the call could cost, which limits it meets and whether it would pass, and
    records nothing."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="1000")
    await set_limit(caller, unit="requests", period="day", ceiling=1, each_end_user=True)
    status, quote = await quoted(caller, max_tokens=100, user="alice")
    refused = await set_limit(caller, unit="usd", period="day", ceiling="0.000000001")
    _, other = await quoted(caller, max_tokens=100, user="alice")
    async with caller.chat("x", max_tokens=100, user="alice") as response:
        refusal = (await response.json())["error"]

    assert (status, quote["would_pass"], quote["refusal"]) == (200, True, None)
    assert (quote["endpoint"], quote["model"]) == ("/chat/completions", MODEL)
    assert (quote["max_output_tokens"], len(quote["limits"])) == (100, 2)
    assert quote["limits"][0]["id"] == limit["id"]
    assert other["would_pass"] is False
    assert other["refusal"]["limit"]["id"] == refused["id"]
    assert other["refusal"]["limit"]["needed"] == quote["max_cost_usd"]
    assert {**other["refusal"], "request_id": None} == {**refusal, "request_id": None}
    assert upstream.calls.to("/chat/completions") == []
    database = service.app[application.api.DATABASE]
    assert await database.fetchval("SELECT count(*) FROM public.holds") == 0
    assert {limit["held"] for limit in await limits_of(caller)} <= {0, "0.00"}


async def test_a_quote_knows_the_rules(service, caller):
    """A call that would be refused has a quote that is refused in the same way."""
    for members, status in (({"messages": []}, 400), ({"user": "x" * 129}, 400)):
        assert (await quoted(caller, **members))[0] == status
    _, admin = await service.operate(
        "POST",
        f"{ORGANIZATIONS}/{caller.organization_id}/keys",
        json={"name": "admin", "role": "admin"},
    )
    caller.headers = {"Authorization": f"Bearer {admin['key']}"}
    assert (await quoted(caller))[0] == 403
