"""Credits through the API."""

import uuid
from decimal import Decimal

import pytest
from support import cost_of
from test_admin import audited

from service.ids import uuid7

ORGANIZATIONS = "/admin/v1/organizations"

pytestmark = pytest.mark.shares_service


async def called(caller):
    """Make a call; return its entry."""
    async with caller.chat() as response:
        assert response.status == 200
    return (await caller.entries())[0]


async def test_a_credit_is_an_entry(service, caller):
    """A credit returns 201 with its entry, which is in the ledger, counts on the limit, and is an
    event."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    limit = {"unit": "usd", "period": "month", "ceiling": "1"}
    await service.operate("POST", path, json=limit)
    call = await called(caller)

    status, made = await service.operate(
        "POST",
        f"/admin/v1/ledger/{call['id']}/credit",
        json={"usd": call["cost_usd"], "note": "Gave no answer."},
    )

    assert status == 201
    assert (made["kind"], made["amends_id"], made["cost_source"]) == (
        "credit",
        call["id"],
        "manual",
    )
    assert (Decimal(made["cost_usd"]), made["note"]) == (-cost_of(call), "Gave no answer.")
    assert (made["api_key_id"], made["model"]) == (caller.key_id, call["model"])
    credit, same = await caller.entries()
    assert same == call
    assert made.items() <= credit.items()
    _, listed = await service.operate("GET", path)
    assert Decimal(listed["limits"][0]["used"]) == 0
    event = (await audited(service, caller.organization_id))[-1]
    assert (event["action"], event["actor"]) == ("ledger_entry.credit", "operator")
    assert event["target"] == made["id"]


async def test_the_same_credit_again(service, caller):
    """Repeating a credit with the operator's id returns the same response and adds no entry."""
    call = await called(caller)
    body = {"usd": "0.0000001", "note": "why", "id": str(uuid7())}
    path = f"/admin/v1/ledger/{call['id']}/credit"

    answers = [await service.operate("POST", path, json=body) for _ in range(2)]

    assert answers[0] == answers[1]
    assert (answers[0][0], answers[0][1]["id"]) == (201, body["id"])
    assert len(await caller.entries()) == 2


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"usd": "1000"}, 409, "usd"),
        ({"usd": "0"}, 400, "usd"),
        ({"usd": 1}, 400, "usd"),
        ({"usd": None}, 400, "usd"),
        ({"note": ""}, 400, "note"),
        ({"note": "a\0b"}, 400, "note"),
        ({"note": None}, 400, "note"),
        ({"id": "7"}, 400, "id"),
        ({"id": str(uuid.uuid4())}, 400, "id"),
        ({"amount": "1"}, 400, "amount"),
    ],
)
async def test_bad_input_names_the_field(service, caller, changes, status, param):
    """An invalid body is an error that names the field, and writes nothing."""
    call = await called(caller)
    body = {"usd": "0.0000001", "note": "why", **changes}

    answer = await service.operate("POST", f"/admin/v1/ledger/{call['id']}/credit", json=body)

    assert (answer[0], answer[1]["error"]["param"]) == (status, param)
    assert await caller.entries() == [call]


@pytest.mark.parametrize("entry_id", [uuid.UUID(int=7), uuid.UUID(int=2**127), "x"])
async def test_what_is_not_there_is_not_found(service, entry_id):
    """An unknown or malformed entry id is a 404."""
    body = {"usd": "1", "note": "why"}
    status, _ = await service.operate("POST", f"/admin/v1/ledger/{entry_id}/credit", json=body)

    assert status == 404


async def test_only_the_operator_gives_credits(service, caller):
    """An organization's administrator cannot give a credit."""
    call = await called(caller)
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, admin = await service.operate("POST", path, json={"name": "boss", "role": "admin"})

    headers = {"Authorization": f"Bearer {admin['key']}"}
    body = {"usd": "0.0000001", "note": "why"}
    path = f"/admin/v1/ledger/{call['id']}/credit"
    async with service.http.post(path, json=body, headers=headers) as response:
        assert response.status == 403
    assert await caller.entries() == [call]
