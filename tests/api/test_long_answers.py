"""Plain answers that may take minutes: Venice is asked for a stream, which is put together."""

import asyncio
import json

import aiohttp
import anthropic
import openai
import pytest
from support import MODEL, make_settings, running

pytestmark = pytest.mark.shares_service

LONG = {"max_tokens": 20_000}
MESSAGES = [{"role": "user", "content": "[tokens=12]"}]


@pytest.fixture
async def caller(bounded_caller):
    """Limits of every kind are there, and are right whatever happens to a call."""
    return bounded_caller


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"tools": True}, {"stream": False}])
async def test_it_is_the_answer_that_a_plain_call_gets(upstream, caller, more):
    """With its usage, its cost and the same entry; only the call at Venice was a stream."""
    if more == {"tools": True}:
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        more = {"tools": [tool], "tool_choice": "required"}
    answers: list[dict] = []
    for maximum in (100, 20_000):
        async with caller.chat("[tokens=12]", max_tokens=maximum, **more) as response:
            assert (response.status, response.content_type) == (200, "application/json")
            assert float(response.headers["x-rialto-cost-usd"]) > 0
            answers.append(await response.json())
    entries = await caller.entries()

    asked = [json.loads(call.body)["stream"] for call in upstream.calls.to("/chat/completions")[1:]]
    assert asked == [True]
    for answer in answers:
        for choice in answer["choices"]:
            choice["message"].setdefault("tool_calls", None)
            for call in choice["message"]["tool_calls"] or ():
                del call["id"]
            if not choice["message"]["tool_calls"]:
                assert choice["message"].pop("content")
    plain, long = (
        {name: value for name, value in answer.items() if name not in ("id", "created")}
        for answer in answers
    )
    plain.pop("venice_parameters")
    assert long == plain
    same = ("outcome", "cost_source", "cost_usd", "output_tokens", "is_stream", "status")
    assert [entries[0][name] for name in same] == [entries[1][name] for name in same]


async def test_openais_client_takes_it(caller):
    """As chat completion and as response."""
    url = f"{caller.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        completion = await client.chat.completions.create(model=MODEL, messages=MESSAGES, **LONG)
        response = await client.responses.create(
            model=MODEL, input="[tokens=12]", max_output_tokens=20_000
        )

    assert completion.usage.completion_tokens == response.usage.output_tokens == 12
    assert completion.choices[0].message.content
    assert response.output_text
    assert [entry["output_tokens"] for entry in await caller.entries()] == [12, 12]


@pytest.fixture
async def slow(database_address, upstream):
    """A service that says something in every tenth of a second."""
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.1)
    async with running(settings) as service:
        yield service
        await service.audit()


async def test_a_slow_one_begins_with_white_space(slow, upstream):
    """So nobody on the way takes the connection for dead, and the JSON stays JSON."""
    caller = await slow.new_caller()
    async with caller.chat("[tokens=5][delay=0.1]", **LONG) as response:
        assert response.status == 200
        begun = await response.content.readany()
        body = begun + await response.read()

    assert begun.strip() == b""
    assert body.count(b"\n") >= 3
    assert json.loads(body)["usage"]["completion_tokens"] == 5
    assert (await caller.only_entry())["cost_source"] == "reported"


async def test_anthropics_client_takes_a_slow_one(slow):
    """Whose own maximum is often far above what is long."""
    caller = await slow.new_caller()
    async with anthropic.AsyncAnthropic(base_url=slow.url, api_key=caller.key) as client:
        message = await client.messages.create(
            model=MODEL,
            max_tokens=20_000,
            messages=[{"role": "user", "content": "[tokens=5][delay=0.1]"}],
        )

    assert message.usage.output_tokens == 5
    assert message.content[0].text


@pytest.mark.parametrize(
    ("kind", "status"), [("at_capacity", 503), ("inference_failed", 502), ("detailed", 400)]
)
async def test_an_early_failure_keeps_its_status(upstream, caller, kind, status):
    """Nothing was sent yet."""
    upstream.faults.push("/chat/completions", kind)
    async with caller.chat(**LONG) as response:
        assert response.status == status


async def test_what_breaks_at_once_is_an_error(upstream, caller):
    """An answer that is not begun yet still has its status, however Venice failed."""
    for kind in ("cut", "in_band_error", "garbage"):
        upstream.faults.push("/chat/completions", kind, times=1)
        async with caller.chat("[tokens=5]", **LONG) as response:
            assert (response.status, (await response.json())["error"]["code"]) in (
                (502, "upstream_cut"),
                (502, "upstream_error"),
                (503, "upstream_busy"),
            )
    outcomes = {entry["outcome"] for entry in await caller.entries()}
    assert outcomes <= {"upstream_cut", "upstream_error"}


async def test_what_breaks_late_is_cut(slow, upstream):
    """Its status is sent: a cut connection is what no client takes for an answer."""
    caller = await slow.new_caller()
    upstream.faults.push("/chat/completions", "cut", after=4)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with caller.chat("[tokens=9][delay=0.1]", **LONG) as response:
            assert response.status == 200
            await response.read()

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_cut", "estimated")


async def test_a_hang_up_is_booked_for_all_that_it_may_have_cost(upstream, caller):
    """As that of a stream."""
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(caller.chat("[tokens=1000][delay=0.02]", **LONG).__aenter__())
        while not upstream.calls.to("/chat/completions"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        waiting.cancel()
        while not (entries := await caller.entries()):
            await asyncio.sleep(0.02)
    (entry,) = entries
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert (entry["cost_usd"], entry["output_tokens"]) == (entry["bound_usd"], 20_000)


async def test_encrypted_calls_must_be_streams(upstream, caller):
    """Nothing of theirs is touched, so nothing can be put together; Venice refuses them too."""
    async with caller.chat(model="e2ee-qwen-2-5-7b", stream=False) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "stream")
    assert not upstream.calls.to("/chat/completions")
