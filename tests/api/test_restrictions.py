"""What a key may be used for and from where: its endpoints, its addresses, its expiry and name."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from support import MODEL, ORGANIZATIONS, Caller, make_settings, running

from service import api
from service.settings.allow_lists import parse_proxies

pytestmark = pytest.mark.shares_service

HERE = "127.0.0.0/8"
ELSEWHERE = "192.0.2.0/24"
CHAT = "/v1/chat/completions"


async def change(caller, **members):
    """Change the caller's key as the operator; return the status and the body."""
    path = f"/admin/v1/keys/{caller.key_id}"
    return await caller.service.operate("PATCH", path, json=members)


async def code_of(response):
    return response.status if response.status < 400 else (await response.json())["error"]["code"]


async def outcome(caller, path=CHAT, **headers):
    """Make a call; return 200, or the code of its refusal."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    async with caller.service.http.post(
        path, json=body, headers={**caller.headers, **headers}
    ) as response:
        return await code_of(response)


async def get(caller, path="/v1/models", **headers):
    """Read a path with the caller's key; return the status, or the code of the refusal."""
    headers = {**caller.headers, **headers}
    async with caller.service.http.get(path, headers=headers) as response:
        return await code_of(response)


def in_days(days):
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def administrator(service, caller, **key):
    """Return an administrator of the caller's organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    status, made = await service.operate("POST", path, json={"name": "a", "role": "admin", **key})
    assert status == 201, made
    return Caller(service, caller.organization_id, made)


async def ask(admin, method, path, **body):
    """Send a request as an administrator; return the status and the field at fault."""
    async with admin.service.http.request(
        method, path, json=body, headers=admin.headers
    ) as response:
        answer = await response.json() if response.status != 204 else {}
        return response.status, answer.get("error", {}).get("param")


class TestAddresses:
    async def test_a_key_is_used_from_its_networks_only(self, service, upstream):
        """From elsewhere a key is refused on every route, and Venice gets no call."""
        inside = await service.new_caller(ip_allow_list=[ELSEWHERE, HERE])
        outside = await service.new_caller(ip_allow_list=[ELSEWHERE])
        upstream.calls.clear()

        assert [await outcome(inside), await get(inside)] == [200, 200]
        assert [await outcome(outside), await get(outside)] == ["address_not_allowed"] * 2
        assert len(upstream.calls.to("/chat/completions")) == 1
        assert await outside.entries() == []

    async def test_an_administrators_key(self, service, caller):
        """A list binds administrators' keys too."""
        admin = await administrator(service, caller, ip_allow_list=[ELSEWHERE])
        path = f"{ORGANIZATIONS}/{caller.organization_id}"
        assert await get(admin, path) == "address_not_allowed"

    async def test_a_change_is_in_force_at_once(self, caller):
        """A list that is set, changed or lifted applies to the next call."""
        assert await outcome(caller) == 200
        for networks, expected in (
            ([ELSEWHERE], "address_not_allowed"),
            ([HERE], 200),
            (["2001:db8::/32"], "address_not_allowed"),
            (None, 200),
        ):
            status, key = await change(caller, ip_allow_list=networks)
            assert (status, key["ip_allow_list"]) == (200, networks)
            assert await outcome(caller) == expected

    async def test_networks_are_normalized(self, caller):
        """Networks are stored in one form, each once."""
        stated = ["192.0.2.1", "2001:DB8:0::/48", "::ffff:192.0.2.1", "127.0.0.1"]
        _, key = await change(caller, ip_allow_list=stated)
        assert key["ip_allow_list"] == ["192.0.2.1/32", "2001:db8::/48", "127.0.0.1/32"]

    @pytest.mark.parametrize(
        "networks", [[], ["192.0.2.1/24"], ["x"], ["192.0.2.0/24", ""], ["10.0.0.0/8"] * 101, "x"]
    )
    async def test_invalid_lists(self, service, caller, networks):
        """An invalid list is refused with the name of the field, for new keys too."""
        status, body = await change(caller, ip_allow_list=networks)
        assert (status, body["error"]["param"]) == (400, "ip_allow_list")
        path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
        new = {"name": "k", "ip_allow_list": networks}
        assert (await service.operate("POST", path, json=new))[0] == 400

    async def test_a_client_cannot_state_its_address(self, service):
        """Without trusted proxies no header is read."""
        caller = await service.new_caller(ip_allow_list=[ELSEWHERE])
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            assert await outcome(caller, **{name: "192.0.2.1"}) == "address_not_allowed"

    @pytest.mark.shares_service(False)
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("X-Forwarded-For", "192.0.2.7", 200),
            ("X-Forwarded-For", "192.0.2.7:4711", 200),
            ("X-Forwarded-For", "198.51.100.1, 192.0.2.7, 127.0.0.3", 200),
            ("X-Forwarded-For", "192.0.2.7, 198.51.100.1", "address_not_allowed"),
            ("X-Forwarded-For", "unknown", "address_not_allowed"),
            ("X-Forwarded-For", "192.0.2.7, unknown", "address_not_allowed"),
            ("X-Real-IP", "192.0.2.7", "address_not_allowed"),
            ("x-none", "192.0.2.7", "address_not_allowed"),
        ],
    )
    async def test_behind_a_proxy(self, database_address, own_upstream, name, value, expected):
        """A trusted proxy states the client's address in X-Forwarded-For, where the last address
        counts that is not such a proxy."""
        settings = make_settings(
            database_address, own_upstream.url, trusted_proxies=parse_proxies("127.0.0.0/8")
        )
        async with running(settings) as service:
            caller = await service.new_caller(ip_allow_list=[ELSEWHERE])
            assert await outcome(caller, **{name: value}) == expected

    @pytest.mark.shares_service(False)
    async def test_behind_a_proxy_with_another_header(self, database_address, own_upstream):
        """With CLIENT_ADDRESS_HEADER the proxy states the address in X-Real-IP, and no other header
        is read."""
        settings = make_settings(
            database_address,
            own_upstream.url,
            trusted_proxies=parse_proxies("127.0.0.1"),
            client_address_header="x-real-ip",
        )
        async with running(settings) as service:
            caller = await service.new_caller(ip_allow_list=[ELSEWHERE])
            headers = {"X-Real-IP": "192.0.2.7", "X-Forwarded-For": "192.0.2.7, 198.51.100.1"}
            assert await outcome(caller, **headers) == 200
            headers = {"X-Real-IP": "198.51.100.1", "X-Forwarded-For": "192.0.2.7"}
            assert await outcome(caller, **headers) == "address_not_allowed"

    @pytest.mark.shares_service(False)
    async def test_strangers_behind_a_proxy_have_a_share_each(self, database_address, own_upstream):
        """Refusals without a key are counted for the client's address, not for the proxy's."""
        settings = make_settings(
            database_address, own_upstream.url, trusted_proxies=parse_proxies("127.0.0.0/8")
        )
        async with running(settings) as service:
            recorder = service.app[api.RECORDER]
            await recorder.write()
            for address in ("192.0.2.1", "192.0.2.2"):
                headers = {"X-Forwarded-For": address}
                async with service.http.get("/v1/models", headers=headers) as answer:
                    assert answer.status == 401
            sources = {queued.source for queued in recorder._refusals.first(10)}
        assert len(sources) == 2

    @pytest.mark.shares_service(False)
    async def test_other_replicas_hear_of_a_change(self, database_address, own_upstream):
        """A list that is set on one replica soon binds on the others."""
        settings = make_settings(database_address, own_upstream.url, key_cache_s=300.0)
        async with running(settings) as here, running(settings) as there:
            caller = await here.new_caller()
            key = {"id": caller.key_id, "key": caller.key}
            moved = Caller(there, caller.organization_id, key)
            assert await get(moved) == 200
            await change(caller, ip_allow_list=[ELSEWHERE])
            async with asyncio.timeout(5):
                while await get(moved) == 200:
                    await asyncio.sleep(0.01)
            assert await outcome(moved) == "address_not_allowed"


