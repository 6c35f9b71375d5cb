"""An administrator may tighten what the operator set for the organization, but never loosen or
delete it."""

import gzip
from datetime import UTC, datetime, timedelta

import pytest
from support import MODELS, ORGANIZATIONS, set_alias, set_limit

from service.api.wire import MAX_SMALL_BODY_BYTES
from service.ledger.limits import MAX_ADMINISTRATOR_LIMITS_PER_SCOPE

pytestmark = pytest.mark.shares_service


class Administrator:
    """The owner of a key of role admin in the caller's organization."""

    def __init__(self, service, organization_id, key):
        self.service = service
        self.path = f"{ORGANIZATIONS}/{organization_id}"
        self.organization_id = organization_id
        self.key_id = key["id"]
        self.headers = {"Authorization": f"Bearer {key['key']}"}

    async def ask(self, method, path, **body):
        """Send a request; return the status and the decoded body, or the error of a refusal."""
        arguments = {"json": body} if body or method in ("POST", "PATCH") else {}
        async with self.service.http.request(
            method, path, headers=self.headers, **arguments
        ) as response:
            answer = await response.json() if response.status != 204 else None
            return response.status, answer.get("error", answer) if answer else None


async def administrator(service, caller, **key):
    """Return an administrator whose key the operator created."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    status, made = await service.operate("POST", path, json={"name": "a", "role": "admin", **key})
    assert status == 201, made
    return Administrator(service, caller.organization_id, made)


@pytest.fixture
async def admin(service, caller):
    return await administrator(service, caller)


def in_days(days):
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


LIMITS = [
    {"unit": "usd", "period": "month", "ceiling": "5"},
    {"unit": "requests", "period": "minute", "ceiling": 5},
    {"unit": "tokens", "period": "lifetime", "ceiling": 5},
    {"unit": "concurrency", "ceiling": 5},
    {"unit": "usd", "period": "day", "ceiling": "5", "of_key": True},
    {"unit": "usd", "period": "day", "ceiling": "5", "each_end_user": True},
    {"unit": "usd", "period": "day", "ceiling": "5", "end_user": "alice"},
    {"unit": "usd", "period": "day", "ceiling": "5", "model": "llama-3.3-70b"},
]


class TestLimits:
    @pytest.mark.parametrize("limit", LIMITS, ids=str)
    async def test_the_operators_limits_can_only_be_lowered(self, service, caller, admin, limit):
        """An administrator may only lower the operator's limits of every unit and scope; each
        refusal names the field and changes nothing."""
        made = await set_limit(caller, **limit)
        path = f"/admin/v1/limits/{made['id']}"
        kind = str if limit["unit"] == "usd" else int
        assert made["set_by"] == "operator"
        refused = [
            {"ceiling": kind(6)},
            {"raised_to": kind(9), "raised_until": in_days(1)},
            {"raised_to": kind(1), "raised_until": in_days(1)},
            {"raised_to": None, "raised_until": None},
            {"ceiling": kind(1), "raised_to": kind(9), "raised_until": in_days(1)},
        ]
        if limit["unit"] == "usd":
            refused.append({"alert_percents": []})
        for change in refused:
            status, error = await admin.ask("PATCH", path, **change)
            assert (status, error["code"]) == (403, "forbidden"), change
            assert error["param"] in change
        status, error = await admin.ask("DELETE", path)
        assert (status, error["code"]) == (403, "forbidden")
        for unknown in ("unit", "period", "set_by", "used", "scope", "model"):
            status, _ = await admin.ask("PATCH", path, **{unknown: 1})
            assert status == 400
        _, listed = await service.operate("GET", f"{admin.path}/limits")
        assert listed["limits"] == [made]

        status, lowered = await admin.ask("PATCH", path, ceiling=kind(3))
        assert (status, float(lowered["ceiling"]), lowered["set_by"]) == (200, 3, "operator")
        status, _ = await admin.ask("PATCH", path, ceiling=kind(4))
        assert status == 403
        assert (await service.operate("PATCH", path, json={"ceiling": kind(9)}))[0] == 200
        assert (await service.operate("DELETE", path))[0] == 204

    async def test_a_raise_of_the_operators_raises_nothing_for_good(self, service, caller, admin):
        """An administrator may not set a ceiling above the one that holds without a temporary
        raise."""
        made = await set_limit(caller, unit="usd", period="day", ceiling="5")
        path = f"/admin/v1/limits/{made['id']}"
        raised = {"raised_to": "50", "raised_until": in_days(1)}
        assert (await service.operate("PATCH", path, json=raised))[1]["ceiling"] == "50.00"

        assert (await admin.ask("PATCH", path, ceiling="20"))[0] == 403
        assert (await admin.ask("PATCH", path, ceiling="4"))[0] == 200

    async def test_an_administrators_own_limits(self, service, admin):
        """An administrator may change and delete its own limits; one that the operator changed
        becomes the operator's."""
        new = {"unit": "usd", "period": "day", "ceiling": "5"}
        status, made = await admin.ask("POST", f"{admin.path}/limits", **new)
        assert (status, made["set_by"]) == (201, "administrator")
        path = f"/admin/v1/limits/{made['id']}"
        assert (await admin.ask("PATCH", path, ceiling="50"))[0] == 200
        until = {"raised_to": "70", "raised_until": in_days(1), "alert_percents": [90]}
        assert (await admin.ask("PATCH", path, **until))[0] == 200

        assert (await service.operate("PATCH", path, json={"ceiling": "40"}))[0] == 200
        assert (await admin.ask("PATCH", path, ceiling="41"))[0] == 403
        assert (await admin.ask("DELETE", path))[0] == 403

        _, other = await admin.ask("POST", f"{admin.path}/limits", **new)
        assert (await admin.ask("DELETE", f"/admin/v1/limits/{other['id']}"))[0] == 204

    async def test_limits_for_the_same_calls_are_capped(self, service, caller, admin):
        """The number of limits on the same calls is capped, because each admission locks them and
        delays other calls in the batch."""
        new = {"unit": "requests", "period": "lifetime", "ceiling": 10}
        path = f"{admin.path}/limits"
        for _ in range(MAX_ADMINISTRATOR_LIMITS_PER_SCOPE):
            assert (await admin.ask("POST", path, **new))[0] == 201
        assert (await admin.ask("POST", path, **new))[0] == 409
        assert (await admin.ask("POST", path, **new, api_key_id=caller.key_id))[0] == 201
        assert (await service.operate("POST", path, json=new))[0] == 201

    async def test_a_key_of_role_operator_is_the_operator(self, service, caller):
        """A key of role operator may loosen limits, as the command line may."""
        nil = "00000000-0000-0000-0000-000000000000"
        _, key = await service.operate(
            "POST", f"{ORGANIZATIONS}/{nil}/keys", json={"name": "o", "role": "operator"}
        )
        operator = Administrator(service, nil, key)
        made = await set_limit(caller, unit="usd", period="day", ceiling="5")
        path = f"/admin/v1/limits/{made['id']}"
        assert (await operator.ask("PATCH", path, ceiling="50"))[0] == 200
        assert (await operator.ask("DELETE", path))[0] == 204


