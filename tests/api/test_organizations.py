"""What becomes of an organization: renamed, suspended, resumed, deleted."""

import asyncio
import uuid

import pytest
from support import ORGANIZATIONS, Caller, make_settings, running, set_alias, set_limit

from service import api
from service.audit import OPERATOR_ORGANIZATION_ID

pytestmark = pytest.mark.shares_service


def path_of(caller):
    return f"{ORGANIZATIONS}/{caller.organization_id}"


async def change(caller, **members):
    """Change the organization as the operator; return the status and the body."""
    return await caller.service.operate("PATCH", path_of(caller), json=members)


async def delete(caller):
    """Delete the organization as the operator; return the status and the body."""
    return await caller.service.operate("DELETE", path_of(caller))


async def actions(caller):
    """Return the actions of the organization's audit events, oldest first."""
    _, page = await caller.service.operate("GET", f"{path_of(caller)}/audit-events")
    return [event["action"] for event in reversed(page["events"])]


async def code_of(response):
    return response.status if response.status < 400 else (await response.json())["error"]["code"]


async def outcome(caller, **members):
    """Make a call and read its answer; return 200, or the code of its refusal."""
    async with caller.chat(**members) as response:
        await response.read()
        return await code_of(response)


async def get(caller, path):
    """Read a path with the caller's key; return the status, or the code of the refusal."""
    async with caller.service.http.get(path, headers=caller.headers) as response:
        return await code_of(response)


async def held(caller):
    """Return how many calls of the organization are in flight."""
    return await caller.service.app[api.DATABASE].fetchval(
        "SELECT count(*) FROM public.holds WHERE organization_id = $1",
        uuid.UUID(caller.organization_id),
    )


async def wait_until(condition):
    """Wait until the coroutine function returns true."""
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


class TestRename:
    async def test_a_new_name_is_audited(self, caller):
        """The operator renames an organization; the event has both names, and the same name again
        changes nothing."""
        for _ in range(2):
            status, renamed = await change(caller, name="Globex")
            assert (status, renamed["name"]) == (200, "Globex")

        _, page = await caller.service.operate("GET", f"{path_of(caller)}/audit-events")
        assert page["events"][0]["action"] == "organization.rename"
        assert page["events"][0]["detail"] == {"before": "acme", "after": "Globex"}
        assert (await actions(caller)).count("organization.rename") == 1

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
    async def test_a_name_has_a_rule(self, caller, name):
        """A name that breaks the rule is refused with the name of the field."""
        status, body = await change(caller, name=name)
        assert (status, body["error"]["param"]) == (400, "name")

    async def test_nothing_to_change(self, caller):
        """A change without any member is refused."""
        assert (await change(caller))[0] == 400

    @pytest.mark.parametrize("member", [{"name": "x"}, {"status": "suspended"}])
    async def test_only_the_operator(self, service, caller, member):
        """An administrator neither renames nor suspends its organization."""
        new = {"name": "a", "role": "admin"}
        _, key = await service.operate("POST", f"{path_of(caller)}/keys", json=new)
        admin = Caller(service, caller.organization_id, key)
        for body in (member, {**member, "settings": {}}):
            async with service.http.patch(
                path_of(caller), json=body, headers=admin.headers
            ) as response:
                assert response.status == 403
        async with service.http.delete(path_of(caller), headers=admin.headers) as response:
            assert response.status == 403
        assert await outcome(caller) == 200