class TestEndpoints:
    async def test_a_key_is_used_for_its_endpoints_only(self, caller):
        """Other endpoints are refused, the two paths of a route are one endpoint, and a change is
        in force at once."""
        status, key = await change(caller, allowed_endpoints=[f"/api{CHAT}", CHAT])
        assert (status, key["allowed_endpoints"]) == (200, [CHAT])

        assert [await outcome(caller), await outcome(caller, f"/api{CHAT}")] == [200, 200]
        assert await outcome(caller, "/v1/responses") == "endpoint_not_allowed"
        assert await get(caller) == "endpoint_not_allowed"
        assert await get(caller, f"/v1/models/{MODEL}") == "endpoint_not_allowed"

        await change(caller, allowed_endpoints=["/v1/models/{model}"])
        assert await get(caller, f"/v1/models/{MODEL}") == 200
        assert await get(caller, f"/api/v1/models/{MODEL}") == 200
        assert await outcome(caller) == "endpoint_not_allowed"

        await change(caller, allowed_endpoints=None)
        assert await outcome(caller) == 200

    async def test_an_administrators_key(self, service, caller):
        """An administrator's key may be for some routes only."""
        path = f"{ORGANIZATIONS}/{caller.organization_id}"
        allowed = [f"{ORGANIZATIONS}/{{id}}/ledger"]
        admin = await administrator(service, caller, allowed_endpoints=allowed)
        assert await get(admin, f"{path}/ledger") == 200
        assert await get(admin, f"{path}/keys") == "endpoint_not_allowed"

    @pytest.mark.parametrize(
        ("endpoints", "text"),
        [
            ([], "1 to 100"),
            (["chat"], "path of a route"),
            (["/v1/chat/completion"], "/v1/chat/completions"),
            ([CHAT, "/v1/nothing-like-it"], "no route"),
            (["/v1/a b"], "path of a route"),
            ([CHAT] * 101, "1 to 100"),
        ],
    )
    async def test_invalid_lists(self, service, caller, endpoints, text):
        """A list with a path that no route has is refused with what may be meant, for new keys
        too."""
        status, body = await change(caller, allowed_endpoints=endpoints)
        assert (status, body["error"]["param"]) == (400, "allowed_endpoints")
        assert text in body["error"]["message"]
        path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
        new = {"name": "k", "allowed_endpoints": endpoints}
        assert (await service.operate("POST", path, json=new))[0] == 400


