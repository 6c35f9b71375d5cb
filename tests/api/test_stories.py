"""The whole story of a request is found by its id: of a call, of one in flight, of a refusal."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from support import MODEL, ORGANIZATIONS, cost_of, set_alias, set_limit

from service import ledger
from service.api import DATABASE, RECORDER
from service.ledger import CostSource
from service.reports import story

REQUESTS = "/admin/v1/requests"


async def story_of(service, request_id):
    """Return the story as the operator sees it."""
    await service.app[RECORDER].write()
    status, found = await service.operate("GET", f"{REQUESTS}/{request_id}")
    assert status == 200, found
    return found


async def called(caller, **members):
    """Make a call; return the request's id."""
    async with caller.chat(**members) as response:
        await response.read()
        return response.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_story_of_a_call(service, caller, stream):
    """It states who asked for what, the bound, each limit as it is now, times, outcome, tokens and
    cost with its source, and equals the ledger entry."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_alias(service, "fast", [MODEL])
    request_id = await called(caller, model="fast", user="ada", stream=stream, max_tokens=50)
    entry = await caller.only_entry()

    found = await story_of(service, request_id)
    assert (found["state"], found["id"], found["request_id"]) == (
        "settled",
        entry["id"],
        request_id,
    )
    for name in (
        *("api_key_id", "end_user", "endpoint", "model", "requested_model", "is_stream", "tags"),
        *("bound_usd", "bound_tokens", "outcome", "status", "first_byte_ms", "duration_ms"),
        *("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "cost_source"),
        *("price_version", "counted_at", "upstream_request_id"),
    ):
        assert found[name] == entry[name], name
    assert found["outcome"] == "ok"
    assert found["requested_model"] == "fast"
    assert found["total_cost_usd"] == entry["cost_usd"]
    who = ("organization_id", "organization_name", "key_name", "key_prefix", "upstream_key_name")
    assert [found[name] for name in who] == [
        *(caller.organization_id, "acme", "acme", caller.key[:10], "environment")
    ]
    (shown,) = found["limits"]
    assert (shown["id"], shown["ceiling"], shown["used"], shown["held"]) == (
        *(limit["id"], "5.00", entry["cost_usd"], "0.00"),
    )
    assert (found["limits_as_of"], found["attempts"], found["others"]) == ("now", [], [])
    assert abs(datetime.fromisoformat(found["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert await story_of(service, entry["id"]) == found


async def test_the_story_of_a_call_in_flight(service, upstream, caller):
    """A call that is not settled is found with its hold and the limits that hold for it."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    upstream.faults.push("/chat/completions", "barrier")
    caller.headers["x-request-id"] = "in-flight-1"
    calling = asyncio.create_task(called(caller))
    await upstream.faults.wait_held(1)
    in_flight = await story.find(service.app[DATABASE], "in-flight-1", None)
    upstream.faults.release()
    await calling

    assert (in_flight.state, in_flight.outcome, in_flight.cost_usd) == ("in_flight", None, None)
    assert str(in_flight.api_key_id) == caller.key_id
    assert Decimal(in_flight.bound_usd) > 0
    assert Decimal(in_flight.limits[0].held) == Decimal(in_flight.bound_usd)
    settled = await story_of(service, "in-flight-1")
    assert (settled["state"], settled["id"]) == ("settled", str(in_flight.id))
    assert settled["limits"][0]["held"] == "0.00"