class TestSuspension:
    async def test_calls_are_refused_until_it_ends(self, service, caller):
        """A suspended organization's keys are refused on every route, and work again once it is
        resumed."""
        new = {"name": "a", "role": "admin"}
        _, key = await service.operate("POST", f"{path_of(caller)}/keys", json=new)
        admin = Caller(service, caller.organization_id, key)
        assert await outcome(caller) == 200

        for _ in range(2):
            status, suspended = await change(caller, status="suspended")
            assert (status, suspended["status"]) == (200, "suspended")
        assert await outcome(caller) == "organization_inactive"
        assert await get(caller, "/v1/models") == "organization_inactive"
        assert await get(admin, path_of(caller)) == "organization_inactive"

        for _ in range(2):
            status, resumed = await change(caller, status="active")
            assert (status, resumed["status"]) == (200, "active")
        assert [await outcome(caller), await get(admin, path_of(caller))] == [200, 200]
        assert (await actions(caller))[-2:] == ["organization.suspend", "organization.resume"]

    async def test_other_organizations_go_on(self, service, caller):
        """Suspending one organization concerns no other."""
        other = await service.new_caller("other")
        await change(caller, status="suspended")
        assert [await outcome(caller), await outcome(other)] == ["organization_inactive", 200]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_calls_in_flight_end_and_are_booked(self, caller, stream):
        """A call that was admitted before the suspension is answered and has its entry."""
        content = "[tokens=40][delay=0.03] Hello"
        call = asyncio.create_task(outcome(caller, content=content, stream=stream))
        await wait_until(lambda: held(caller))

        assert (await change(caller, status="suspended"))[0] == 200

        assert await call == 200
        entry = await caller.only_entry()
        assert (entry["outcome"], entry["output_tokens"] > 0) == ("ok", True)

    @pytest.mark.shares_service(False)
    async def test_a_burst_on_two_replicas(self, database_address, own_upstream):
        """Once the suspension is answered, neither replica admits a call; those that were admitted
        have one entry each."""
        settings = make_settings(database_address, own_upstream.url, key_cache_s=300.0)
        async with running(settings) as here, running(settings) as there:
            caller = await here.new_caller()
            key = {"id": caller.key_id, "key": caller.key}
            both = [caller, Caller(there, caller.organization_id, key)]
            await set_limit(caller, unit="requests", period="lifetime", ceiling=10**9)
            found, suspended_at = [], None

            async def work(one):
                left = 3
                while left:
                    left -= suspended_at is not None
                    began = asyncio.get_running_loop().time()
                    found.append((began, await outcome(one)))

            async def suspend():
                nonlocal suspended_at
                await asyncio.sleep(0.5)
                assert (await change(caller, status="suspended"))[0] == 200
                suspended_at = asyncio.get_running_loop().time()

            await asyncio.gather(suspend(), *(work(one) for one in both for _ in range(8)))

            codes = {code for _, code in found}
            assert codes == {200, "organization_inactive"}
            after = {code for began, code in found if began > suspended_at}
            assert after == {"organization_inactive"}
            _, report = await here.operate("GET", f"{path_of(caller)}/usage")
            assert report["total"]["calls"] == sum(code == 200 for _, code in found)
            assert await held(caller) == 0
            await caller.audit()


