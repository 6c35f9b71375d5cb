"""End users, tags and the defaults of a key."""

import asyncio
import json
from decimal import Decimal

import pytest
from support import MODEL, ORGANIZATIONS, limits_of, set_limit

from service import app as application


def bodies(upstream):
    """Return the bodies that Venice received."""
    return [json.loads(call.body) for call in upstream.calls.to("/chat/completions")]


@pytest.mark.parametrize("field", ["user", "safety_identifier", "anon_user_id"])
async def test_each_end_user_has_a_limit(upstream, caller, field):
    """Each end user has its own counter, whichever member names it; Venice gets a pseudonym and the
    ledger a digest."""
    limit = await set_limit(caller, unit="requests", period="day", ceiling=2, each_end_user=True)
    statuses = []
    for name in ("alice", "alice", "alice", "bob", None, None, None):
        async with caller.chat(**({field: name} if name else {})) as response:
            statuses.append(response.status)
            refusal = await response.json()

    assert statuses == [200, 200, 429, 200, 200, 200, 429]
    assert refusal["error"]["limit"] | {"resets_at": None} == {
        "id": limit["id"],
        "scope": "end_user",
        "unit": "requests",
        "period": "day",
        "model": None,
        "ceiling": 2,
        "used": 2,
        "held": 0,
        "needed": 1,
        "resets_at": None,
    }
    sent = bodies(upstream)
    assert all("alice" not in str(body) and "bob" not in str(body) for body in sent)
    assert sent[0]["user"] == sent[1]["user"] != sent[2]["user"]
    assert sent[0].get("anon_user_id") in (None, sent[0]["user"])
    assert "safety_identifier" not in sent[0]
    stored = await caller.service.app[application.api.DATABASE].fetch(
        "SELECT count(*) AS calls, end_user FROM public.ledger_entries GROUP BY end_user"
    )
    assert sorted(row["calls"] for row in stored) == [1, 2, 2]
    assert {len(row["end_user"]) for row in stored if row["end_user"]} == {16}
    assert (await limits_of(caller))[0]["end_users"] == 2


async def test_the_first_name_counts(caller):
    """The first non-empty name of safety_identifier, user and anon_user_id counts."""
    await set_limit(caller, unit="requests", period="lifetime", ceiling=1, end_user="alice")
    named = {"user": "bob", "anon_user_id": "carol"}
    statuses = []
    for members in (
        {"safety_identifier": "alice", **named},
        {"user": "alice", "safety_identifier": "bob"},
        {"user": "alice", "safety_identifier": ""},
        {"anon_user_id": "alice", "user": None},
        {"anon_user_id": "alice", "user": "bob"},
    ):
        async with caller.chat(**members) as response:
            statuses.append(response.status)

    assert statuses == [200, 200, 429, 429, 200]


@pytest.mark.parametrize("field", ["user", "safety_identifier", "anon_user_id"])
async def test_a_name_has_a_length(upstream, caller, field):
    """A name of 128 characters passes; one of 129 is refused with the field's name and the rule."""
    async with caller.chat(**{field: "é" * 128}) as response:
        assert response.status == 200
    async with caller.chat(**{field: "é" * 129}) as response:
        error = (await response.json())["error"]

    assert (response.status, error["param"]) == (400, field)
    assert "at most 128 characters" in error["message"]
    assert len(upstream.calls.to("/chat/completions")) == 1


async def test_one_end_users_limits_are_found_by_name(service, caller):
    """The operator filters by the plain name and gets that end user's own limit and its counter of
    the limit for each."""
    own = await set_limit(caller, unit="usd", period="day", ceiling="1", end_user="alice")
    each = await set_limit(caller, unit="requests", period="day", ceiling=9, each_end_user=True)
    for name in ("alice", "alice", "bob"):
        async with caller.chat(user=name) as response:
            assert response.status == 200

    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    _, found = await service.operate("GET", path, params={"end_user": "alice"})
    _, nobody = await service.operate("GET", path, params={"end_user": ""})

    by_unit = {limit["unit"]: limit for limit in found["limits"]}
    assert by_unit["usd"]["id"] == own["id"]
    assert Decimal(by_unit["usd"]["used"]) > 0
    assert (by_unit["requests"]["template_id"], by_unit["requests"]["used"]) == (each["id"], 2)
    assert nobody["limits"] == []
    # A counter of a limit for each end user is changed through that limit.
    status, body = await service.operate(
        "PATCH", f"/admin/v1/limits/{by_unit['requests']['id']}", json={"ceiling": 1}
    )
    assert (status, each["id"] in body["error"]["message"]) == (409, True)


