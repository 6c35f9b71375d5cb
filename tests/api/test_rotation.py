"""Rotation of a key: a new secret for the same key, and an old secret that works for a while."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from support import MODEL, ORGANIZATIONS, Caller, make_settings, running, set_limit

from service import api
from service.accounts import callers

pytestmark = pytest.mark.shares_service

EXPIRES_AT = "x-rialto-key-expires-at"


def with_secret(caller, secret, service=None):
    """The same key with another secret, on another service if one is given."""
    key = {"id": caller.key_id, "key": secret}
    return Caller(service or caller.service, caller.organization_id, key)


async def rotate(caller, overlap_s=3600):
    """Rotate the caller's key as the operator; return its new secret's Caller and the answer."""
    path = f"/admin/v1/keys/{caller.key_id}/rotate"
    body = {"overlap_seconds": overlap_s}
    status, rotated = await caller.service.operate("POST", path, json=body)
    assert status == 200, rotated
    return with_secret(caller, rotated["key"]), rotated


async def rotate_own(caller, **body):
    """Rotate the caller's key by its own secret; return the status, the body and the headers."""
    async with caller.service.http.post(
        "/v1/key/rotate", json=body, headers=caller.headers
    ) as response:
        return response.status, await response.json(), response.headers


async def outcome(caller):
    """Make a call; return 200, or the code of its refusal."""
    async with caller.chat() as response:
        return (
            response.status if response.status == 200 else (await response.json())["error"]["code"]
        )


async def listed(caller):
    """List the models; return 200, or the code of the refusal."""
    async with caller.service.http.get("/v1/models", headers=caller.headers) as response:
        return (
            response.status if response.status == 200 else (await response.json())["error"]["code"]
        )


async def events(caller, action):
    """Return the audit events of a kind in the caller's organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/audit-events"
    _, page = await caller.service.operate("GET", path)
    return [event for event in page["events"] if event["action"] == action]


async def test_both_secrets_work_during_the_overlap(service):
    """The key keeps its id, settings, models and name, and both of its secrets make calls."""
    old = await service.new_caller(models=[MODEL], settings={"tolerant": False})
    path = f"{ORGANIZATIONS}/{old.organization_id}/keys"
    (before,) = (await service.operate("GET", path))[1]["keys"]

    new, rotated = await rotate(old)

    assert new.key != old.key
    assert rotated["prefix"] == new.key[:10]
    assert [await outcome(new), await outcome(old), await listed(new), await listed(old)] == [
        200
    ] * 4
    (after,) = (await service.operate("GET", path))[1]["keys"]
    changed = {name for name, value in after.items() if value != before[name]}
    assert changed == {"prefix", "previous_until"}
    assert {entry["api_key_id"] for entry in await new.entries()} == {old.key_id}
    assert new.key not in str(after)


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_to_the_old_secret_state_its_end(service, caller, stream):
    """Each answer to the old secret states until when it works; those to the new one do not."""
    new, rotated = await rotate(caller)
    until = datetime.fromisoformat(rotated["previous_until"]).replace(microsecond=0)

    async with caller.chat(stream=stream) as response:
        assert datetime.fromisoformat(response.headers[EXPIRES_AT]) == until
        await response.read()
    async with new.chat(stream=stream) as response:
        assert EXPIRES_AT not in response.headers
        await response.read()
    async with caller.chat(model="no-such-model") as response:
        assert (response.status, EXPIRES_AT in response.headers) == (404, True)
    async with service.http.get("/v1/models", headers=caller.headers) as response:
        assert (response.status, EXPIRES_AT in response.headers) == (200, True)


async def test_the_stated_end_is_never_after_the_expiry(service):
    """If the key expires within the overlap, answers to the old secret state that."""
    expires_at = (datetime.now(UTC) + timedelta(minutes=1)).replace(microsecond=0)
    caller = await service.new_caller(expires_at=expires_at.isoformat())
    await rotate(caller)

    async with caller.chat() as response:
        assert datetime.fromisoformat(response.headers[EXPIRES_AT]) == expires_at


async def test_the_old_secret_ends_with_the_overlap(caller):
    """After the overlap the old secret is refused on paid and free routes."""
    new, _ = await rotate(caller, overlap_s=1)
    assert [await outcome(caller), await listed(caller)] == [200, 200]

    await asyncio.sleep(1.1)

    assert [await outcome(caller), await listed(caller)] == ["expired_api_key"] * 2
    assert await outcome(new) == 200


async def test_without_an_overlap_the_old_secret_ends_at_once(caller):
    """An overlap of zero ends the old secret with the rotation."""
    assert await outcome(caller) == 200
    new, rotated = await rotate(caller, overlap_s=0)

    assert rotated["previous_until"] is None
    assert [await outcome(caller), await listed(caller)] == ["expired_api_key"] * 2
    assert [await outcome(new), await listed(new)] == [200, 200]


async def test_a_second_rotation_ends_the_first_secret(caller):
    """Of a key at most two secrets work: a rotation during an overlap ends the older one."""
    second, _ = await rotate(caller)
    third, _ = await rotate(second)

    assert [await outcome(caller), await listed(caller)] == ["invalid_api_key"] * 2
    assert [await outcome(second), await outcome(third)] == [200, 200]


async def test_revoking_ends_both_secrets(service, caller):
    """A revoked key is refused whichever of its secrets is shown."""
    new, _ = await rotate(caller)
    assert [await outcome(caller), await outcome(new)] == [200, 200]

    assert (await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}"))[0] == 204

    assert [await outcome(caller), await outcome(new)] == ["revoked_api_key"] * 2


async def test_limits_and_history_stay_with_the_key(service, caller):
    """What the key used before counts after its rotation, whichever secret is shown."""
    await set_limit(caller, unit="requests", period="day", ceiling=3, of_key=True)
    assert await outcome(caller) == 200
    new, _ = await rotate(caller)

    assert [await outcome(new), await outcome(caller)] == [200, 200]
    assert [await outcome(new), await outcome(caller)] == ["rate_limited"] * 2


@pytest.fixture
async def stale_replica(database_address, proxy, own_upstream):
    """A replica that keeps callers for minutes, and that no NOTIFY reaches."""
    settings = make_settings(
        database_address, own_upstream.url, database_unpooled=proxy.address, key_cache_s=300.0
    )
    async with running(settings) as replica:
        proxy.blackhole()
        yield replica


@pytest.mark.shares_service(False)
async def test_a_stale_cache_admits_no_ended_secret(service, stale_replica):
    """Admission refuses a secret that has ended, even on a replica that did not hear of it."""
    caller = await service.new_caller()
    first = with_secret(caller, caller.key, stale_replica)
    assert [await outcome(first), await listed(first)] == [200, 200]

    second, _ = await rotate(caller, overlap_s=3600)
    second = with_secret(second, second.key, stale_replica)
    assert [await outcome(first), await outcome(second)] == [200, 200]
    third, _ = await rotate(caller, overlap_s=0)

    assert await listed(second) == 200  # This shows that the cache is stale.
    assert [await outcome(first), await outcome(second)] == ["expired_api_key"] * 2
    assert await outcome(with_secret(third, third.key, stale_replica)) == 200
    assert len(await caller.entries()) == 4


async def test_a_wrong_clock_ends_no_secret_early(caller, monkeypatch):
    """The database's clock decides until when a secret works, not that of a process."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr(callers, "datetime", Ahead)
    new, _ = await rotate(caller, overlap_s=3600)

    assert [await outcome(caller), await listed(caller), await listed(new)] == [200] * 3


