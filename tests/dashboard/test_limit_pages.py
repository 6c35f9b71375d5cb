"""Limits: bars of what is used, held and left, and the forms that set, change, raise and delete
one."""

import html
import re
from datetime import UTC, datetime, timedelta

import pytest
from markupsafe import escape
from reading import rows_of, send, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, limits_of, set_limit
from visits import visiting

pytestmark = pytest.mark.shares_service


def page_of(caller):
    """The path of the page of the organization's limits."""
    return f"/dashboard/organizations/{caller.organization_id}/limits"


async def new_administrator(service, caller):
    """Make an administrator's key of the caller's organization; return it."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    body = {"name": "admin", "role": "admin"}
    return (await service.operate("POST", path, json=body))[1]


async def newest_event(service, caller):
    """Return the newest audit event of the organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/audit-events?limit=1"
    return (await service.operate("GET", path))[1]["events"][0]


async def chat(caller, **members):
    """Make a call; return its status."""
    async with caller.chat(**members) as response:
        await response.read()
        return response.status


async def test_limits_are_bars(service, caller):
    """Each limit has its amounts with their unit, a bar that names them, and when it starts
    again."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_limit(caller, unit="requests", period="hour", ceiling=7, of_key=True, model=MODEL)
    await set_limit(caller, unit="tokens", period="day", ceiling=10_000, each_end_user=True)
    await set_limit(caller, unit="concurrency", ceiling=3)
    await chat(caller, user="ada")
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(page_of(caller))
    rows = {row["Limit"]: row for row in rows_of(text, "Of the limit")}
    assert rows["$5.00 a month"]["Binds"] == "the organization"
    assert rows["7 requests an hour"]["Left"] == "6 requests"
    assert rows["7 requests an hour"]["Binds"] == f"key acme , model {MODEL}"
    assert rows["7 requests an hour"]["Starts again"] == "slides"
    assert rows["10,000 tokens a day"]["Binds"] == "each end user 1 so far"
    assert rows["3 at a time"]["Left"] == "3 at a time"
    assert "1 request used and 0 requests held of 7 requests" in text


async def test_what_is_used_links_to_its_requests(service, caller):
    """What a limit has used leads to exactly the requests that it counts: of its key, model and
    period, and since it was set."""
    await chat(caller)
    for limit in (
        {"unit": "usd", "period": "month", "ceiling": "5"},
        {"unit": "requests", "period": "hour", "ceiling": 9, "of_key": True},
        {"unit": "requests", "period": "lifetime", "ceiling": 9, "model": MODEL},
        {"unit": "tokens", "period": "day", "ceiling": 99_999, "end_user": "ada"},
    ):
        await set_limit(caller, **limit)
    await chat(caller, user="ada")
    await chat(caller, model="venice-uncensored")
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(page_of(caller))
        links = re.findall(r'<td class="number"><a href="(/dashboard/requests[^"]*)"', text)
        counts = []
        for link in links:
            _, listed = await visitor.get(html.unescape(link))
            counts.append(len(rows_of(listed, "Took")))
    assert counts == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"ceiling": "5.00", "unit": "usd", "period": "month"},
            {"ceiling": "5.00", "unit": "usd", "period": "month", "scope": "organization"},
        ),
        (
            {"ceiling": "$1,000.50", "unit": "usd", "period": "lifetime"},
            {"ceiling": "1000.50", "period": "lifetime"},
        ),
        (
            {"ceiling": "1,000", "unit": "requests", "period": "day", "key": "acme"},
            {"ceiling": 1000, "unit": "requests", "scope": "api_key"},
        ),
        (
            {"ceiling": "3", "unit": "concurrency", "period": "month"},
            {"ceiling": 3, "unit": "concurrency", "period": None},
        ),
        (
            {"ceiling": "9", "unit": "tokens", "period": "day", "end_user": "ada"},
            {"ceiling": 9, "scope": "end_user"},
        ),
        (
            {"ceiling": "1", "unit": "usd", "period": "day", "is_for_each": "true", "model": MODEL},
            {"scope": "each_end_user", "model": MODEL},
        ),
    ],
)
async def test_setting_a_limit(service, caller, fields, expected):
    """The form sets the limit that it states, which binds the next call."""
    page = page_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, headers = await send(visitor, page, f"{page}/create", **fields)
        assert status == 303, text_of(text)
        _, text = await visitor.get(headers["Location"])
        assert "binds the next call" in text
    (limit,) = await limits_of(caller)
    assert {name: limit[name] for name in expected} == expected
    event = await newest_event(service, caller)
    assert (event["action"], event["actor"]) == ("limit.create", "operator")


@pytest.mark.parametrize(
    ("ceiling", "unit"),
    [("5,00", "usd"), ("1,50", "usd"), ("1 000", "usd"), ("5,00", "requests"), ("9" * 5000, "usd")],
)
async def test_an_amount_that_is_not_clear_is_refused(service, caller, ceiling, unit):
    """A comma that separates no thousands may be that of a fraction, so no limit is set."""
    page = page_of(caller)
    fields = {"ceiling": ceiling, "unit": unit, "period": "day"}
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, page, f"{page}/create", **fields)
    assert status == 400
    assert "ceiling" in text_of(text).lower()
    assert await limits_of(caller) == []


async def test_a_limit_of_requests_binds_the_next_call(service, caller):
    """A limit that was set on the page refuses what is above it."""
    page = page_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        fields = {"ceiling": "1", "unit": "requests", "period": "day"}
        await send(visitor, page, f"{page}/create", **fields)
    assert await chat(caller) == 200
    assert await chat(caller) == 429


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ceiling": ""}, "ceiling"),
        ({"ceiling": "much"}, "ceiling"),
        ({"ceiling": "-1"}, "ceiling"),
        ({"ceiling": "1.5", "unit": "requests"}, "ceiling"),
        ({"unit": "nosuch"}, "unit"),
        ({"period": "year"}, "period"),
        ({"key": "nosuch"}, "key"),
        ({"model": "a b"}, "model"),
        ({"model": f"{MODEL}:x"}, "model"),
        ({"end_user": "x" * 129}, "end_user"),
        ({"end_user": "ada", "is_for_each": "true"}, "end_user"),
    ],
)
async def test_a_wrong_field_is_named(service, caller, fields, field):
    """What is wrong stands beside its field, what was typed stays, and no limit is set."""
    page = page_of(caller)
    stated = {"ceiling": "5", "unit": "usd", "period": "month", **fields}
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, page, f"{page}/create", **stated)
    assert status in (400, 404), text_of(text)
    assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', text), text_of(text)
    if field not in ("unit", "period"):
        assert str(escape(stated[field])) in text
    assert await limits_of(caller) == []


async def test_a_key_of_another_organization_cannot_be_bound(service, caller):
    """A limit binds keys of its own organization only."""
    stranger = await service.new_caller("stranger")
    page = page_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        for key in (stranger.key_id, "stranger", stranger.key[:10]):
            status, _, _ = await send(visitor, page, f"{page}/create", ceiling="5", key=key)
            assert status == 404
    assert await limits_of(caller) == []


async def test_changing_raising_and_deleting(service, caller):
    """A limit gets another ceiling, is raised until a time, and is deleted with a confirmation."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    page = f"/dashboard/limits/{limit['id']}"
    until = (datetime.now(UTC) + timedelta(days=2)).replace(second=0, microsecond=0)
    async with visiting(service, OPERATOR_KEY) as visitor:
        fields = {"ceiling": "6.50", "alert_percents": "10, 90 %"}
        status, _, _ = await send(visitor, page, f"{page}/change", **fields)
        assert status == 303
        (found,) = await limits_of(caller)
        assert (found["ceiling"], found["alert_percents"]) == ("6.50", [10, 90])
        fields = {"raised_to": "9", "raised_until": f"{until:%Y-%m-%dT%H:%M}"}
        status, _, headers = await send(visitor, page, f"{page}/raise", **fields)
        assert status == 303
        (found,) = await limits_of(caller)
        assert found["ceiling"] == "9.00"
        assert datetime.fromisoformat(found["raised_until"]) == until
        _, text = await visitor.get(headers["Location"])
        assert "Raised until" in text
        status, _, _ = await send(visitor, page, f"{page}/end-raise")
        assert status == 303
        (found,) = await limits_of(caller)
        assert (found["ceiling"], found["raised_until"]) == ("6.50", None)
        token = await visitor.token(page)
        status, text, _ = await visitor.post(f"{page}/delete", {"csrf": token})
        assert status == 400
        assert len(await limits_of(caller)) == 1
        fields = {"csrf": token, "is_confirmed": "true"}
        status, _, headers = await visitor.post(f"{page}/delete", fields)
        assert status == 303
        _, text = await visitor.get(headers["Location"])
        assert "admitted without it" in text
        assert await limits_of(caller) == []
        assert (await visitor.get(page))[0] == 404
    assert (await newest_event(service, caller))["action"] == "limit.delete"


