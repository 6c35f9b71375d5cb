"""The operator's API: organizations, keys, the ledger, and the audit of every change."""

import uuid

import pytest
from support import OPERATOR_KEY

from service import api, audit

pytestmark = pytest.mark.shares_service

ORGANIZATIONS = "/admin/v1/organizations"


async def audited(service, organization_id):
    """Return the organization's audit events, oldest first."""
    return await service.app[api.DATABASE].fetch(
        "SELECT * FROM public.audit_events WHERE organization_id = $1 ORDER BY sequence",
        uuid.UUID(organization_id),
    )


async def test_an_organization_is_created(service):
    """Creating an organization returns 201 with its id; it can be read and is listed."""
    status, made = await service.operate("POST", ORGANIZATIONS, json={"name": "Acme"})

    assert status == 201
    assert list(made) == ["id", "name", "status", "settings", "created_at"]
    assert await service.operate("GET", f"{ORGANIZATIONS}/{made['id']}") == (200, made)
    assert (await service.operate("GET", ORGANIZATIONS))[1]["organizations"] == [made]


async def test_a_key_is_shown_once(service):
    """Creating a key returns 201 with the key; the list shows its prefix only."""
    _, organization = await service.operate("POST", ORGANIZATIONS, json={"name": "Acme"})
    keys = f"{ORGANIZATIONS}/{organization['id']}/keys"

    status, made = await service.operate("POST", keys, json={"name": "app", "role": "inference"})

    assert status == 201
    assert made["key"].startswith(made["prefix"])
    assert (made["role"], made["revoked_at"]) == ("inference", None)
    _, listed = await service.operate("GET", keys)
    assert [key["id"] for key in listed["keys"]] == [made["id"]]
    assert made["key"] not in str(listed)


async def test_every_change_is_audited(service):
    """Creating an organization, creating a key and revoking it are three events of one chain."""
    caller = await service.new_caller("Acme")
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")

    events = await audited(service, caller.organization_id)

    assert [event["action"] for event in events] == [
        "organization.create",
        "api_key.create",
        "api_key.revoke",
    ]
    assert {event["actor"] for event in events} == {"operator"}
    assert caller.key not in str([dict(event) for event in events])


@pytest.mark.parametrize(
    ("harm", "break_at"),
    [
        ("UPDATE public.audit_events SET actor = 'nobody' WHERE sequence = 2", 2),
        ("UPDATE public.audit_events SET hash = previous_hash WHERE sequence = 2", 2),
        ("DELETE FROM public.audit_events WHERE sequence = 1", 1),
        ("DELETE FROM public.audit_events WHERE sequence = 3", 3),
        ("", None),
    ],
)
async def test_a_broken_chain_is_found(service, harm, break_at):
    """An audit event that was altered or dropped breaks the chain at its place, also at the end."""
    caller = await service.new_caller("Acme")
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    database = service.app[api.DATABASE]
    organization_id = uuid.UUID(caller.organization_id)

    async def harmed(statement):
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL session_replication_role = replica")
            await conn.execute(f"{statement} AND organization_id = '{organization_id}'")

    if break_at is not None:
        await harmed(harm)

    assert await audit.first_break(database, organization_id) == break_at
    # The audit at the end of the fixture would fail, because this chain stays broken.
    await harmed("DELETE FROM public.audit_events WHERE true")
    await database.fetch(
        "UPDATE public.organizations SET audit_sequence = 0 WHERE id = $1", organization_id
    )


async def test_revoking_twice_changes_nothing(service):
    """A second revocation also returns 204 and records no event."""
    caller = await service.new_caller()
    for _ in range(2):
        assert (await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}"))[0] == 204

    assert len(await audited(service, caller.organization_id)) == 3