async def test_the_story_of_a_refusal(service, caller):
    """It has the limit's numbers of the moment, and stays the same when the limit changes."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="0.0000001")
    async with caller.chat(user="ada", max_tokens=50) as response:
        refused = (await response.json())["error"]
        assert response.status == 402
        request_id = response.headers["x-request-id"]
    change = {"ceiling": "100"}
    status, _ = await service.operate("PATCH", f"/admin/v1/limits/{limit['id']}", json=change)
    assert status == 200

    found = await story_of(service, request_id)
    assert (found["state"], found["status"], found["code"]) == ("refused", 402, "limit_exceeded")
    assert found["message"] == refused["message"]
    assert (found["model"], found["organization_name"]) == (MODEL, "acme")
    (shown,) = found["limits"]
    assert shown == refused["limit"]
    assert found["limits_as_of"] == "refusal"
    assert found["cost_usd"] is None
    assert await story_of(service, found["id"]) == found


async def test_the_attempts_of_a_call(service, upstream, caller):
    """A call with a failed attempt has each with its number, start, duration, key, status and
    code."""
    upstream.faults.push("/chat/completions", "at_capacity", times=1)
    found = await story_of(service, await called(caller))

    first, second = found["attempts"]
    assert [first["number"], second["number"]] == [1, 2]
    assert (first["code"], second["code"]) == ("upstream_busy", "ok")
    assert (second["status"], second["model"]) == (200, MODEL)
    assert first["status"] >= 400
    assert {first["upstream_key_name"], second["upstream_key_name"]} == {"environment"}
    starts = [datetime.fromisoformat(one["started_at"]) for one in (first, second)]
    assert starts[0] + timedelta(milliseconds=first["duration_ms"]) <= starts[1] + timedelta(
        milliseconds=2
    )
    assert abs(starts[0] - datetime.fromisoformat(found["at"])) < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("kind", "stream", "code"),
    [
        ("inference_failed", False, "upstream_error"),
        ("cut", True, "upstream_cut"),
    ],
)
async def test_a_failed_call_has_its_attempt(service, upstream, caller, kind, stream, code):
    """An attempt that fails, at once or within its answer, is recorded with its code."""
    upstream.faults.push("/chat/completions", kind, times=1)
    request_id = await _failed(caller, stream=stream)
    found = await story_of(service, request_id)

    assert found["outcome"] == code
    assert [(one["number"], one["code"]) for one in found["attempts"]] == [(1, code)]


async def _failed(caller, **members):
    async with caller.chat(**members) as response:
        request_id = response.headers["x-request-id"]
        await response.read()
        return request_id


async def test_a_plain_call_writes_no_attempts(service, caller):
    """A call that succeeds at once has no rows beside its entry."""
    await called(caller)
    await called(caller, stream=True)
    await service.app[RECORDER].write()

    database = service.app[DATABASE]
    assert await database.fetchval("SELECT count(*) FROM derived.attempts") == 0
    assert await database.fetchval("SELECT count(*) FROM derived.refusals") == 0


async def test_credits_are_part_of_the_story(service, caller):
    """Credits are listed and change the total, and the id of a credit finds its call."""
    request_id = await called(caller)
    call = await caller.only_entry()
    usd = call["cost_usd"]
    status, credit = await service.operate(
        "POST", f"/admin/v1/ledger/{call['id']}/credit", json={"usd": usd, "note": "empty"}
    )
    assert status == 201

    found = await story_of(service, request_id)
    (amendment,) = found["amendments"]
    assert (amendment["kind"], amendment["note"]) == ("credit", "empty")
    assert Decimal(amendment["cost_usd"]) == -cost_of(call)
    assert (found["cost_usd"], Decimal(found["total_cost_usd"])) == (usd, 0)
    assert await story_of(service, credit["id"]) == found


async def test_several_requests_with_one_id(service, caller):
    """A caller may send one id many times. The newest is found, and the others are named."""
    caller.headers["x-request-id"] = "same-1"
    first, second = [await called(caller) for _ in "ab"]
    assert first == second == "same-1"
    async with caller.chat(model="gpt-nosuch") as response:
        assert response.status == 404

    found = await story_of(service, "same-1")
    assert (found["state"], found["code"]) == ("refused", "model_not_found")
    entries = await caller.entries()
    assert [one["id"] for one in found["others"]] == [entry["id"] for entry in entries]
    assert {one["state"] for one in found["others"]} == {"settled"}
    assert (await story_of(service, entries[0]["id"]))["id"] == entries[0]["id"]


async def test_an_administrator_sees_its_own(service, upstream, caller):
    """A story is found by administrators of its organization alone, without the operator's keys."""
    upstream.faults.push("/chat/completions", "at_capacity", times=1)
    request_id = await called(caller)
    entry = await caller.only_entry()
    async with caller.chat(model="gpt-nosuch") as response:
        refused_id = response.headers["x-request-id"]
    await service.app[RECORDER].write()
    other = await service.new_caller("other")
    for organization_id, status in ((caller.organization_id, 200), (other.organization_id, 404)):
        path = f"{ORGANIZATIONS}/{organization_id}/keys"
        _, admin = await service.operate("POST", path, json={"name": "a", "role": "admin"})
        headers = {"Authorization": f"Bearer {admin['key']}"}
        for wanted in (request_id, entry["id"], refused_id):
            async with service.http.get(f"{REQUESTS}/{wanted}", headers=headers) as response:
                assert response.status == status, wanted
                found = await response.json()
            if wanted == request_id and status == 200:
                assert len(found["attempts"]) == 2
                assert {one["upstream_key_name"] for one in found["attempts"]} == {None}
                assert found["upstream_key_name"] is None


