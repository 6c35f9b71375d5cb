"""The ten questions that people ask most, each answered on one page."""

import asyncio
import contextlib

import pytest
from reading import rows_of, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, set_limit
from visits import visiting

from service import api
from service.dashboard import formats

pytestmark = pytest.mark.shares_service

ENDING = "llama-3.2-3b"
FAILING = "venice-uncensored"
OVERVIEW = "/dashboard"


class Asked:
    """A service in which something happened that people ask about."""

    def __init__(self, service):
        self.service = service
        self.spender = self.saver = None
        self.call_id = self.refused_id = ""

    async def page(self, path):
        """Return the page as the operator sees it."""
        async with (
            visiting(self.service, OPERATOR_KEY) as visitor,
            visitor.http.get(path) as answer,
        ):
            assert answer.status == 200, path
            return await answer.text()

    async def operate(self, path, **query):
        """Return the operator's answer of the API."""
        status, body = await self.service.operate("GET", path, params=query)
        assert status == 200, body
        return body


@pytest.fixture
async def asked(service, upstream):
    """Two organizations: one spends and is refused, the other uses a model that ends and one that
    fails."""
    asked = Asked(service)
    asked.spender = await service.new_caller("the spender")
    asked.saver = await service.new_caller("the saver")
    for _ in range(2):
        async with asked.spender.chat(max_tokens=50) as answer:
            await answer.read()
            asked.call_id = answer.headers["x-request-id"]
    async with asked.saver.chat(model=ENDING) as answer:
        await answer.read()
    upstream.faults.push("/chat/completions", "inference_failed", times=1)
    async with asked.saver.chat(model=FAILING) as answer:
        await answer.read()
        assert answer.status >= 500
    await set_limit(asked.spender, unit="requests", period="day", ceiling=1, of_key=True)
    for expected in (200, 429):
        async with asked.spender.chat() as answer:
            await answer.read()
            assert answer.status == expected
            asked.refused_id = answer.headers["x-request-id"]
    await service.app[api.RECORDER].write()
    return asked


async def test_who_spends(asked):
    """The overview has what each organization spends, as the usage report does."""
    spent = await asked.operate("/admin/v1/usage", group_by="organization")
    rows = {row["Organization"]: row for row in rows_of(await asked.page(OVERVIEW), "Share")}
    for name in ("the spender", "the saver"):
        (group,) = (one for one in spent["groups"] if one["name"] == name)
        assert rows[name]["Spend"] == formats.usd(group["cost_usd"])
    assert next(iter(rows)) == spent["groups"][0]["name"]


async def test_is_venice_failing_and_for_which_model(asked):
    """The overview has how many calls of each model failed, and the condition of each key."""
    text = await asked.page(OVERVIEW)
    rows = {row["Model"]: row for row in rows_of(text, "First byte p50")}
    assert rows[FAILING]["Failed"] != "0"
    assert rows[MODEL]["Failed"] == "0"
    assert [row["Key"] for row in rows_of(text, "DIEM")] == ["environment"]


async def test_which_key_is_near_its_limit(asked):
    """The overview names the key whose limit is used up."""
    rows = rows_of(await asked.page(OVERVIEW), "Left")
    row = next(row for row in rows if row["Organization"] == "the spender")
    assert "key the spender" in row["Limit"]
    assert row["Left"] == "0 requests"


async def test_why_was_this_call_refused(asked):
    """The page of the request has the code, and the numbers that prove the refusal."""
    text = text_of(await asked.page(f"/dashboard/requests/{asked.refused_id}"))
    assert "rate_limited" in text
    assert "the spender" in text
    story = await asked.operate(f"/admin/v1/requests/{asked.refused_id}")
    (limit,) = story["limits"]
    assert limit["used"] + limit["held"] + limit["needed"] > limit["ceiling"]
    assert story["message"] in text


async def test_what_did_this_call_cost(asked):
    """The page of the request has its cost, as its ledger entry does."""
    text = await asked.page(f"/dashboard/requests/{asked.call_id}")
    entries = await asked.operate("/admin/v1/ledger", request_id=asked.call_id)
    (entry,) = entries["entries"]
    assert f'title="{entry["cost_usd"]} USD"' in text
    assert MODEL in text


async def test_the_p95_of_each_model(asked):
    """The overview has the time to the first byte of each model, as the usage report does."""
    rows = {row["Model"]: row for row in rows_of(await asked.page(OVERVIEW), "First byte p50")}
    report = await asked.operate("/admin/v1/usage", group_by="model")
    for group in report["groups"]:
        assert rows[group["key"]]["p95"] == formats.milliseconds(group["first_byte_p95_ms"])


@pytest.mark.parametrize("path", [OVERVIEW, "/dashboard/models"])
async def test_which_deprecated_model_is_used_and_by_whom(asked, path):
    """The model that ends, its replacement and its user are on one page."""
    text = text_of(await asked.page(path))
    assert f"{ENDING} 2027-01-31" in text
    assert MODEL in text
    assert "the saver" in text


async def test_how_long_the_balance_lasts(asked):
    """The overview has the balance at Venice and for how long it lasts at the present rate."""
    async with asyncio.timeout(20):
        while "at the last day's rate" not in (text := text_of(await asked.page(OVERVIEW))):
            await asyncio.sleep(0.1)
    assert "Balance at Venice $" in text


async def test_what_runs_now(asked, upstream):
    """A call in flight is on the overview, with who makes it, its model and what is held."""
    upstream.faults.push("/chat/completions", "barrier")
    call = asyncio.create_task(_finish(asked.saver))
    try:
        async with asyncio.timeout(20):
            while not (rows := rows_of(await asked.page(OVERVIEW), "Held")):
                await asyncio.sleep(0.05)
        assert rows[0]["Caller"] == "the saver, the saver"
        assert rows[0]["Model"] == MODEL
        assert rows[0]["Held"].startswith("$")
    finally:
        upstream.faults.release()
        upstream.faults.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await call


async def test_who_changed_what(asked):
    """The audit has each change with the key that made it."""
    path = f"{ORGANIZATIONS}/{asked.spender.organization_id}/keys"
    _, chief = await asked.service.operate("POST", path, json={"name": "chief", "role": "admin"})
    async with asked.service.http.post(
        path, json={"name": "made by chief"}, headers={"Authorization": f"Bearer {chief['key']}"}
    ) as answer:
        assert answer.status == 201
    row = rows_of(await asked.page("/dashboard/audit"), "Chain")[0]
    assert row["Who"].startswith("chief rk_")
    assert row["What"] == "api_key.create"
    assert row["Which"] == "made by chief"


async def _finish(caller):
    async with caller.chat() as answer:
        await answer.read()