class TestKeys:
    async def test_the_operators_list_of_models_can_only_be_narrowed(self, service, caller, admin):
        """An administrator may only narrow a key's list of models that the operator set, whatever
        else changes with it."""
        two = ["llama-3.3-70b", "kimi-k2-6"]
        path = f"/admin/v1/keys/{caller.key_id}"
        _, key = await service.operate("PATCH", path, json={"models": two})
        assert key["set_by"] == "operator"
        for models in (None, [*two, "venice-uncensored"], ["venice-uncensored"]):
            status, error = await admin.ask("PATCH", path, models=models)
            assert (status, error["param"]) == (403, "models")
        status, narrowed = await admin.ask("PATCH", path, models=two[:1], settings={})
        assert (status, narrowed["models"], narrowed["set_by"]) == (200, two[:1], "operator")
        assert (await admin.ask("PATCH", path, models=two))[0] == 403
        assert (await service.operate("PATCH", path, json={"models": None}))[0] == 200

    async def test_an_administrators_own_list_of_models(self, caller, admin):
        """An administrator may change a list of models that an administrator set."""
        path = f"/admin/v1/keys/{caller.key_id}"
        status, key = await admin.ask("PATCH", path, models=["llama-3.3-70b"])
        assert (status, key["set_by"]) == (200, "administrator")
        assert (await admin.ask("PATCH", path, models=None))[0] == 200

    async def test_new_keys_may_use_only_their_makers_models(self, service, caller):
        """A key may use no model that its maker's key may not, or the maker's list would bind
        nothing."""
        admin = await administrator(service, caller, models=["llama-3.3-70b", "kimi-k2-6"])
        path = f"{admin.path}/keys"
        for models in (None, ["venice-uncensored"], ["kimi-k2-6", "venice-uncensored"]):
            for role in ("inference", "admin"):
                status, error = await admin.ask("POST", path, name="k", role=role, models=models)
                assert (status, error["param"]) == (403, "models")
        assert (await admin.ask("POST", path, name="k"))[0] == 403
        status, made = await admin.ask("POST", path, name="k", models=["kimi-k2-6"])
        assert (status, made["set_by"]) == (201, "administrator")
        assert (await admin.ask("PATCH", f"/admin/v1/keys/{made['id']}", models=None))[0] == 403
        for key_id in (admin.key_id, caller.key_id):
            path = f"/admin/v1/keys/{key_id}"
            assert (await admin.ask("PATCH", path, models=None))[0] == 403

    async def test_new_keys_expire_no_later_than_their_makers(self, service, caller):
        """A key expires no later than its maker's key, or a temporary administrator would be a
        permanent one."""
        admin = await administrator(service, caller, expires_at=in_days(7))
        path = f"{admin.path}/keys"
        for role in ("inference", "admin"):
            for expiry in ({}, {"expires_at": None}, {"expires_at": in_days(8)}):
                status, error = await admin.ask("POST", path, name="k", role=role, **expiry)
                assert (status, error["param"]) == (403, "expires_at")
            status, _ = await admin.ask("POST", path, name="k", role=role, expires_at=in_days(6))
            assert status == 201
        status, error = await admin.ask("POST", path, name="k", expires_at="2999-01-01T00:00:00")
        assert (status, error["param"]) == (400, "expires_at")

    async def test_no_key_of_role_operator(self, admin):
        """An administrator cannot create a key of role operator in any organization."""
        for path in (admin.path, f"{ORGANIZATIONS}/00000000-0000-0000-0000-000000000000"):
            status, _ = await admin.ask("POST", f"{path}/keys", name="k", role="operator")
            assert status == 403