@pytest.mark.shares_service(False)
async def test_callers_that_follow_the_header_notice_nothing(database_address, own_upstream):
    """Two replicas serve a key that is rotated three times under load: no call is refused, and each
    has one entry."""
    settings = make_settings(database_address, own_upstream.url)
    async with running(settings) as here, running(settings) as there:
        caller = await here.new_caller()
        secrets, served, shown = [caller.key], [], {}
        is_over = asyncio.Event()

        async def work(number, replica):
            shown[number] = caller.key
            while not is_over.is_set():
                async with with_secret(caller, shown[number], replica).chat() as response:
                    served.append(response.status)
                    assert response.status == 200, await response.text()
                    if EXPIRES_AT in response.headers:
                        shown[number] = secrets[-1]

        async def rotate_often():
            for _ in range(3):
                await asyncio.sleep(0.2)
                _, rotated = await rotate(caller)
                secrets.append(rotated["key"])
                async with asyncio.timeout(20):
                    while set(shown.values()) != {secrets[-1]}:
                        await asyncio.sleep(0.01)
            is_over.set()

        replicas = enumerate([here, there] * 3)
        await asyncio.gather(rotate_often(), *(work(*replica) for replica in replicas))

        assert len(served) > 20
        path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
        _, report = await here.operate("GET", path)
        assert report["total"]["calls"] == len(served)
        await caller.audit()


async def test_a_holder_rotates_its_own_key(caller):
    """A key rotates itself; the event names the key as its actor and has no secret."""
    status, rotated, _ = await rotate_own(caller, overlap_seconds=60)

    assert status == 200
    assert rotated["id"] == caller.key_id
    new = with_secret(caller, rotated["key"])
    assert [await outcome(new), await outcome(caller)] == [200, 200]
    (event,) = await events(caller, "api_key.rotate")
    assert event["actor"] == f"api_key:{caller.key_id}"
    assert event["detail"]["overlap_seconds"] == 60
    assert event["detail"]["previous_prefix"] == caller.key[:10]
    assert new.key not in str(event)


