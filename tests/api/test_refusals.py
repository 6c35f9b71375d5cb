"""Every refusal is recorded, within bounds, and without the caller's words."""

import asyncio
import io
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, make_settings, running, set_limit

from service import derived
from service.api import DATABASE, RECORDER
from service.derived import Refusal
from service.derived import recorder as recording
from service.telemetry import metrics

REFUSALS = "/admin/v1/refusals"
UNKNOWN_KEY = "rk_" + "Zq7" * 14 + "x"
MARK = "Zq7"
LARGE = bytes(36 * 1024 * 1024)


async def refusals(service, **query):
    """Return what is recorded, newest first, as the operator sees it."""
    await service.app[RECORDER].write()
    status, body = await service.operate("GET", REFUSALS, params=query)
    assert status == 200, body
    return body["refusals"]


async def post(service, path="/v1/chat/completions", headers=None, **arguments):
    """Return the status, the body and the request's id."""
    async with service.http.post(path, headers=headers, **arguments) as response:
        body = await response.json()
        return response.status, body, response.headers["x-request-id"]


def body(**members):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **members}


async def dropped(table, reason):
    """Return how many rows of a table were dropped for the reason."""
    metrics.flush_noted()
    return metrics.UNRECORDED.labels(table, reason)._value.get()


async def test_a_refusal_by_a_limit_has_its_numbers(service, caller):
    """A 402 is recorded with the limit's id, unit, ceiling, used, held, needed and reset, as the
    caller got them, with who asked for what."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="0.0000001", of_key=True)
    members = {"user": "ada", "stream": True, "max_tokens": 50}
    status, answer, request_id = await post(service, headers=caller.headers, json=body(**members))
    assert (status, answer["error"]["code"]) == (402, "limit_exceeded")

    (found,) = await refusals(service, organization=caller.organization_id)
    assert found["limit"] == answer["error"]["limit"]
    assert found["limit"]["id"] == limit["id"]
    assert {"unit", "ceiling", "used", "held", "needed", "resets_at"} <= found["limit"].keys()
    expected = {
        "request_id": request_id,
        "status": 402,
        "code": "limit_exceeded",
        "message": answer["error"]["message"],
        "method": "POST",
        "route": "/v1/chat/completions",
        "organization_id": caller.organization_id,
        "organization_name": "acme",
        "api_key_id": caller.key_id,
        "key_name": "acme",
        "key_prefix": caller.key[:10],
        "endpoint": "/chat/completions",
        "model": MODEL,
        "is_stream": True,
        "repeats": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert re.fullmatch("[0-9a-f]{32}", found["end_user"])
    refused_at = datetime.fromisoformat(found["refused_at"])
    assert abs(refused_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("limit", "status", "code"),
    [
        ({"unit": "requests", "period": "day", "ceiling": 1}, 429, "rate_limited"),
        ({"unit": "tokens", "period": "day", "ceiling": 5}, 400, "call_too_large"),
    ],
)
async def test_each_kind_of_limit(service, caller, limit, status, code):
    """Refusals for requests and tokens are recorded as those for money are."""
    await set_limit(caller, **limit)
    answers = [await post(service, headers=caller.headers, json=body(max_tokens=50)) for _ in "ab"]
    assert (answers[-1][0], answers[-1][1]["error"]["code"]) == (status, code)

    found = await refusals(service, organization=caller.organization_id, code=code)
    assert found[0]["request_id"] == answers[-1][2]
    assert found[0]["limit"]["unit"] == limit["unit"]


async def test_local_refusals_of_each_kind(service, caller):
    """Refusals without a limit are recorded too, each with its status, code and route."""
    requests = {
        (400, "invalid_request"): ("/v1/chat/completions", {"json": body(messages="x")}),
        (400, "invalid_json"): ("/v1/chat/completions", {"data": b"{"}),
        (404, "model_not_found"): ("/v1/chat/completions", {"json": body(model="gpt-nosuch")}),
        (404, "not_found"): ("/v1/nothing", {"json": {}}),
        (405, "method_not_allowed"): ("/v1/models", {"json": {}}),
        (413, "payload_too_large"): ("/v1/chat/completions", {"data": io.BytesIO(LARGE)}),
        (403, "forbidden"): (ORGANIZATIONS, {"json": {"name": "x"}}),
    }
    for (status, code), (path, arguments) in requests.items():
        answered, answer, request_id = await post(service, path, caller.headers, **arguments)
        assert (answered, answer["error"]["code"]) == (status, code)
        found = {line["request_id"]: line for line in await refusals(service, status=status)}
        line = found[request_id]
        assert (line["status"], line["code"]) == (status, code)
        assert line["route"] in (path, "none")


async def test_the_model_of_a_refusal(service, caller):
    """A name that is no model is recorded if it can be one, without its suffix."""
    await post(service, headers=caller.headers, json=body(model="gpt-nosuch:enable_web_search=on"))
    await post(service, headers=caller.headers, json=body(model=f"a-{MARK * 20}"))
    await post(service, headers=caller.headers, json=body(model=caller.key))
    await post(service, headers=caller.headers, json=body(model=caller.key[4:30]))

    found = await refusals(service, organization=caller.organization_id)
    assert [line["model"] for line in found] == [None, None, None, "gpt-nosuch"]
    assert await refusals(service, model="gpt-nosuch", code="model_not_found") == found[-1:]


async def test_keys_that_are_not_in_force(service, caller):
    """A refusal of a revoked key names its owner. One of an unknown key has only the beginning of
    the key, and one of anything else has nothing of it."""
    await post(service, headers=caller.headers, json=body())
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    for key in (caller.key, UNKNOWN_KEY, "sk-" + MARK * 10, OPERATOR_KEY):
        await post(service, headers={"Authorization": f"Bearer {key}"}, json=body())
    await post(service, json=body())

    found = await refusals(service, limit=5)
    assert [(line["code"], line["key_prefix"], line["api_key_id"]) for line in reversed(found)] == [
        ("revoked_api_key", caller.key[:10], caller.key_id),
        ("invalid_api_key", UNKNOWN_KEY[:10], None),
        ("malformed_api_key", None, None),
        ("forbidden", None, None),
        ("missing_api_key", None, None),
    ]
    assert found[-1]["organization_id"] == caller.organization_id
    assert {line["organization_id"] for line in found[:-1]} == {None}


async def test_no_words_of_a_caller_are_kept(service, caller):
    """Neither prompts nor names nor keys that a caller made up are in the tables, wherever they
    stood in the request. The planted words are in no other text."""
    tags = {"x-rialto-tags": f"{MARK}=1,{MARK}=2"}
    tool = {"type": "function", "function": {"name": "f"}, f"{MARK}model": MARK}
    odd = {"type": MARK}
    requests = [
        ("/v1/chat/completions", {"json": body(messages=MARK)}),
        ("/v1/chat/completions", {"json": body(messages=[{"role": MARK, "content": MARK}])}),
        ("/v1/chat/completions", {"json": body(temperature=MARK)}),
        ("/v1/chat/completions", {"data": f'{{"{MARK}":1,"{MARK}":2}}'}),
        ("/v1/chat/completions", {"data": f'{{"a": {MARK}}}'}),
        ("/v1/chat/completions", {"json": body(model=f"{MARK} {MARK}")}),
        ("/v1/chat/completions", {"json": body(user=MARK * 100)}),
        ("/v1/chat/completions", {"json": body(**{MARK: 1})}),
        ("/v1/chat/completions", {"json": body(tools=[tool])}),
        ("/v1/chat/completions", {"json": body(tools=[odd])}),
        ("/v1/messages", {"json": body(messages=[{"role": "user", "content": [odd]}])}),
        ("/v1/messages", {"json": body(max_tokens=MARK)}),
        ("/v1/responses", {"json": {"model": MODEL, "input": [odd], "tools": [odd]}}),
        ("/v1/embeddings", {"json": {"model": MODEL, "input": {MARK: MARK}}}),
        (f"/v1/{MARK}", {"json": {}}),
        (f"/api/v1/{MARK}/{MARK}", {"json": {}}),
        (f"/v1/quote/{MARK}", {"json": body()}),
        (f"/v1/crypto/rpc/{MARK}..", {"json": {"method": MARK}}),
        ("/v1/images/edits", {"data": {MARK: "1", "image": MARK}}),
        ("/v1/video/retrieve", {"json": {"model": MODEL, "queue_id": f"{MARK} {MARK}"}}),
    ]
    limit = {"unit": "usd", "period": "month", "ceiling": "0.0000001"}
    await set_limit(caller, **limit)
    for path, arguments in requests:
        status, answer, _ = await post(service, path, caller.headers, **arguments)
        assert status >= 400, (path, arguments, answer)
    status, answer, _ = await post(service, headers=caller.headers | tags, json=body())
    assert (status, MARK in answer["error"]["message"]) == (400, True)
    for name in ("x-api-key", "Authorization"):
        await post(service, headers={name: f"Bearer rk_{MARK * 3}"}, json=body())
    async with service.http.get(
        "/v1/usage", headers=caller.headers, params={"group_by": MARK, MARK: MARK}
    ) as response:
        assert response.status == 400

    found = await refusals(service, limit=100)
    assert len(found) >= len(requests) + 3
    database = service.app[DATABASE]
    for table in ("refusals", "attempts"):
        rows = await database.fetch(f"SELECT t::text AS row FROM derived.{table} t")
        assert [row["row"] for row in rows if MARK.lower() in row["row"].lower()] == []
    keys = [caller.key, OPERATOR_KEY]
    rows = await database.fetch("SELECT t::text AS row FROM derived.refusals t")
    assert [row for row in rows for key in keys if key[:14] in row["row"]] == []


async def test_a_page_of_refusals(service, caller):
    """Lists are newest first, page by ``next``, and select by period."""
    ids = [(await post(service, headers=caller.headers, data=b"{"))[2] for _ in range(5)]
    found = await refusals(service, organization=caller.organization_id)
    assert [line["request_id"] for line in found] == ids[::-1]
    query = {"organization": caller.organization_id, "limit": 2}
    _, first = await service.operate("GET", REFUSALS, params=query)
    _, second = await service.operate("GET", REFUSALS, params=query | {"after": first["next"]})
    _, third = await service.operate("GET", REFUSALS, params=query | {"after": second["next"]})
    pages = [line["request_id"] for page in (first, second, third) for line in page["refusals"]]
    assert pages == ids[::-1]
    assert third["next"] is None
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert await refusals(service, **query, **{"from": later}) == []
    for key in (caller.key_id, caller.key[:10], "acme"):
        assert len(await refusals(service, **query, to=later, key=key)) == 2
    assert len(await refusals(service, organization="acme")) == 5


async def test_everybody_sees_its_own(service, caller):
    """A key sees its own refusals, an administrator those of its organization, and no others."""
    other = await service.new_caller("other")
    _, made = await service.operate(
        "POST", f"{ORGANIZATIONS}/{other.organization_id}/keys", json={"name": "a", "role": "admin"}
    )
    await post(service, headers=caller.headers, data=b"{")
    _, _, request_id = await post(service, headers=other.headers, data=b"{")
    await service.app[RECORDER].write()
    admin = {"Authorization": f"Bearer {made['key']}"}
    for path, headers in ((REFUSALS, admin), ("/v1/refusals", other.headers)):
        async with service.http.get(path, headers=headers) as response:
            found = (await response.json())["refusals"]
        assert [line["request_id"] for line in found] == [request_id]
    query = {"organization": caller.organization_id}
    async with service.http.get(REFUSALS, headers=admin, params=query) as response:
        assert response.status == 403


async def test_refusals_are_counted_by_cause(service, caller):
    """The count has every refusal, those that have no row of their own as well."""
    recorder, database = service.app[RECORDER], service.app[DATABASE]
    organization_id = UUID(caller.organization_id)
    for _ in range(recording.REFUSALS_OF_SOURCE + 50):
        recorder.add_refusal(_refusal(organization_id), "")
    await post(service, headers=caller.headers, data=b"{")
    await recorder.write()
    now = await database.now()
    hour = timedelta(hours=1)

    counts = await derived.count_by_cause(database, organization_id, now - hour, now + hour)
    assert [(one.code, one.status, one.count) for one in counts] == [
        ("rate_limited", 429, recording.REFUSALS_OF_SOURCE + 50),
        ("invalid_json", 400, 1),
    ]
    assert await derived.count_by_cause(database, organization_id, now + hour, now + hour * 2) == []


def _refusal(organization_id, **changes):
    facts = {
        "refused_at": datetime.now(UTC),
        "request_id": "r",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 429,
        "code": "rate_limited",
        "message": "m",
        "organization_id": organization_id,
    }
    return Refusal(**facts | changes)


async def test_a_flood_of_one_key_keeps_the_records_of_others(service, caller):
    """However many refusals a key causes within a second, another caller's is recorded."""
    before = await dropped("refusals", "share")
    recorder = service.app[RECORDER]
    for _ in range(20_000):
        recorder.add_refusal(_refusal(UUID(caller.organization_id)), "")
    other = await service.new_caller("other")
    _, _, request_id = await post(service, headers=other.headers, data=b"{")

    (found,) = await refusals(service, organization=other.organization_id)
    assert found["request_id"] == request_id
    assert await dropped("refusals", "share") > before
    rows = "SELECT count(*) FROM derived.refusals WHERE organization_id = $1"
    written = await service.app[DATABASE].fetchval(rows, UUID(caller.organization_id))
    assert written < 3 * recording.REFUSALS_OF_SOURCE


