"""Authentication: which keys are accepted, and the error for each that is not."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from support import MODEL, OPERATOR_KEY, Caller, make_settings, running, set_limit

from service import api

pytestmark = pytest.mark.shares_service

CHAT = "/v1/chat/completions"
UNKNOWN = "rk_" + "A" * 43


async def refused(service, header):
    """Post a chat call with this Authorization header; return the status and the code."""
    headers = {} if header is None else {"Authorization": header}
    async with service.http.post(CHAT, json={}, headers=headers) as response:
        return response.status, (await response.json())["error"]["code"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "malformed_api_key"),
        ("Bearer", "malformed_api_key"),
        ("Bearer ", "malformed_api_key"),
        ("Basic abc", "malformed_api_key"),
        ("Bearer sk-abc", "malformed_api_key"),
        (f"Bearer {UNKNOWN[:-1]}", "malformed_api_key"),
        (f"Bearer {UNKNOWN}' OR '1'='1", "malformed_api_key"),
        ("Bearer rk_" + "é" * 43, "malformed_api_key"),
        (f"Bearer {UNKNOWN}", "invalid_api_key"),
    ],
)
async def test_invalid_keys(upstream, service, header, code):
    """A missing, malformed or unknown key is a 401 with its own code, and Venice gets no call."""
    assert await refused(service, header) == (401, code)
    assert upstream.calls.to("/chat/completions") == []


async def test_a_revoked_key(upstream, service, caller):
    """A revoked key is refused on its very next call on the same replica."""
    async with caller.chat() as response:
        assert response.status == 200

    assert (await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}"))[0] == 204

    async with caller.chat() as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "revoked_api_key"
    assert len(upstream.calls.to("/chat/completions")) == 1


async def test_a_stale_cache_lets_no_paid_call_through(database_address, upstream):
    """A stale cache admits no paid call: a key whose revocation was never announced is refused."""
    stale = make_settings(database_address, upstream.url, key_cache_s=300.0)
    async with running(stale) as service:
        caller = await service.new_caller()
        async with caller.chat() as response:
            assert response.status == 200
        await revoke_silently(service)

        async with service.http.get("/v1/models", headers=caller.headers) as response:
            assert response.status == 200  # This shows that the cache is stale.
        async with caller.chat() as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "revoked_api_key"
    assert len(upstream.calls.to("/chat/completions")) == 1


@pytest.fixture
async def deaf_service(database_address, proxy, upstream):
    """A service that no NOTIFY reaches, because its listening connection was lost unnoticed."""
    settings = make_settings(
        database_address, upstream.url, database_unpooled=proxy.address, key_cache_s=300.0
    )
    async with running(settings) as service:
        proxy.blackhole()
        yield service


async def listed(caller):
    """Return the status of the caller's list of models and their number."""
    async with caller.service.http.get("/v1/models", headers=caller.headers) as response:
        return response.status, len((await response.json()).get("data", []))


async def test_a_change_is_in_force_when_the_response_arrives(deaf_service):
    """A process applies its own change before it responds, without waiting for the announcement."""
    service = deaf_service
    caller = await service.new_caller(models=[MODEL])
    assert await listed(caller) == (200, 1)
    key = f"/admin/v1/keys/{caller.key_id}"

    await service.operate("PATCH", key, json={"models": [MODEL, "kimi-k2-6"]})
    assert await listed(caller) == (200, 2)

    await service.operate("DELETE", key)
    assert await listed(caller) == (401, 0)


async def test_a_changed_organization_is_in_force_when_the_response_arrives(deaf_service, upstream):
    """Changed settings and a new or deleted limit apply to the organization's next call."""
    service = deaf_service
    caller = await service.new_caller()

    async def sent():
        async with caller.chat() as response:
            assert response.status == 200
        body = json.loads(upstream.calls.to("/chat/completions")[-1].body)
        return body.get("venice_parameters")

    assert await sent() is None
    limit = await set_limit(caller, unit="usd", period="day", ceiling="100")
    assert await sent() == {"include_venice_system_prompt": False}
    await service.operate("DELETE", f"/admin/v1/limits/{limit['id']}")
    assert await sent() is None
    settings = {"venice_parameters": {"enable_web_search": "off"}}
    path = f"/admin/v1/organizations/{caller.organization_id}"
    await service.operate("PATCH", path, json={"settings": settings})
    assert await sent() == {"enable_web_search": "off"}


async def test_a_limit_is_announced(database_address, upstream):
    """Other replicas apply a limit that is set or deleted to the organization's calls."""
    settings = make_settings(database_address, upstream.url, key_cache_s=300.0)
    async with running(settings) as here, running(settings) as there:
        caller = await here.new_caller()
        moved = Caller(there, caller.organization_id, {"id": caller.key_id, "key": caller.key})

        async def sends(parameters):
            async with asyncio.timeout(5):
                while True:
                    async with moved.chat() as response:
                        assert response.status == 200
                    body = json.loads(upstream.calls.to("/chat/completions")[-1].body)
                    if body.get("venice_parameters") == parameters:
                        return

        await sends(None)
        limit = await set_limit(caller, unit="usd", period="day", ceiling="100")
        await sends({"include_venice_system_prompt": False})
        await here.operate("DELETE", f"/admin/v1/limits/{limit['id']}")
        await sends(None)


async def revoke_silently(service):
    """Revoke every key without NOTIFY, as if the notification had been lost."""
    await service.app[api.DATABASE].fetch("UPDATE public.api_keys SET revoked_at = now()")