class TestNameAndExpiry:
    async def test_a_new_name(self, service, caller):
        """A key is renamed, which is audited and changes nothing else."""
        path = f"{ORGANIZATIONS}/{caller.organization_id}"
        (before,) = (await service.operate("GET", f"{path}/keys"))[1]["keys"]
        status, key = await change(caller, name="renamed")
        assert (status, key) == (200, {**before, "name": "renamed"})
        assert await outcome(caller) == 200
        _, page = await service.operate("GET", f"{path}/audit-events")
        assert page["events"][0]["action"] == "api_key.change"
        assert page["events"][0]["detail"] == {"name": "renamed"}
        assert page["events"][0]["actor"] == "operator"

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("name", " "),
            ("name", "a\u0007"),
            ("name", None),
            ("expires_at", "2020-01-01T00:00:00Z"),
            ("expires_at", "2999-01-01T00:00:00"),
            ("expires_at", 5),
        ],
    )
    async def test_invalid_changes(self, caller, member, value):
        """An invalid name or an expiry that is not in the future is refused."""
        status, body = await change(caller, **{member: value})
        assert (status, body["error"]["param"]) == (400, member)

    async def test_no_change(self, caller):
        """A change without any member is refused."""
        assert (await change(caller))[0] == 400

    async def test_an_expiry_moves(self, caller):
        """An expiry is brought forward, put off and lifted; each is in force at once."""
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        assert (await change(caller, expires_at=soon))[0] == 200
        assert await outcome(caller) == 200
        await asyncio.sleep(1.1)
        assert [await outcome(caller), await get(caller)] == ["expired_api_key"] * 2

        assert (await change(caller, expires_at=in_days(1)))[0] == 200
        assert [await outcome(caller), await get(caller)] == [200, 200]
        status, key = await change(caller, expires_at=None)
        assert (status, key["expires_at"]) == (200, None)

    async def test_other_members_stay(self, caller):
        """Each change leaves what it does not state."""
        stated = {
            "name": "k",
            "expires_at": in_days(1),
            "models": [MODEL],
            "allowed_endpoints": [CHAT],
            "ip_allow_list": [HERE],
            "settings": {"tolerant": False},
        }
        for member, value in stated.items():
            assert (await change(caller, **{member: value}))[0] == 200
        _, key = await change(caller, name="k2")
        assert key["settings"]["tolerant"] is False
        assert key["expires_at"] is not None
        for member in ("models", "allowed_endpoints", "ip_allow_list"):
            assert key[member] == stated[member]