async def test_a_database_that_is_away_costs_no_refusal_its_time(proxy, proxied_address, upstream):
    """Without the database a refusal is answered at once. It is recorded when the database is back,
    and the end of the service does not wait for a database that stays away."""
    async with running(make_settings(proxied_address, upstream.url)) as service:
        proxy.refuse()
        proxy.reset()
        began = asyncio.get_running_loop().time()
        ids = [(await post(service, json=body()))[2] for _ in range(3)]
        assert asyncio.get_running_loop().time() - began < 1
        assert service.app[RECORDER].queued >= 3
        await proxy.restore()
        async with asyncio.timeout(20):
            while service.app[RECORDER].queued:
                await asyncio.sleep(0.1)
        found = await refusals(service, code="missing_api_key")
        assert {line["request_id"] for line in found} == set(ids)
        proxy.refuse()
        proxy.reset()
        await post(service, json=body())
        began = asyncio.get_running_loop().time()
        assert await service.app[RECORDER].flush(0.5) == 1
        assert asyncio.get_running_loop().time() - began < 2
        await proxy.restore()


async def test_a_table_that_takes_no_rows_drops_them(service, caller):
    """Rows that the database refuses are dropped and counted, and logged once; calls go on."""
    database = service.app[DATABASE]
    await database.fetch("ALTER TABLE derived.refusals RENAME TO renamed")
    before = await dropped("refusals", "database")
    with capture_logs() as lines:
        for _ in range(3):
            await post(service, headers=caller.headers, data=b"{")
            await service.app[RECORDER].write()
    await database.fetch("ALTER TABLE derived.renamed RENAME TO refusals")

    assert await dropped("refusals", "database") == before + 3
    assert [line["event"] for line in lines].count("records not written") == 1
    async with caller.chat() as response:
        assert response.status == 200
    await post(service, headers=caller.headers, data=b"{")
    assert len(await refusals(service, organization=caller.organization_id)) == 1