async def test_two_organizations_with_one_id(service, caller):
    """An administrator finds its own request, though another organization has sent its id later."""
    other = await service.new_caller("other")
    for one in (caller, other):
        one.headers["x-request-id"] = "shared-1"
        await called(one)
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, admin = await service.operate("POST", path, json={"name": "a", "role": "admin"})
    headers = {"Authorization": f"Bearer {admin['key']}"}
    async with service.http.get(f"{REQUESTS}/shared-1", headers=headers) as response:
        found = await response.json()

    assert (found["organization_id"], found["others"]) == (caller.organization_id, [])
    seen = await story_of(service, "shared-1")
    assert (seen["organization_id"], len(seen["others"])) == (other.organization_id, 1)


@pytest.mark.parametrize("request_id", ["nothing", str(UUID(int=5)), "x" * 500, "%00", "a%20b"])
async def test_an_id_that_nothing_has(service, request_id):
    """An id that nothing has, of any form, is a 404."""
    status, found = await service.operate("GET", f"{REQUESTS}/{request_id}")

    assert (status, found["error"]["code"]) == (404, "not_found")


async def test_a_correction_is_part_of_the_story(service, caller):
    """A call that the sweeper settled and that was settled later has its correction."""
    database = service.app[DATABASE]
    request_id = await called(caller)
    entry = await caller.only_entry()
    call_id, organization_id = UUID(entry["id"]), UUID(caller.organization_id)
    await database.fetch(
        "INSERT INTO public.ledger_entries (organization_id, id, kind, amends_id, api_key_id,"
        " request_id, endpoint, outcome, cost_nanos, cost_source, counted_at)"
        " SELECT organization_id, public.uuid7_floor(now()), 'correction', id, api_key_id,"
        " request_id, endpoint, outcome, 1000, $3, clock_timestamp() FROM public.ledger_entries"
        " WHERE organization_id = $1 AND id = $2",
        organization_id,
        call_id,
        CostSource.REPORTED.value,
    )

    found = await story_of(service, request_id)
    (amendment,) = found["amendments"]
    assert (amendment["kind"], amendment["cost_usd"]) == ("correction", "0.000001")
    assert Decimal(found["total_cost_usd"]) == cost_of(entry) + Decimal("0.000001")
    # Not an amount that a limit counts, so the books stay proven.
    assert (await ledger.prove(database, organization_id)).faults == []


async def test_a_total_counts_more_credits_than_are_listed(service, caller):
    """The total is of all credits, of which the story lists the first hundred."""
    request_id = await called(caller)
    entry = await caller.only_entry()
    await service.app[DATABASE].fetch(
        "INSERT INTO public.ledger_entries (organization_id, id, kind, amends_id, api_key_id,"
        " request_id, endpoint, outcome, cost_nanos, cost_source, counted_at)"
        " SELECT organization_id, public.uuid7_floor(now() + n * interval '1 ms'), 'credit',"
        " id, api_key_id, request_id, endpoint, outcome, -10, $3, clock_timestamp()"
        " FROM public.ledger_entries, generate_series(1, 130) AS n"
        " WHERE organization_id = $1 AND id = $2",
        UUID(caller.organization_id),
        UUID(entry["id"]),
        CostSource.REPORTED.value,
    )

    found = await story_of(service, request_id)
    assert len(found["amendments"]) == 100
    assert Decimal(found["total_cost_usd"]) == cost_of(entry) - Decimal("0.0000013")