async def test_an_end_users_name_is_written_nowhere(service, caller):
    """An end user's plain name is neither in the limit nor in the audit events."""
    await set_limit(caller, unit="requests", period="day", ceiling=9, end_user="alice@example.com")
    database = service.app[application.api.DATABASE]
    detail = await database.fetchval(
        "SELECT detail::text FROM public.audit_events WHERE action = 'limit.create'"
    )

    assert "alice" not in detail
    assert (await limits_of(caller))[0]["end_user"] in detail


async def test_tags_are_recorded(service, caller):
    """Tags are stored with the entry unchanged; an invalid tag is refused with the rule."""
    tags = {"team": "a", "feature": "b.c/d@e"}
    caller.headers["x-rialto-tags"] = ", ".join(f"{name}={tag}" for name, tag in tags.items())
    async with caller.chat() as response:
        assert response.status == 200
    stored = await service.app[application.api.DATABASE].fetchval(
        "SELECT tags::text FROM public.ledger_entries"
    )
    assert json.loads(stored) == tags

    for wrong in ("team", "team=", "=a", "te am=a", "team=a,team=b", "a=b," * 20, "team=\u00e9"):
        caller.headers["x-rialto-tags"] = wrong
        async with caller.chat() as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, "x-rialto-tags"), wrong


async def test_a_key_has_a_default_maximum_of_output(service, upstream):
    """A key's default output cap applies to calls that set none, and can be changed."""
    caller = await service.new_caller(settings={"default_max_output_tokens": 50})
    async with caller.chat() as response:
        assert response.headers["x-rialto-max-output-tokens"] == "50"
    path = f"/admin/v1/keys/{caller.key_id}"
    status, key = await service.operate(
        "PATCH", path, json={"settings": {"default_max_output_tokens": 60}}
    )
    assert (status, key["settings"]["default_max_output_tokens"]) == (200, 60)
    async with asyncio.timeout(5):
        while True:
            async with caller.chat() as response:
                if response.headers["x-rialto-max-output-tokens"] == "60":
                    break

    assert bodies(upstream)[-1]["max_completion_tokens"] == 60
    status, body = await service.operate("PATCH", path, json={"settings": {"least": 1}})
    assert (status, body["error"]["param"]) == (400, "settings.least")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_cut_down_to_what_the_limit_affords(service, upstream, is_stream):
    """A key with ``least_output_tokens`` has its call capped to what the money affords, and the cap
    is reported; with less money than that the call is refused."""
    caller = await service.new_caller(settings={"least_output_tokens": 100})
    await set_limit(caller, unit="usd", period="month", ceiling="0.004")
    asked = {"max_tokens": 100_000, "stream": is_stream}

    async with caller.chat("[tokens=100000]", **asked) as response:
        await response.read()
        capped = int(response.headers["x-rialto-max-output-tokens"])
        assert response.status == 200
    async with caller.chat("[tokens=100000]", **asked) as response:
        refusal = (await response.json())["error"]

    (sent,) = bodies(upstream)
    assert sent["max_tokens"] == sent["max_completion_tokens"] == capped
    assert 100 <= capped < 100_000
    assert (response.status, refusal["code"]) == (402, "limit_exceeded")
    (limit,) = await limits_of(caller)
    # The cap is as high as possible: another hundred tokens would not have fit.
    assert Decimal("0.0035") < Decimal(limit["used"]) <= Decimal("0.004")


async def test_money_limits_do_without_venices_prompt(service, upstream, caller):
    """A limit of money removes Venice's own system prompt, which costs money, unless the caller
    asks for it; other organizations get Venice's default."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    other = await service.new_caller("other")
    asked = [
        (caller, {}),
        (caller, {"venice_parameters": {"enable_web_search": "off", "strip": True}}),
        (caller, {"venice_parameters": None}),
        (caller, {"venice_parameters": {"include_venice_system_prompt": True}}),
        (other, {}),
    ]
    for who, members in asked:
        async with who.chat(**members) as response:
            assert response.status == 200

    without = {"include_venice_system_prompt": False}
    assert [body.get("venice_parameters") for body in bodies(upstream)] == [
        without,
        {"enable_web_search": "off", "strip": True, **without},
        without,
        {"include_venice_system_prompt": True},
        None,
    ]


async def test_the_prompt_allowance_is_learned(service, caller):
    """A prompt that Venice counts above its bound raises the allowance for its model in its own
    organization, and in no other."""
    other = await service.new_caller("other")

    async def quoted(who):
        body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        async with service.http.post("/v1/quote", json=body, headers=who.headers) as response:
            return (await response.json())["max_tokens"]

    before = await quoted(caller)
    assert await quoted(other) == before
    async with caller.chat("[prompt=9000]") as response:
        usage = (await response.json())["usage"]

    assert usage["prompt_tokens"] > 9000
    assert before < 9000 < await quoted(caller) + 100
    assert await quoted(other) == before