async def test_records_of_a_service_that_ends_are_written(database_address, upstream):
    """What was recorded just before the end is written by the end."""
    settings = make_settings(database_address, upstream.url)
    async with running(settings) as service:
        caller = await service.new_caller()
        _, _, request_id = await post(service, headers=caller.headers, data=b"{")
    async with running(settings) as service:
        (found,) = await refusals(service, code="invalid_json")
    assert found["request_id"] == request_id


async def test_two_services_record_into_one_table(database_address, upstream):
    """Replicas share the table, and both remove what is too much without removing more."""
    settings = make_settings(database_address, upstream.url)
    async with running(settings) as one, running(settings) as two:
        caller = await one.new_caller()
        for service in (one, two):
            for number in range(60):
                refused = _refusal(UUID(caller.organization_id), request_id=f"{number}")
                service.app[RECORDER].add_refusal(refused, "")
        await asyncio.gather(*(service.app[RECORDER].write() for service in (one, two)))
        databases = [service.app[DATABASE] for service in (one, two)]
        removed = await asyncio.gather(*(derived.trim(each, 30, 100) for each in databases))

        assert sum(removed) == 20
        found = await refusals(one, limit=1000)
        assert len(found) == 100


async def test_old_records_are_removed(service, caller):
    """Rows older than the days are removed, and beyond the number the oldest of the organizations
    with the most."""
    database, recorder = service.app[DATABASE], service.app[RECORDER]
    mine, others = UUID(caller.organization_id), UUID(int=99)
    for organization_id, count in ((mine, 5), (others, 150), (None, 100)):
        for number in range(count):
            refused = _refusal(organization_id, request_id=f"{number}")
            recorder.add_refusal(refused, f"{number}")
    await recorder.write()
    old = await database.fetchval("SELECT public.uuid7_floor(now() - interval '31 days')")
    await database.fetch(
        "INSERT INTO derived.refusals (id, refused_at, request_id, method, route, status, code,"
        " message) VALUES ($1, now(), 'old', 'GET', 'none', 404, 'not_found', 'm')",
        old,
    )

    assert await derived.trim(database, 30, 1000) == 1
    assert await derived.trim(database, 30, 105) == 150
    rows = await database.fetch(
        "SELECT organization_id, count(*) AS count, min(request_id::integer) AS oldest"
        " FROM derived.refusals GROUP BY 1"
    )
    assert {row["organization_id"]: (row["count"], row["oldest"]) for row in rows} == {
        mine: (5, 0),
        others: (50, 100),
        None: (50, 50),
    }


async def test_a_malformed_request_is_recorded(service):
    """Bytes that are no request are recorded without any of them."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{MARK} {MARK}\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    request_id = re.search("x-request-id: ([0-9a-f]{32})", answer, re.IGNORECASE)[1]

    found = {line["request_id"]: line for line in await refusals(service, code="malformed_request")}
    assert (found[request_id]["route"], found[request_id]["status"]) == ("none", 400)


async def test_success_and_failures_of_venice_are_no_refusals(service, upstream, caller):
    """A call that succeeds and one that Venice refuses or fails have an entry, and no refusal."""
    upstream.faults.push("/chat/completions", "inference_failed", times=1)
    for _ in range(2):
        async with caller.chat() as response:
            await response.read()

    assert len(await caller.entries()) == 2
    assert await refusals(service, organization=caller.organization_id) == []