async def test_the_ledger_comes_in_pages(service):
    """The ledger is listed in keyset pages, newest first, with each entry once."""
    caller = await service.new_caller()
    for _ in range(5):
        async with caller.chat() as response:
            await response.read()
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger?limit=2"

    pages, after = [], ""
    while True:
        _, page = await service.operate("GET", path + after)
        pages.append([entry["id"] for entry in page["entries"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"

    assert [len(page) for page in pages] == [2, 2, 1]
    ids = [entry_id for page in pages for entry_id in page]
    assert ids == sorted(set(ids), reverse=True)
    entry = (await caller.entries())[0]
    assert {
        "request_id",
        "endpoint",
        "model",
        "outcome",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "cost_source",
        "created_at",
    } <= entry.keys()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x", "nmae": "y"}, "nmae"),
        ({"name": " \t "}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a\x1b[2Jb"}, "name"),
    ],
)
async def test_bad_input_names_the_field(service, body, param):
    """A body that breaks a rule is a 400 that names the field, and nothing is created."""
    _, before = await service.operate("GET", ORGANIZATIONS)

    status, answer = await service.operate("POST", ORGANIZATIONS, json=body)

    assert (status, answer["error"]["param"]) == (400, param)
    assert (await service.operate("GET", ORGANIZATIONS))[1] == before


async def test_key_names_follow_the_same_rule(service):
    """Names of keys must follow the rule for names of organizations."""
    _, organization = await service.operate("POST", ORGANIZATIONS, json={"name": "Ac me, Ümläut 7"})
    keys = f"{ORGANIZATIONS}/{organization['id']}/keys"

    for name in (" ", "a\0b", "x" * 201):
        status, answer = await service.operate("POST", keys, json={"name": name})
        assert (status, answer["error"]["param"]) == (400, "name")
    assert (await service.operate("GET", keys))[1]["keys"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("limit=1001", "limit"), ("after=x", "after")],
)
async def test_bad_pages_name_the_parameter(service, query, param):
    """Invalid paging parameters are a 400 that names the parameter."""
    status, answer = await service.operate("GET", f"{ORGANIZATIONS}?{query}")

    assert (status, answer["error"]["param"]) == (400, param)


async def test_roles_are_checked(service):
    """An unknown role is a 400, and an operator's key for a tenant is a conflict."""
    _, organization = await service.operate("POST", ORGANIZATIONS, json={"name": "Acme"})
    keys = f"{ORGANIZATIONS}/{organization['id']}/keys"

    status, answer = await service.operate("POST", keys, json={"name": "x", "role": "god"})
    assert (status, answer["error"]["param"]) == (400, "role")
    status, answer = await service.operate("POST", keys, json={"name": "x", "role": "operator"})
    assert (status, answer["error"]["param"]) == (409, "role")


async def test_an_operators_key_operates(service):
    """A key of role operator, created in the operator's organization, opens every admin route."""
    keys = f"{ORGANIZATIONS}/{audit.OPERATOR_ORGANIZATION_ID}/keys"
    status, made = await service.operate("POST", keys, json={"name": "ops", "role": "operator"})
    assert status == 201

    headers = {"Authorization": f"Bearer {made['key']}"}
    async with service.http.post(ORGANIZATIONS, json={"name": "x"}, headers=headers) as response:
        assert response.status == 201
        organization = await response.json()
    (event,) = await audited(service, organization["id"])
    assert event["actor"] == f"api_key:{made['id']}"


@pytest.mark.parametrize("wanted", [str(uuid.UUID(int=4)), "not-a-uuid"])
async def test_unknown_ids_are_a_404(service, wanted):
    """Unknown and malformed ids are a 404 in the service's error format."""
    for method, path in (
        ("GET", f"{ORGANIZATIONS}/{wanted}"),
        ("GET", f"{ORGANIZATIONS}/{wanted}/keys"),
        ("GET", f"{ORGANIZATIONS}/{wanted}/limits"),
        ("GET", f"{ORGANIZATIONS}/{wanted}/ledger"),
        ("POST", f"{ORGANIZATIONS}/{wanted}/keys"),
        ("DELETE", f"/admin/v1/keys/{wanted}"),
    ):
        body = {"json": {"name": "x"}} if method == "POST" else {}
        status, answer = await service.operate(method, path, **body)
        assert (status, answer["error"]["code"]) == (404, "not_found")


async def test_aiohttp_errors_use_our_format(service):
    """An unknown route and a wrong method use the same error format as every other error."""
    async with service.http.get("/v1/nothing") as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (404, "not_found")
        assert response.headers["x-request-id"] == error["request_id"]
    async with service.http.put("/v1/chat/completions") as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (405, "method_not_allowed")
        assert "POST" in error["message"]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("abc-123", True),
        ("req_0123456789abcdef0123456789abcdef", True),
        ("0194f0b2-7d5c-7c3e-9a44-6f1f2b3c4d5e", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", True),
        ("x" * 65, False),
        ("a b", False),
        ("rk_" + "Ab1-" * 10 + "xyz", False),
        ("sk-proj-Ab1x-Ab1x-Ab1x", False),
        ("VENICE_INFERENCE_KEY_x", False),
        ("a" * 64, False),
        ("aB3dE5gH7jK9mN1pQ", False),
        ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x", False),
        (OPERATOR_KEY, False),
    ],
)
async def test_a_request_id_that_is_only_an_id_is_kept(service, given, is_kept):
    """The service keeps a caller's X-Request-ID that has the form of an id and is no key."""
    async with service.http.get("/health", headers={"X-Request-ID": given}) as response:
        assert (response.headers["x-request-id"] == given) is is_kept


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "api-key"])
async def test_a_key_is_not_kept_as_a_request_id(service, header):
    """The service does not keep the request's own key as its request id, whatever its form."""
    headers = {header: "Basic my-short-key", "X-Request-ID": "my-short-key"}
    async with service.http.get("/health", headers=headers) as response:
        assert response.headers["x-request-id"] != "my-short-key"


async def test_no_internals_in_an_error(service, monkeypatch):
    """An unexpected exception is a 500 that reveals nothing internal."""

    async def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.app[api.CATALOG], "listing", broken)
    caller = await service.new_caller()
    async with service.http.get("/v1/models", headers=caller.headers) as response:
        error = (await response.json())["error"]

        assert (response.status, error["code"]) == (500, "internal_error")
    assert "secret" not in str(error)
