"""Counts and costs that no call of the model can have."""

import asyncio
import json
from decimal import Decimal

import pytest
from odd_venice import odd_venice, serving, stream, whole
from support import ORGANIZATIONS, cost_of, set_limit

from service.telemetry import metrics

OPERATOR = "00000000-0000-0000-0000-000000000000"
CHOICES = [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]


@pytest.fixture
async def odd(database_address):
    """A Venice of odd responses, and a caller with a limit."""
    async with odd_venice() as venice, serving(database_address, venice) as service:
        caller = await service.new_caller()
        await set_limit(caller, unit="usd", period="day", ceiling="100")
        await set_limit(caller, unit="tokens", period="day", ceiling=10**9)
        yield venice, caller


def counted(what):
    metrics.flush_noted()
    return metrics.IMPLAUSIBLE.labels(what)._value.get()


def answer(is_stream, **members):
    """Return a response with usage and cost."""
    if is_stream:
        token = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
        last = json.dumps({"choices": [], **members}).encode()
        return stream(token, b"data: " + last + b"\n\n", b"data: [DONE]\n\n")
    return whole(json.dumps({"choices": CHOICES, **members}).encode())


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "completion", "choices"),
    [(2**40, 1, 1), (1, 2**40, 1), (100_001, 1, 1), (1, 30_001, 1), (1, 60_001, 2), (2**63, 1, 1)],
)
async def test_counts_beyond_the_model(odd, prompt, completion, choices, is_stream):
    """Counts that the model cannot reach are ignored: the call is recorded at its bound and blocks
    no limit."""
    venice, caller = odd
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    venice.answer = answer(is_stream, usage=usage)
    before = counted("usage")
    async with caller.chat(model="m", stream=is_stream, max_tokens=100, n=choices) as response:
        await response.read()
        assert response.status == 200
    entry = await caller.only_entry()

    assert entry["cost_source"] == "estimated"
    assert 0 < cost_of(entry) <= Decimal(entry["bound_usd"])
    assert entry["input_tokens"] + entry["output_tokens"] <= entry["bound_tokens"]
    assert counted("usage") == before + (prompt < 2**63)


async def test_counts_at_the_models_maxima(odd):
    """Counts up to the model's maxima are believed, even above the call's bound."""
    venice, caller = odd
    venice.answer = answer(False, usage={"prompt_tokens": 100_000, "completion_tokens": 30_000})
    async with caller.chat(model="m", max_tokens=100) as response:
        await response.read()
    entry = await caller.only_entry()

    assert (entry["cost_source"], cost_of(entry)) == ("computed", Decimal("0.16"))


async def test_a_cost_beyond_the_model(odd):
    """A cost that the model cannot reach is recorded in full, and reported to the operator and to
    callers that it gets refused."""
    venice, caller = odd
    usage = {"prompt_tokens": 10, "completion_tokens": 2**40}
    venice.answer = answer(False, usage=usage, cost={"usd": 5000})
    before = counted("cost")
    async with caller.chat(model="m", max_tokens=100) as response:
        await response.read()
        assert response.status == 200
    entry = await caller.only_entry()
    assert (entry["cost_source"], cost_of(entry)) == ("reported", 5000)
    assert counted("cost") == before + 1
    path = f"{ORGANIZATIONS}/{OPERATOR}/audit-events"
    async with asyncio.timeout(5):
        while True:
            _, page = await caller.service.operate("GET", path)
            events = [e for e in page["events"] if e["action"] == "ledger.implausible_cost"]
            if events:
                break
            await asyncio.sleep(0.05)
    (event,) = events
    assert event["target"] == entry["id"]
    assert event["detail"] == {
        "organization_id": caller.organization_id,
        "model": "m",
        "cost_usd": "5000.00",
        "max_usd": "0.16",
    }

    async with caller.chat(model="m", max_tokens=100) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (402, "limit_exceeded")
    assert error["limit"]["implausible_entry_id"] == entry["id"]
    assert entry["id"] in error["message"]


async def test_other_refusals_name_no_entry(odd):
    """A refusal by a limit without such an entry names no entry."""
    venice, caller = odd
    venice.answer = answer(False, cost={"usd": 0.15})
    await set_limit(caller, unit="usd", period="month", ceiling="0.1")
    async with caller.chat(model="m", max_tokens=100) as response:
        assert response.status == 200
    async with caller.chat(model="m", max_tokens=100) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (402, "limit_exceeded")
    assert "implausible_entry_id" not in error["limit"]
