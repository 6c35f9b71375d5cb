"""The operator's routes for upstream keys."""

import uuid

import pytest
from support import ORGANIZATIONS

from service.audit import OPERATOR_ORGANIZATION_ID
from service.upstream import ENVIRONMENT_KEY_ID

KEYS = "/admin/v1/upstream-keys"


async def listed(service):
    """Return the upstream keys by name."""
    status, body = await service.operate("GET", KEYS)
    assert status == 200
    return {key["name"]: key for key in body["upstream_keys"]}


async def added(service, key="second", **members):
    """Add an upstream key and return it."""
    status, made = await service.operate(
        "POST", KEYS, json={"name": "spare", "key": key, **members}
    )
    assert status == 201, made
    return made


async def audited(service):
    """Return the operator's audit actions, newest first."""
    path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/audit-events"
    _, body = await service.operate("GET", path)
    return [(event["action"], event["target"]) for event in body["events"]]


async def test_a_key_is_added_used_and_disabled(service, caller, upstream):
    """A new key takes calls at once in this process; each change is audited, and the key itself is
    never shown."""
    made = await added(service)
    assert (made["status"], made["source"], made["balance_usd"]) == ("active", "database", None)
    upstream.faults.push("/chat/completions", "invalid_key", key="sandbox")
    async with caller.chat() as response:
        assert response.status == 200
    (call,) = [call for call in upstream.calls if call.charged_nanos]
    assert call.headers["Authorization"] == "Bearer second"

    for _ in range(2):
        assert await service.operate("DELETE", f"{KEYS}/{made['id']}") == (204, None)
    async with caller.chat() as response:
        assert response.status == 503
    keys = await listed(service)
    assert keys["spare"]["status"] == "disabled"
    assert "'second'" not in str([made, keys])

    for _ in range(2):
        status, shown = await service.operate("POST", f"{KEYS}/{made['id']}/enable")
        assert (status, shown["status"]) == (200, "active")
    async with caller.chat() as response:
        assert response.status == 200
    assert await audited(service) == [
        ("upstream_key.enable", made["id"]),
        ("upstream_key.disable", made["id"]),
        ("upstream_key.add", made["id"]),
    ]


@pytest.mark.parametrize(
    "key", ["sec ond", "sec\nond", "sec\x00ond", "s\u00e9cond", "\ufeffsecond"]
)
async def test_a_key_that_does_not_fit_a_header_is_refused(service, key):
    """A key that cannot be sent in a header is refused by field name, without repeating the key."""
    body = {"name": "spare", "key": key}
    status, answer = await service.operate("POST", KEYS, json=body)

    assert (status, answer["error"]["param"]) == (400, "key")
    assert key not in answer["error"]["message"]


async def test_cooldowns_are_listed(service, caller, upstream):
    """The list shows a key's cooldowns: until the next probe, or for one model and so many
    seconds."""
    await added(service)
    upstream.faults.push("*", "insufficient_balance", key="sandbox")
    upstream.faults.push("/chat/completions", "privacy_restricted", key="second")
    for _ in range(2):
        async with caller.chat() as response:
            assert response.status == 503

    keys = await listed(service)
    assert keys["environment"]["cooldowns"] == [
        {"model": None, "reason": "status 402", "seconds_left": None, "caller_id": None}
    ]
    (rest,) = keys["spare"]["cooldowns"]
    assert (rest["model"], rest["reason"]) == ("llama-3.3-70b", "status 403")
    assert 0 < rest["seconds_left"] <= 300


async def test_a_cooldown_names_its_caller(service, caller, upstream):
    """A cooldown that binds one caller only is listed with that caller's id."""
    upstream.faults.push("/chat/completions", "error_budget", times=9)
    async with caller.chat() as response:
        assert response.status == 503

    cooldowns = (await listed(service))["environment"]["cooldowns"]
    assert [(rest["model"], rest["caller_id"]) for rest in cooldowns] == [
        ("llama-3.3-70b", caller.key_id)
    ]