class TestDeletion:
    async def test_what_ends_and_what_stays(self, service, caller):
        """Keys, limits, aliases and the data key end; name, ledger and audit events stay."""
        await set_limit(caller, unit="usd", period="month", ceiling="5")
        await set_limit(caller, unit="usd", period="day", ceiling="5", each_end_user=True)
        await set_alias(service, "own", ["kimi-k2-6"], caller.organization_id)
        assert await outcome(caller, user="alice") == 200
        entries = await caller.entries()

        assert await delete(caller) == (204, None)

        assert await outcome(caller) == "revoked_api_key"
        assert await get(caller, "/v1/usage") == "revoked_api_key"
        _, organization = await service.operate("GET", path_of(caller))
        assert (organization["name"], organization["status"]) == ("acme", "deleted")
        assert await caller.entries() == entries
        _, page = await service.operate("GET", f"{path_of(caller)}/limits")
        assert page["limits"] == []
        row = await service.app[api.DATABASE].fetchrow(
            "SELECT wrapped_data_key, deleted_at FROM public.organizations WHERE id = $1",
            uuid.UUID(caller.organization_id),
        )
        assert (row["wrapped_data_key"], row["deleted_at"] is None) == (None, False)
        _, names = await service.operate("GET", "/admin/v1/models?kind=alias")
        assert names["models"] == []
        await caller.audit()

    async def test_it_cannot_be_undone(self, service, caller):
        """A deleted organization takes no change, and deleting it again changes nothing."""
        assert (await delete(caller))[0] == 204
        before = await actions(caller)
        assert before[-1] == "organization.delete"

        key = f"/admin/v1/keys/{caller.key_id}"
        alias = {"targets": ["kimi-k2-6"], "organization_id": caller.organization_id}
        limit = {"unit": "usd", "period": "day", "ceiling": "1"}
        for method, path, body in (
            ("PATCH", path_of(caller), {"status": "active"}),
            ("PATCH", path_of(caller), {"status": "suspended"}),
            ("PATCH", path_of(caller), {"name": "x"}),
            ("PATCH", path_of(caller), {"settings": {}}),
            ("POST", f"{path_of(caller)}/keys", {"name": "x"}),
            ("POST", f"{path_of(caller)}/limits", limit),
            ("PATCH", key, {"name": "x"}),
            ("POST", f"{key}/rotate", {}),
            ("PUT", "/admin/v1/models/own", alias),
        ):
            status, answer = await service.operate(method, path, json=body)
            assert (status, answer["error"]["code"]) == (409, "conflict"), (method, path)

        assert (await delete(caller))[0] == 204
        assert await actions(caller) == before

    async def test_it_waits_for_calls_in_flight(self, caller):
        """While a call is in flight the deletion is refused; then it succeeds."""
        content = "[tokens=40][delay=0.03] Hello"
        call = asyncio.create_task(outcome(caller, content=content))
        await wait_until(lambda: held(caller))

        status, body = await delete(caller)
        assert (status, body["error"]["code"]) == (409, "conflict")
        assert await outcome(caller) == 200

        assert await call == 200
        await wait_until(lambda: _is_idle(caller))
        assert (await delete(caller))[0] == 204

    @pytest.mark.shares_service(False)
    async def test_a_deletion_among_calls(self, database_address, own_upstream):
        """An admission that the deletion did not see is booked like any other, and once the
        deletion is answered neither replica admits a call."""
        settings = make_settings(database_address, own_upstream.url, key_cache_s=300.0)
        async with running(settings) as here, running(settings) as there:
            caller = await here.new_caller()
            key = {"id": caller.key_id, "key": caller.key}
            both = [caller, Caller(there, caller.organization_id, key)]
            await set_limit(caller, unit="usd", period="month", ceiling="1000")
            await set_limit(
                caller, unit="requests", period="hour", ceiling=10**6, each_end_user=True
            )
            found, deleted_at = [], None

            async def work(one, number):
                while deleted_at is None:
                    began = asyncio.get_running_loop().time()
                    user = f"user {number} of {len(found)}"
                    found.append((began, await outcome(one, user=user)))
                    await asyncio.sleep(0.02)

            async def delete_it():
                nonlocal deleted_at
                while (await delete(caller))[0] != 204:
                    await asyncio.sleep(0.005)
                deleted_at = asyncio.get_running_loop().time()

            await asyncio.gather(
                delete_it(), *(work(one, number) for number, one in enumerate(both))
            )

            assert [await outcome(one) for one in both] == ["revoked_api_key"] * 2
            assert {code for _, code in found} <= {200, "revoked_api_key"}
            await wait_until(lambda: _is_idle(caller))
            _, report = await here.operate("GET", f"{path_of(caller)}/usage")
            assert report["total"]["calls"] == sum(code == 200 for _, code in found)
            await caller.audit()

    @pytest.mark.parametrize("name", ["DELETE", "PATCH"])
    async def test_the_operators_own(self, service, name):
        """The operator's own organization can be neither deleted nor suspended."""
        path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}"
        status, body = await service.operate(name, path, json={"status": "suspended"})
        assert (status, body["error"]["code"]) == (409, "conflict")

    async def test_an_unknown_one(self, service):
        """Deleting what is not there is a 404."""
        assert (await service.operate("DELETE", f"{ORGANIZATIONS}/{uuid.uuid4()}"))[0] == 404
        assert (await service.operate("DELETE", f"{ORGANIZATIONS}/x"))[0] == 404


async def _is_idle(caller):
    return await held(caller) == 0