class TestAliases:
    async def test_the_operators(self, service, admin):
        """An administrator can neither change nor remove an alias that the operator set for the
        organization."""
        await set_alias(service, "fast", ["llama-3.3-70b"], admin.organization_id)
        body = {"targets": ["kimi-k2-6"], "organization_id": admin.organization_id}
        path = f"{MODELS}/fast"
        status, error = await admin.ask("PUT", path, **body)
        assert (status, error["param"]) == (403, "alias")
        query = f"?organization_id={admin.organization_id}"
        assert (await admin.ask("DELETE", path + query))[0] == 403

        own = f"{MODELS}/own"
        assert (await admin.ask("PUT", own, **body))[0] == 200
        assert (await admin.ask("PUT", own, **{**body, "targets": ["llama-3.3-70b"]}))[0] == 200
        assert (await admin.ask("DELETE", own + query))[0] == 204

    async def test_a_name_on_the_operators_list_keeps_its_meaning(self, service, caller, admin):
        """An organization's alias may not take a name on the operator's list, because it would give
        the key another model."""
        await set_alias(service, "cheap", ["llama-3.3-70b"])
        path = f"/admin/v1/keys/{caller.key_id}"
        await service.operate("PATCH", path, json={"models": ["cheap"]})
        body = {"targets": ["kimi-k2-6"], "organization_id": admin.organization_id}
        status, error = await admin.ask("PUT", f"{MODELS}/cheap", **body)
        assert (status, error["param"]) == (403, "alias")

        async with caller.chat(model="cheap") as response:
            assert response.headers["x-rialto-model"] == "llama-3.3-70b"
        assert (await service.operate("PUT", f"{MODELS}/cheap", json=body))[0] == 200

    async def test_targets_are_models_its_own_key_may_use(self, service, caller):
        """An administrator's alias may target only models that its own key may use. Otherwise it
        could escape the operator's list by revoking the key that carries it."""
        await set_alias(service, "cheap", ["llama-3.3-70b"])
        first = await administrator(service, caller, models=["cheap", "llama-3.3-70b"])
        new = {"name": "b", "role": "admin", "models": ["cheap", "llama-3.3-70b"]}
        _, made = await first.ask("POST", f"{first.path}/keys", **new)
        second = Administrator(service, caller.organization_id, made)
        assert (await second.ask("DELETE", f"/admin/v1/keys/{first.key_id}"))[0] == 204

        own = {"organization_id": caller.organization_id}
        for name in ("cheap", "other"):
            for targets in (["kimi-k2-6"], ["llama-3.3-70b", "kimi-k2-6"]):
                status, error = await second.ask("PUT", f"{MODELS}/{name}", targets=targets, **own)
                assert (status, error["param"]) == (403, "targets")
        status, _ = await second.ask("PUT", f"{MODELS}/other", targets=["llama-3.3-70b"], **own)
        assert status == 200


@pytest.mark.parametrize(("encoding", "is_chunked"), [("", False), ("", True), ("gzip", False)])
async def test_an_administrators_body_is_small(admin, encoding, is_chunked):
    """An administrator's large body is refused, because reading it would block the event loop."""
    content = b'{"settings":{}%b}' % (b" " * MAX_SMALL_BODY_BYTES)
    headers = {**admin.headers, "Content-Type": "application/json"}
    if encoding:
        content = gzip.compress(content)
        headers["Content-Encoding"] = encoding

    async def pieces():
        yield content

    async with admin.service.http.patch(
        admin.path, data=pieces() if is_chunked else content, headers=headers
    ) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (413, "payload_too_large")
