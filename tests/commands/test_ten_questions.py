"""The ten questions that an operator asks, each answered by one command."""

import asyncio

import pytest
from command_line import on_terminal, rialto
from support import MODEL, set_limit

DEPRECATED = "llama-3.2-3b"


@pytest.fixture
async def spender(service):
    """A caller that spends more than another one."""
    spender = await service.new_caller("big spender")
    other = await service.new_caller("other")
    for caller, count in ((spender, 3), (other, 1)):
        for _ in range(count):
            async with caller.chat() as response:
                assert response.status == 200
    return spender


async def waited(answer, is_there):
    """Ask until the answer is there: what is recorded in the background takes a second or two."""
    async with asyncio.timeout(20):
        while not is_there(found := await answer()):
            await asyncio.sleep(0.2)
    return found


def group_of(report, name):
    """The group of a report with this key or name."""
    (found,) = [group for group in report["groups"] if name in (group["key"], group["name"])]
    return found


async def test_who_spends(spender, command):
    """usage by organization has the largest spender first, by name; the total is the sum."""
    (report,) = await rialto("usage", "--group-by", "organization", **command)

    assert [group["name"] for group in report["groups"]] == ["big spender", "other"]
    assert [group["calls"] for group in report["groups"]] == [3, 1]
    assert report["total"]["calls"] == 4
    shown = await on_terminal("usage", "--group-by", "organization", **command)
    (line,) = [line for line in shown.lines if line.strip().startswith("big spender")]
    assert f"${report['groups'][0]['cost_usd']}" in line


async def test_is_venice_failing_and_for_which_model(service, upstream, spender, command):
    """usage by model counts the failures of each model, and status names those that failed."""
    upstream.faults.push("/chat/completions", "inference_failed")
    async with spender.chat(model="kimi-k2-6") as response:
        assert response.status >= 500

    (report,) = await rialto("usage", "--group-by", "model", **command)
    assert group_of(report, "kimi-k2-6")["failures"] == 1
    assert group_of(report, MODEL)["failures"] == 0
    (status,) = await rialto("status", **command)
    assert [group["key"] for group in status["failing_models"]] == ["kimi-k2-6"]
    assert status["failures_today"] == 1


async def test_which_key_is_near_its_limit(spender, command):
    """limits list --near has the limits of which most is used, with the key's name."""
    await set_limit(spender, of_key=True, unit="requests", period="day", ceiling=2)
    await set_limit(spender, unit="requests", period="day", ceiling=1000)
    for _ in range(2):
        async with spender.chat() as response:
            assert response.status == 200

    (near,) = await rialto("limits", "list", "--near", "80%", **command)

    assert (near["key_name"], near["organization_name"]) == ("big spender", "big spender")
    assert (near["used"], near["ceiling"], near["share"]) == (2, 2, 1.0)


async def test_why_was_this_call_refused(spender, command):
    """requests show names the code and the limit with its numbers; refusals lists the call."""
    await set_limit(spender, unit="usd", period="month", ceiling="0.000001")
    async with spender.chat() as response:
        assert response.status == 402
        request_id = response.headers["x-request-id"]

    refused = await waited(lambda: rialto("refusals", **command), bool)
    assert [line["request_id"] for line in refused] == [request_id]
    (found,) = await rialto("requests", "show", request_id, **command)
    assert (found["state"], found["code"]) == ("refused", "limit_exceeded")
    (limit,) = found["limits"]
    assert (limit["ceiling"], limit["used"]) == ("0.000001", "0.00")
    assert float(limit["needed"]) > 0.000001
    shown = await on_terminal("requests", "show", request_id, **command)
    assert "limit_exceeded" in shown.text
    assert "$0.000001/month" in shown.text


async def test_what_did_a_call_cost(spender, command):
    """requests show has the exact cost of a call, by the id of its request or entry."""
    async with spender.chat() as response:
        request_id = response.headers["x-request-id"]
    entry = (await spender.entries())[0]

    for text in (request_id, entry["id"]):
        (found,) = await rialto("requests", "show", text, **command)
        assert (found["state"], found["cost_usd"]) == ("settled", entry["cost_usd"])
    shown = await on_terminal("requests", "show", request_id, **command)
    assert f"${entry['cost_usd']}" in shown.text


async def test_p95_by_model(spender, command):
    """usage by model has the percentiles of the time to the first byte and to the end."""
    (report,) = await rialto("usage", "--group-by", "model", **command)

    group = group_of(report, MODEL)
    assert 0 <= group["first_byte_p50_ms"] <= group["first_byte_p95_ms"] < 60_000
    assert 0 <= group["duration_p50_ms"] <= group["duration_p95_ms"] < 60_000
    shown = await on_terminal("usage", "--group-by", "model", columns=120, **command)
    assert "first byte p95" in shown.text


async def test_which_deprecated_model_is_used_and_by_whom(spender, command):
    """models deprecated has each deprecated model that was used, with its users."""
    async with spender.chat(model=DEPRECATED) as response:
        assert response.status == 200

    (used,) = await rialto("models", "deprecated", **command)

    assert (used["model"], used["replacement"]) == (DEPRECATED, MODEL)
    assert [(user["key_name"], user["calls"]) for user in used["users"]] == [("big spender", 1)]


async def test_how_long_will_the_balance_last(spender, upstream, command):
    """status has the balance and the hours that it lasts at the rate of the last day."""
    venice = {"VENICE_API_KEY": "sandbox", "VENICE_BASE_URL": f"{upstream.url}/api/v1"}
    await rialto("upstream-keys", "check", **command, **venice)

    (status,) = await rialto("status", **command, **venice)

    balance, spent = float(status["balance_usd"]), float(status["spent_today_usd"])
    assert balance > 0
    assert spent > 0
    assert status["hours_left"] == pytest.approx(balance / spent * 24, rel=0.5)


async def test_what_runs_now(service, spender, command):
    """calls lists a call while it runs: who makes it, which model, how old, what is held."""
    async with spender.chat("[tokens=100][delay=0.05]", stream=True) as response:
        await response.content.readany()
        (call,) = await rialto("calls", **command)
        assert (call["organization_name"], call["model"]) == ("big spender", MODEL)
        assert call["request_id"] == response.headers["x-request-id"]
        assert call["age_s"] > 0
        assert float(call["held_usd"]) > 0
        await response.read()
    await waited(lambda: rialto("calls", **command), lambda found: found == [])


async def test_who_changed_what(spender, command):
    """audit-events has every change with who made it, by the operator or on the command line."""
    await rialto("limits", "create", "--organization", "other", "--usd", "5/month", **command)

    newest, *events = await rialto("audit-events", **command)

    assert (newest["action"], newest["actor"]) == ("limit.create", "command-line")
    assert newest["organization_name"] == "other"
    assert {event["actor"] for event in events if event["action"] == "organization.create"} == {
        "operator"
    }
    shown = await on_terminal("audit-events", **command)
    assert any("command-line" in line and "limit.create" in line for line in shown.lines)