async def test_an_old_secret_does_not_take_the_key_over(caller):
    """The previous secret cannot rotate the key, so one that leaked ends with its overlap."""
    new, _ = await rotate(caller)

    status, body, _ = await rotate_own(caller, overlap_seconds=0)

    assert (status, body["error"]["code"]) == (403, "forbidden")
    assert [await outcome(new), await outcome(caller)] == [200, 200]
    assert len(await events(caller, "api_key.rotate")) == 1


async def test_an_administrators_old_secret_does_not_take_its_key_over(service):
    """An administrator's previous secret cannot rotate its own key by the administrative route
    either."""
    admin = await service.new_caller(role="admin")
    new, _ = await rotate(admin)
    path = f"/admin/v1/keys/{admin.key_id}/rotate"

    for holder, expected in ((admin, 403), (new, 429)):
        async with service.http.post(path, json={}, headers=holder.headers) as response:
            assert response.status == expected, await response.text()


async def test_a_key_does_not_rotate_itself_often(caller):
    """A key that has changed within a minute cannot rotate itself, since each change makes every
    process read its callers again; the operator can rotate it."""
    _, rotated, _ = await rotate_own(caller)
    new = with_secret(caller, rotated["key"])

    status, body, headers = await rotate_own(new)

    assert (status, body["error"]["code"]) == (429, "rate_limited")
    assert 0 < int(headers["Retry-After"]) <= 60
    newest, _ = await rotate(new)
    assert await outcome(newest) == 200


async def test_of_two_rotations_by_one_secret_one_succeeds(caller):
    """Two processes of a holder that rotate the key at once do not end each other's secret."""
    found = await asyncio.gather(*(rotate_own(caller) for _ in range(4)))

    assert sorted(status for status, _, _ in found) == [200, 403, 403, 403]
    (secret,) = [body["key"] for status, body, _ in found if status == 200]
    assert await outcome(with_secret(caller, secret)) == 200


async def test_concurrent_rotations_by_the_operator(service, caller):
    """Of concurrent rotations the last two secrets work, and no other."""
    rotated = await asyncio.gather(*(rotate(caller) for _ in range(5)))
    secrets = [new for new, _ in rotated]

    found = [await outcome(one) for one in [caller, *secrets]]

    assert sorted(map(str, found)) == ["200"] * 2 + ["invalid_api_key"] * 4
    assert len(await events(caller, "api_key.rotate")) == 5


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ({}, {"revoked_at": timedelta(0)}),
        ({}, {"expires_at": timedelta(seconds=-1)}),
    ],
    ids=["revoked", "expired"],
)
async def test_a_key_that_has_ended_gets_no_secret(service, key, change):
    """A revoked or expired key is not rotated, since its new secret would not work."""
    caller = await service.new_caller(**key)
    ((column, offset),) = change.items()
    await service.app[api.DATABASE].fetch(
        f"UPDATE public.api_keys SET {column} = $2 WHERE id = $1",
        uuid.UUID(caller.key_id),
        datetime.now(UTC) + offset,
    )

    status, body = await service.operate("POST", f"/admin/v1/keys/{caller.key_id}/rotate", json={})

    assert (status, body["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("overlap", [-1, 30 * 86_400 + 1, 1.5, "60", None])
async def test_an_overlap_has_a_range(service, caller, overlap):
    """An overlap outside of its range is refused with the name of the field."""
    path, body = f"/admin/v1/keys/{caller.key_id}/rotate", {"overlap_seconds": overlap}

    status, answer = await service.operate("POST", path, json=body)

    assert (status, answer["error"]["param"]) == (400, "overlap_seconds")
    assert (await rotate_own(caller, **body))[0] == 400
    assert await outcome(caller) == 200


async def test_an_administrator_gets_no_secret_that_may_do_more(service, caller):
    """An administrator rotates keys of its organization, but none that may use more models or live
    longer than its own key: it would get their secret."""
    keys = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for own, expected in (
        ({}, 200),
        ({"models": [MODEL]}, 403),
        ({"expires_at": until}, 403),
    ):
        new = {"name": "a", "role": "admin", **own}
        _, admin = await service.operate("POST", keys, json=new)
        headers = {"Authorization": f"Bearer {admin['key']}"}
        path = f"/admin/v1/keys/{caller.key_id}/rotate"
        async with service.http.post(path, json={}, headers=headers) as response:
            assert response.status == expected, own
    assert len(await events(caller, "api_key.rotate")) == 1
