"""The operator's and administrators' routes for models and aliases."""

import uuid

import pytest
from support import MODEL, MODELS, ORGANIZATIONS, set_alias

from service import api
from service.audit import OPERATOR_ORGANIZATION_ID


async def events(service, organization_id=OPERATOR_ORGANIZATION_ID):
    """Return the audit events about models, oldest first."""
    _, body = await service.operate("GET", f"{ORGANIZATIONS}/{organization_id}/audit-events")
    return [event for event in reversed(body["events"]) if event["action"].startswith("model")]


async def as_admin(admin, method, path, **arguments):
    """Send a request with an administrator's key; return the status and the error's code."""
    http = admin.service.http
    async with http.request(method, path, headers=admin.headers, **arguments) as response:
        body = await response.json() if response.status != 204 else {}
        return response.status, body.get("error", {}).get("code", body)


async def test_models_are_listed_in_pages(service):
    """Models are listed with prices and windows, in pages that continue without gaps, and can be
    filtered by kind."""
    await set_alias(service, "fast", [MODEL])
    listed, after = [], ""
    while after is not None:
        _, page = await service.operate("GET", f"{MODELS}?limit=7&after={after}")
        listed += page["models"]
        after = page["next"]
    by_name = {row["name"]: row for row in listed}

    assert len(listed) == len(by_name) == len(service.app[api.CATALOG].names) + 1
    model = by_name[MODEL]
    assert (model["kind"], model["type"], model["version"]) == ("venice", "text", 1)
    assert model["prices"]["input"] == {"usd": 0.7, "diem": 0.7}
    assert (model["context_tokens"], model["targets"]) == (131_072, None)
    assert by_name["llama-3.2-3b"]["deprecation"]["replacementModelId"] == MODEL
    _, aliases = await service.operate("GET", f"{MODELS}?kind=alias")
    assert aliases == {"models": [by_name["fast"]], "next": None}
    assert (await service.operate("GET", f"{MODELS}?kind=other"))[0] == 400


async def test_an_alias_is_set_changed_and_removed(service, caller):
    """Each change of an alias is a new version and an event; repeating it is neither; a removal is
    a 204 once."""
    catalog = service.app[api.CATALOG]
    organization_id = uuid.UUID(caller.organization_id)
    made = await set_alias(service, "org/fast", [MODEL, "kimi-k2-6"])
    assert (made["name"], made["kind"], made["version"]) == ("org/fast", "alias", 1)
    assert made["targets"] == [MODEL, "kimi-k2-6"]
    assert catalog.targets(organization_id, "org/fast", None) == (MODEL, "kimi-k2-6")

    assert await set_alias(service, "org/fast", [MODEL, "kimi-k2-6"]) == made
    changed = await set_alias(service, "org/fast", ["kimi-k2-6"])
    assert changed["version"] == 2
    assert catalog.targets(organization_id, "org/fast", None) == ("kimi-k2-6",)

    assert (await service.operate("DELETE", f"{MODELS}/org/fast"))[0] == 204
    assert (await service.operate("DELETE", f"{MODELS}/org/fast"))[0] == 404
    assert catalog.targets(organization_id, MODEL, None) == (MODEL,)
    assert (await set_alias(service, "org/fast", [MODEL]))["version"] == 3
    rows = [(event["action"], event["target"], event["detail"]) for event in await events(service)]
    assert rows == [
        (
            "model_alias.set",
            "org/fast",
            {"organization_id": None, "before": None, "after": [MODEL, "kimi-k2-6"]},
        ),
        (
            "model_alias.set",
            "org/fast",
            {"organization_id": None, "before": [MODEL, "kimi-k2-6"], "after": ["kimi-k2-6"]},
        ),
        (
            "model_alias.remove",
            "org/fast",
            {"organization_id": None, "before": ["kimi-k2-6"], "after": None},
        ),
        (
            "model_alias.set",
            "org/fast",
            {"organization_id": None, "before": None, "after": [MODEL]},
        ),
    ]


@pytest.mark.parametrize(
    ("name", "targets", "param", "rule"),
    [
        ("a:b", [MODEL], "alias", "printable ASCII"),
        ("a%20b", [MODEL], "alias", "printable ASCII"),
        ("%C3%A9", [MODEL], "alias", "printable ASCII"),
        ("a" * 201, [MODEL], "alias", "1 to 200"),
        (MODEL, ["kimi-k2-6"], "alias", "is the name of a Venice model"),
        ("fast", [], "targets", "length >= 1"),
        ("fast", [MODEL] * 9, "targets", "length <= 8"),
        ("fast", [MODEL, MODEL], "targets", "different models"),
        ("fast", ["lama"], "targets", "'lama' is not a model"),
        ("fast", ["gpt-4o"], "targets", "'gpt-4o' is not a model"),
        ("fast", ["fast"], "targets", "is itself an alias"),
        ("fast", ["known"], "targets", "is itself an alias"),
        ("fast", [MODEL, f"{MODEL}:a=b"], "targets", "is not a model"),
        ("fast", "m", "targets", "array"),
    ],
)
async def test_a_bad_alias(service, name, targets, param, rule):
    """An invalid alias is a 4xx that names the field and the rule."""
    await set_alias(service, "known", [MODEL])
    status, body = await service.operate("PUT", f"{MODELS}/{name}", json={"targets": targets})

    assert status == (409 if name == MODEL else 400)
    assert body["error"]["param"] == param
    assert rule in body["error"]["message"]
    assert len(await events(service)) == 1


async def test_an_administrator_has_its_own(service, caller):
    """An administrator sets, sees and removes aliases of its own organization, and sees shared
    aliases, but no others."""
    await set_alias(service, "everyones", [MODEL])
    await set_alias(service, "theirs", [MODEL], caller.organization_id)
    admin = await service.new_caller("admin", role="admin")
    own = {"targets": [MODEL], "organization_id": admin.organization_id}
    theirs = {"targets": [MODEL], "organization_id": caller.organization_id}
    of_own = f"?organization_id={admin.organization_id}"

    assert (await as_admin(admin, "PUT", f"{MODELS}/mine", json=own))[0] == 200
    refused = (403, "forbidden")
    assert await as_admin(admin, "PUT", f"{MODELS}/mine", json=theirs) == refused
    assert await as_admin(admin, "PUT", f"{MODELS}/mine", json={"targets": [MODEL]}) == refused
    assert await as_admin(admin, "DELETE", f"{MODELS}/everyones") == refused
    _, page = await as_admin(admin, "GET", f"{MODELS}?kind=alias")
    assert {row["name"] for row in page["models"]} == {"everyones", "mine"}
    assert [event["action"] for event in await events(service, admin.organization_id)] == [
        "model_alias.set"
    ]
    assert (await as_admin(admin, "DELETE", f"{MODELS}/mine{of_own}"))[0] == 204
    assert await as_admin(caller, "GET", MODELS) == refused


async def test_an_alias_of_an_unknown_organization(service):
    """An unknown organization is a 404, and a malformed id a 400."""
    body = {"targets": [MODEL], "organization_id": str(uuid.uuid4())}

    assert (await service.operate("PUT", f"{MODELS}/fast", json=body))[0] == 404
    status, answer = await service.operate("DELETE", f"{MODELS}/fast?organization_id=x")
    assert (status, answer["error"]["param"]) == (400, "organization_id")