async def test_a_check_asks_venice(service, caller, upstream):
    """A check stores and returns what Venice answers, and ends a cooldown."""
    upstream.faults.push("/chat/completions", "insufficient_balance", times=1)
    upstream.faults.push("/api_keys/rate_limits", "invalid_key")
    async with caller.chat() as response:
        assert response.status == 503
    path = f"{KEYS}/{ENVIRONMENT_KEY_ID}/check"
    status, checked = await service.operate("POST", path)
    assert (status, checked["is_well"], checked["balance_usd"]) == (200, False, None)
    assert checked["problem"]
    assert checked["cooldowns"]

    upstream.faults.clear()
    status, checked = await service.operate("POST", path)
    assert (status, checked["is_well"], checked["problem"]) == (200, True, None)
    assert (float(checked["balance_usd"]) > 0, checked["tier"]) == (True, "paid")
    assert checked["cooldowns"] == []
    assert checked.items() >= (await listed(service))["environment"].items()
    async with caller.chat() as response:
        assert response.status == 200


async def test_a_key_of_one_organization(service, caller, upstream):
    """A key of one organization serves only that organization."""
    made = await added(service, organization_id=caller.organization_id)
    assert made["organization_id"] == caller.organization_id
    for one in (caller, await service.new_caller("other")):
        async with one.chat() as response:
            assert response.status == 200

    asked = [call.headers["Authorization"] for call in upstream.calls.to("/chat/completions")]
    assert asked == ["Bearer second", "Bearer sandbox"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"key": "x"}, 400, "name"),
        ({"name": "x"}, 400, "key"),
        ({"name": " ", "key": "x"}, 400, "name"),
        ({"name": "x", "key": ""}, 400, "key"),
        ({"name": "x", "key": "hush "}, 400, "key"),
        ({"name": "x", "key": "hush\n"}, 400, "key"),
        ({"name": "x", "key": 7}, 400, "key"),
        ({"name": "x", "key": "x" * 1001}, 400, "key"),
        ({"name": "x", "key": "x", "organization_id": "x"}, 400, "organization_id"),
        ({"name": "x", "key": "x", "organization_id": str(uuid.UUID(int=9))}, 404, None),
        ({"name": "x", "key": "x", "role": "admin"}, 400, "role"),
        ({"name": "spare", "key": "x"}, 409, "name"),
    ],
)
async def test_bad_input_names_the_field(service, body, status, param):
    """An invalid body creates nothing and names the field without repeating the key."""
    await added(service)
    answered, answer = await service.operate("POST", KEYS, json=body)

    assert (answered, answer["error"]["param"]) == (status, param)
    assert "hush" not in str(answer)
    assert (await listed(service)).keys() == {"environment", "spare"}


async def test_unknown_and_disabled_keys(service):
    """An unknown id is a 404; a check of a disabled key is a 409."""
    for method, path in (("DELETE", ""), ("POST", "/check")):
        for wanted in (uuid.UUID(int=9), "x"):
            status, answer = await service.operate(method, f"{KEYS}/{wanted}{path}")
            assert (status, answer["error"]["code"]) == (404, "not_found")
    made = await added(service)
    await service.operate("DELETE", f"{KEYS}/{made['id']}")
    status, answer = await service.operate("POST", f"{KEYS}/{made['id']}/check")
    assert (status, answer["error"]["code"]) == (409, "conflict")


async def test_the_operator_only(service, caller):
    """Neither a caller nor an organization's administrator may use these routes."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, admin = await service.operate("POST", path, json={"name": "x", "role": "admin"})
    one = f"{KEYS}/{ENVIRONMENT_KEY_ID}"
    for key in (caller.key, admin["key"]):
        for method, path in (
            ("GET", KEYS),
            ("POST", KEYS),
            ("DELETE", one),
            ("POST", f"{one}/check"),
        ):
            headers = {"Authorization": f"Bearer {key}"}
            async with service.http.request(method, path, headers=headers, json={}) as response:
                assert response.status == 403
