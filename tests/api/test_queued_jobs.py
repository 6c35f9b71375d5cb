"""Queued jobs are recorded at the right cost, whether or not their caller retrieves them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from paid_bodies import BODIES, payload
from support import cost_of, limits_of, set_limit

from service import api, ledger
from service.background import queued_jobs
from service.sandbox import FaultKind
from service.upstream.refusals import is_refunded

LONG_AGO = datetime.now(UTC) - timedelta(days=1)
QUEUES = ("/video/queue", "/audio/queue")


async def queued(caller, path="/video/queue"):
    """Queue a job; return its ticket and its entry."""
    async with caller.service.http.post(
        f"/v1{path}", headers=caller.headers, **payload(BODIES[path])
    ) as response:
        assert response.status == 200
        made = await response.json()
    (entry,) = await caller.entries()
    return {"model": made["model"], "queue_id": made["queue_id"]}, entry


async def follow(service, *, age="2 minutes"):
    """Run the service's check of jobs, with the jobs made as old as that."""
    database = service.app[api.DATABASE]
    await queued_jobs.follow_jobs(database, LONG_AGO)
    await database.fetch(
        "UPDATE public.generations SET created_at = created_at - $1::text::interval,"
        " next_poll_at = next_poll_at - $1::text::interval",
        age,
    )
    await queued_jobs.poll_jobs(database, service.app[api.VENICE])


async def statuses(service):
    """Return the statuses of the jobs that are tracked."""
    rows = await service.app[api.DATABASE].fetch("SELECT status FROM public.generations")
    return [row["status"] for row in rows]


async def used(caller):
    """Return what the caller's only limit has used."""
    (limit,) = await limits_of(caller)
    return Decimal(limit["used"])


@pytest.mark.parametrize("path", QUEUES)
async def test_a_refund_is_recorded_without_a_retrieval(service, caller, upstream, path):
    """A refund of a job that nobody retrieves is recorded once, as a credit of its whole cost, and
    returns room to the limit."""
    await set_limit(caller, unit="usd", period="month", ceiling="100")
    _, entry = await queued(caller, path)
    assert await used(caller) == cost_of(entry) > 0
    upstream.faults.push(path.replace("queue", "retrieve"), FaultKind.JOB_FAILED, times=5)

    for _ in range(3):
        await follow(service)

    credit, call = await caller.entries()
    assert call == entry
    assert (credit["kind"], credit["amends_id"]) == ("credit", entry["id"])
    assert (cost_of(credit), credit["note"]) == (-cost_of(entry), "Venice refunded the job.")
    assert await used(caller) == 0
    assert await statuses(service) == ["failed"]
    assert len(upstream.calls.to(path.replace("queue", "retrieve"))) == 1


async def test_a_refund_that_the_caller_sees_is_recorded_at_once(service, caller, upstream):
    """A refund that a retrieval reports is recorded at once, with Venice's error for the caller;
    further checks add nothing."""
    ticket, entry = await queued(caller)
    upstream.faults.push("/video/retrieve", FaultKind.JOB_FAILED, times=9)

    for _ in range(2):
        async with service.http.post(
            "/v1/video/retrieve", json=ticket, headers=caller.headers
        ) as response:
            assert response.status == 422
            assert "refused the content" in (await response.json())["error"]["message"]
        assert [cost_of(entry) for entry in await caller.entries()] == [
            -cost_of(entry),
            cost_of(entry),
        ]
    await follow(service)

    assert len(await caller.entries()) == 2
    assert await statuses(service) == ["failed"]


async def test_a_refund_excludes_the_operators_credit(service, caller, upstream):
    """After a credit by the operator the refund covers only the rest."""
    _, entry = await queued(caller)
    part = {"usd": "0.01", "note": "Late."}
    await service.operate("POST", f"/admin/v1/ledger/{entry['id']}/credit", json=part)
    upstream.faults.push("/video/retrieve", FaultKind.JOB_FAILED)

    await follow(service)

    costs = [cost_of(entry) for entry in await caller.entries()]
    assert (sum(costs), len(costs)) == (0, 3)


STEPS = ("retrieve", "complete")
FAMILIES = ("video", "audio", "audio/voice-changer")


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_job_is_unknown_to_other_organizations(
    service, caller, upstream, family, step, prefix
):
    """On every path another organization gets the response for an unknown job, and Venice gets no
    request."""
    ticket, entry = await queued(caller, f"/{family}/queue")
    stranger = await service.new_caller("stranger")
    never = ticket | {"queue_id": "01a2-no-such-job"}

    answers = []
    for asked in (ticket, ticket | {"delete_media_on_completion": True}, never):
        async with service.http.post(
            f"{prefix}/{family}/{step}", json=asked, headers=stranger.headers
        ) as response:
            error = (await response.json())["error"]
            answers.append((response.status, error["code"], error["param"], error["message"]))
    assert set(answers) == {
        (404, "not_found", "queue_id", "queue_id: your organization queued no job with this id.")
    }
    assert upstream.calls.to(f"/{family}/{step}") == []
    assert await caller.entries() == [entry]
    assert await stranger.entries() == []

    async with service.http.post(
        f"{prefix}/{family}/{step}", json=ticket, headers=caller.headers
    ) as response:
        assert response.status == 200


async def test_an_organizations_keys_share_its_jobs(service, caller):
    """One key of an organization may retrieve a job that another one queued."""
    ticket, _ = await queued(caller)
    path = f"/admin/v1/organizations/{caller.organization_id}/keys"
    _, made = await service.operate("POST", path, json={"name": "other"})
    headers = {"Authorization": f"Bearer {made['key']}"}
    async with service.http.post("/v1/video/retrieve", json=ticket, headers=headers) as response:
        assert response.status == 200