class TestAdministrators:
    @pytest.mark.parametrize(
        ("member", "held", "narrower", "wider"),
        [
            ("ip_allow_list", [HERE, ELSEWHERE], ["127.0.0.1/32"], ["127.0.0.1", "10.0.0.0/8"]),
            ("ip_allow_list", [HERE], ["127.0.0.0/9"], None),
            ("allowed_endpoints", [CHAT, "/v1/models"], [CHAT], [CHAT, "/v1/responses"]),
            ("allowed_endpoints", [CHAT, "/v1/models"], [f"/api{CHAT}"], None),
            ("expires_at", "2100-01-02T00:00:00Z", "2100-01-01T00:00:00Z", "2100-01-03T00:00:00Z"),
            ("expires_at", "2100-01-02T00:00:00Z", "2100-01-01T00:00:00Z", None),
        ],
    )
    async def test_what_the_operator_set_is_only_narrowed(
        self, service, caller, member, held, narrower, wider
    ):
        """An administrator may narrow what the operator set, and not widen it, not even after
        another change."""
        admin = await administrator(service, caller)
        path = f"/admin/v1/keys/{caller.key_id}"
        assert (await change(caller, **{member: held}))[0] == 200

        assert await ask(admin, "PATCH", path, **{member: wider}) == (403, member)
        assert await ask(admin, "PATCH", path, models=[MODEL], name="x") == (200, None)
        assert await ask(admin, "PATCH", path, **{member: wider}) == (403, member)
        assert await ask(admin, "PATCH", path, **{member: narrower}) == (200, None)
        assert await ask(admin, "PATCH", path, **{member: held}) == (403, member)
        assert (await change(caller, **{member: held}))[0] == 200

    async def test_its_own_lists(self, service, caller):
        """An administrator sets and lifts lists of its own."""
        admin = await administrator(service, caller)
        path = f"/admin/v1/keys/{caller.key_id}"
        for member, value in (
            ("ip_allow_list", [HERE]),
            ("allowed_endpoints", [CHAT]),
            ("expires_at", in_days(1)),
        ):
            assert await ask(admin, "PATCH", path, **{member: value}) == (200, None)
            assert await ask(admin, "PATCH", path, **{member: None}) == (200, None)

    async def test_no_key_outlives_its_administrators(self, service, caller):
        """An administrator puts off no expiry beyond that of its own key, nor its own."""
        admin = await administrator(service, caller, expires_at=in_days(7))
        for key_id in (caller.key_id, admin.key_id):
            path = f"/admin/v1/keys/{key_id}"
            assert await ask(admin, "PATCH", path, expires_at=in_days(8)) == (403, "expires_at")
            assert await ask(admin, "PATCH", path, expires_at=None) == (403, "expires_at")
            assert await ask(admin, "PATCH", path, expires_at=in_days(6)) == (200, None)

    async def test_new_administrators_are_as_restricted(self, service, caller):
        """An administrator whose key is restricted makes no administrator's key that is less
        restricted, or the restriction would bind nothing; keys that make calls are used
        elsewhere."""
        keys = f"{ORGANIZATIONS}/{{id}}/keys"
        own = {
            "ip_allow_list": [HERE],
            "allowed_endpoints": [keys, "/admin/v1/keys/{id}", "/admin/v1/keys/{id}/rotate"],
        }
        admin = await administrator(service, caller, **own)
        other = await administrator(service, caller)
        path = keys.format(id=caller.organization_id)
        for member, value in (
            ("ip_allow_list", [HERE, ELSEWHERE]),
            ("ip_allow_list", None),
            ("allowed_endpoints", [keys, f"{ORGANIZATIONS}/{{id}}/ledger"]),
            ("allowed_endpoints", None),
        ):
            new = {"name": "k", "role": "admin", **own, member: value}
            assert await ask(admin, "POST", path, **new) == (403, member)
            for key_id in (admin.key_id, other.key_id):
                changed = f"/admin/v1/keys/{key_id}"
                assert await ask(admin, "PATCH", changed, **{member: value}) == (403, member)
        rotated = f"/admin/v1/keys/{other.key_id}/rotate"
        assert (await ask(admin, "POST", rotated))[0] == 403
        new = {"name": "k", "role": "admin", **own, "ip_allow_list": ["127.0.0.1"]}
        assert await ask(admin, "POST", path, **new) == (201, None)
        assert await ask(admin, "POST", path, name="k") == (201, None)