@pytest.mark.shares_service(False)
async def test_notify_reaches_other_replicas(database_address, upstream, service, caller):
    """NOTIFY makes a revocation known to the unpaid routes of other replicas."""
    slow = make_settings(database_address, upstream.url, key_cache_s=300.0)
    async with running(slow) as other:
        async with other.http.get("/v1/models", headers=caller.headers) as response:
            assert response.status == 200
        await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
        async with asyncio.timeout(3):
            while True:
                async with other.http.get("/v1/models", headers=caller.headers) as response:
                    if response.status == 401:
                        break
                await asyncio.sleep(0.01)


async def test_an_expired_key(service):
    """A key is refused from the moment it expires."""
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    caller = await service.new_caller(expires_at=soon)
    async with caller.chat() as response:
        assert response.status == 200

    await asyncio.sleep(1.1)

    async with caller.chat() as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "expired_api_key"


async def test_the_cache_lets_no_ended_key_through(database_address, upstream):
    """A key that expires or is revoked is refused on free routes too while the cache knows it."""
    slow = make_settings(database_address, upstream.url, key_cache_s=300.0)
    async with running(slow) as service:
        soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        expiring, revoked = await service.new_caller(expires_at=soon), await service.new_caller()
        await service.operate("DELETE", f"/admin/v1/keys/{revoked.key_id}")

        async def code(caller):
            async with service.http.get("/v1/models", headers=caller.headers) as response:
                return response.status == 200 or (await response.json())["error"]["code"]

        # The first request reads the key, the second finds it in the cache.
        assert [await code(revoked), await code(revoked)] == ["revoked_api_key"] * 2
        assert await code(expiring) is True
        await asyncio.sleep(2.1)
        assert await code(expiring) == "expired_api_key"


async def test_the_cache_is_read_again(database_address, upstream):
    """A change whose NOTIFY was lost is found when the cache entry is read again."""
    quick = make_settings(database_address, upstream.url, key_cache_s=0.2)
    async with running(quick) as service:
        caller = await service.new_caller()
        async with service.http.get("/v1/models", headers=caller.headers) as response:
            assert response.status == 200
        await revoke_silently(service)
        await asyncio.sleep(0.3)

        async with service.http.get("/v1/models", headers=caller.headers) as response:
            assert response.status == 401


async def test_a_suspended_organization(service, caller):
    """The keys of a suspended organization are refused as forbidden."""
    await service.app[api.DATABASE].fetch("UPDATE public.organizations SET status = 'suspended'")
    service.app[api.CALLERS].forget()

    async with caller.chat() as response:
        assert response.status == 403
        assert (await response.json())["error"]["code"] == "organization_inactive"


@pytest.mark.shares_service(False)
async def test_the_key_is_not_in_the_database(service, caller):
    """The database holds a digest and a prefix of a key, and nowhere the key itself."""
    rows = await service.app[api.DATABASE].fetch("SELECT k::text AS row FROM public.api_keys k")

    assert len(rows) == 1
    assert caller.key not in rows[0]["row"]
    assert caller.key[:10] in rows[0]["row"]


async def test_an_admin_key_makes_no_calls(service):
    """A key of role admin makes no calls; only keys of role inference do."""
    admin = await service.new_caller(role="admin")

    async with admin.chat() as response:
        assert response.status == 403


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Bearer {OPERATOR_KEY}x"])
async def test_the_operators_routes_are_closed(service, header):
    """The operator's routes refuse every request without the operator's key."""
    headers = {} if header is None else {"Authorization": header}
    async with service.http.get("/admin/v1/organizations", headers=headers) as response:
        assert response.status == 401


async def test_the_operators_key_makes_no_calls(upstream, service):
    """The operator's key is recognized and refused on callers' routes."""
    for path in (CHAT, "/api/v1/chat/completions", "/v1/models"):
        method = "GET" if path.endswith("models") else "POST"
        status, answer = await service.operate(method, path)
        assert (status, answer["error"]["code"]) == (403, "forbidden")
        assert "role inference" in answer["error"]["message"]
    assert upstream.calls.to("/chat/completions") == []


@pytest.mark.parametrize("path", ["/v1/models", "/admin/v1/organizations"])
async def test_a_key_that_is_not_utf8(service, path):
    """A key with bytes that are not UTF-8 is a malformed key."""
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
    writer.write(request.encode() + b"\xff\xfe\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()

    assert answer.startswith("HTTP/1.1 401 ")
    assert "malformed_api_key" in answer


async def test_an_inference_key_administers_nothing(service, caller):
    """An inference key opens no administrative route, not even of its own organization."""
    path = f"/admin/v1/organizations/{caller.organization_id}/ledger"
    async with service.http.get(path, headers=caller.headers) as response:
        assert response.status == 403


async def test_an_admin_key_administers_its_own(service):
    """An admin key reads its own organization and no other, and creates no operator's key."""
    admin, other = await service.new_caller(role="admin"), await service.new_caller()
    own = f"/admin/v1/organizations/{admin.organization_id}"

    async def status(method, path, **arguments):
        async with service.http.request(
            method, path, headers=admin.headers, **arguments
        ) as response:
            return response.status

    assert await status("GET", f"{own}/ledger") == 200
    assert await status("POST", f"{own}/keys", json={"name": "x"}) == 201
    assert await status("POST", f"{own}/keys", json={"name": "x", "role": "operator"}) == 403
    assert await status("GET", f"/admin/v1/organizations/{other.organization_id}/ledger") == 403
    assert await status("DELETE", f"/admin/v1/keys/{other.key_id}") == 403
    assert await status("GET", "/admin/v1/organizations") == 403