async def test_venice_gets_the_job_id_that_was_checked(service, caller, upstream):
    """A body with two job ids is refused, and an id in the query is not passed on."""
    ticket, _ = await queued(caller)
    stranger = await service.new_caller("stranger")
    own, _ = await queued(stranger)
    theirs, mine = ticket["queue_id"], own["queue_id"]
    headers = {**stranger.headers, "Content-Type": "application/json"}

    async def ask(body):
        async with service.http.post(
            f"/v1/video/retrieve?queue_id={theirs}", data=body, headers=headers
        ) as response:
            return response.status

    both = f'{{"model": "{own["model"]}", "queue_id": "{theirs}", "queue_id": "{mine}"}}'
    assert await ask(both) == 400
    assert await ask(json.dumps(own)) == 200
    (call,) = upstream.calls.to("/video/retrieve")
    assert theirs not in call.body.decode() + str(call.query)


async def test_a_job_whose_entry_is_not_written_yet(service, caller, upstream):
    """While a job is being queued, a retrieval of an unknown job is a 503 to retry, because it may
    be that job; a job with an entry is retrieved at once."""
    ticket, _ = await queued(caller)
    unknown = ticket | {"queue_id": "01a2-no-such-job"}
    upstream.faults.push("/audio/queue", "barrier")
    request = service.http.post(
        "/v1/audio/queue", headers=caller.headers, **payload(BODIES["/audio/queue"])
    )
    queueing = asyncio.create_task(request.__aenter__())
    await upstream.faults.wait_held(1)

    async def ask(asked):
        async with service.http.post(
            "/v1/video/retrieve", json=asked, headers=caller.headers
        ) as response:
            return response.status, response.headers.get("Retry-After")

    assert await ask(unknown) == (503, "1")
    assert await ask(ticket) == (200, None)
    upstream.faults.clear()
    (await queueing).close()
    assert await ask(unknown) == (404, None)


async def test_a_finished_job_is_not_checked_again(service, caller, upstream):
    """A finished job keeps its price, is not checked again, and leaves its result to the caller."""
    ticket, entry = await queued(caller)

    for expected in ("in_progress", "in_progress", "completed", "completed"):
        await follow(service)
        assert await statuses(service) == [expected]

    assert len(upstream.calls.to("/video/retrieve")) == 3
    async with service.http.post(
        "/v1/video/retrieve", json=ticket, headers=caller.headers
    ) as response:
        assert response.content_type == "video/mp4"
    assert await caller.entries() == [entry]


async def test_a_job_that_venice_does_not_know_keeps_its_price(service, caller):
    """A job that Venice no longer knows, because its caller has retrieved it, keeps its price."""
    ticket, entry = await queued(caller)
    async with service.http.post(
        "/v1/video/complete", json=ticket, headers=caller.headers
    ) as response:
        assert response.status == 200

    await follow(service)

    assert await statuses(service) == ["expired"]
    assert await caller.entries() == [entry]


@pytest.mark.parametrize(
    "kind",
    [
        FaultKind.AT_CAPACITY,
        FaultKind.INFERENCE_FAILED,
        FaultKind.INVALID_KEY,
        FaultKind.RATE_LIMITED,
        FaultKind.GARBAGE,
        FaultKind.DISCONNECT,
    ],
)
async def test_a_failing_venice_changes_no_job(service, caller, upstream, kind):
    """A check that Venice fails is repeated later and records nothing."""
    _, entry = await queued(caller)
    upstream.faults.push("/video/retrieve", kind, times=1)

    await follow(service)

    assert await statuses(service) == ["in_progress"]
    assert await caller.entries() == [entry]


async def test_a_job_is_checked_less_and_less_often(service, caller, upstream):
    """A job is checked after a minute, then at intervals of a quarter of its age, after a day no
    more, and is finally forgotten."""
    await queued(caller)
    await follow(service, age="50 seconds")
    assert upstream.calls.to("/video/retrieve") == []
    await follow(service, age="20 seconds")
    await follow(service, age="50 seconds")
    assert len(upstream.calls.to("/video/retrieve")) == 1

    database = service.app[api.DATABASE]
    await follow(service, age="100 minutes")
    waits = "SELECT extract(epoch FROM next_poll_at - now()) FROM public.generations"
    assert 1400 < await database.fetchval(waits) < 1800
    await follow(service, age="23 hours")
    assert await statuses(service) == ["expired"]
    await database.fetch("UPDATE public.generations SET expires_at = now() - interval '1 second'")
    await queued_jobs.stored.forget(database)
    assert await statuses(service) == []
    assert len(upstream.calls.to("/video/retrieve")) == 2


async def test_a_refund_is_recorded_once(service, caller):
    """A refund that several requests learn of at once is recorded once."""
    _, entry = await queued(caller)
    ids = UUID(caller.organization_id), UUID(entry["id"])

    refunds = [ledger.refund(service.app[api.DATABASE], *ids) for _ in range(4)]
    given = await asyncio.gather(*refunds)

    assert sorted(given)[:3] == [0, 0, 0]
    assert sum(given) == int(cost_of(entry) * 10**9)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "x", "credits_refunded": true}}', True),
        (b'{"status": "FAILED", "credits_refunded": true}', True),
        (b'{"error": {"message": "x", "credits_refunded": false}}', False),
        (b'{"error": {"message": "\\"credits_refunded\\": true"}}', False),
        (b'{"error": "credits_refunded"}', False),
        (b'{"error": {"credits_refunded": "true"}}', False),
        (b"[]", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_what_is_a_refund(body, expected):
    """Only an explicit statement by Venice counts as a refund."""
    assert is_refunded(body) is expected