@pytest.mark.parametrize(
    ("form", "fields", "field"),
    [
        ("change", {"ceiling": ""}, "ceiling"),
        ("change", {"ceiling": "much"}, "ceiling"),
        ("change", {"ceiling": "5", "alert_percents": "101"}, "alert_percents"),
        ("change", {"ceiling": "5", "alert_percents": "x"}, "alert_percents"),
        ("raise", {"raised_to": "", "raised_until": "2100-01-01T00:00"}, "raised_to"),
        ("raise", {"raised_to": "9", "raised_until": ""}, "raised_until"),
        ("raise", {"raised_to": "9", "raised_until": "2020-01-01T00:00"}, "raised_until"),
        ("raise", {"raised_to": "9", "raised_until": "soon"}, "raised_until"),
    ],
)
async def test_a_wrong_change_is_named(service, caller, form, fields, field):
    """What is wrong stands beside its field in the form that was sent, and what was typed stays."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    page = f"/dashboard/limits/{limit['id']}"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, page, f"{page}/{form}", **fields)
    assert status == 400
    assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', text)
    for value in fields.values():
        assert str(escape(value)) in text
    (found,) = await limits_of(caller)
    assert found["ceiling"] == "5.00"
    assert found["raised_until"] is None


async def test_an_administrator_cannot_loosen_the_operators_limit(service, caller):
    """An administrator lowers the operator's limit, and has no form that loosens it."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    admin = await new_administrator(service, caller)
    page = f"/dashboard/limits/{limit['id']}"
    async with visiting(service, admin["key"]) as visitor:
        _, text = await visitor.get(page)
        assert "/raise" not in text
        assert "/delete" not in text
        status, text, _ = await send(visitor, page, f"{page}/change", ceiling="6")
        assert status == 403
        assert "you can only lower it" in text
        token = await visitor.token(page)
        for form, fields in (
            ("raise", {"raised_to": "9", "raised_until": "2100-01-01T00:00"}),
            ("delete", {"is_confirmed": "true"}),
        ):
            status, _, _ = await visitor.post(f"{page}/{form}", {"csrf": token, **fields})
            assert status == 403
        status, _, _ = await send(visitor, page, f"{page}/change", ceiling="4")
        assert status == 303
    (found,) = await limits_of(caller)
    assert found["ceiling"] == "4.00"


async def test_the_counter_of_an_end_user_has_no_forms(service, caller):
    """The counter of one end user leads to the limit that it belongs to."""
    limit = await set_limit(caller, unit="usd", period="day", ceiling="2", each_end_user=True)
    await chat(caller, user="ada")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits?end_user=ada"
    (counter,) = (await service.operate("GET", path))[1]["limits"]
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"/dashboard/limits/{counter['id']}")
        assert "/change" not in text
        assert f'href="/dashboard/limits/{limit["id"]}"' in text
        token = await visitor.token("/dashboard/operations")
        status, _, _ = await visitor.post(
            f"/dashboard/limits/{counter['id']}/change", {"csrf": token, "ceiling": "9"}
        )
        assert status == 409
