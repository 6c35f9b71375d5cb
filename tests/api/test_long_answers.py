"""Plain responses that may take minutes: the service asks Venice for a stream and assembles it."""

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
    """A caller with limits of every kind, which must be right however a call ends."""
    return bounded_caller


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"tools": True}, {"stream": False}])
async def test_the_assembled_response_equals_a_plain_one(upstream, caller, more):
    """The assembled response has the usage, cost and entry of a plain call; only the request to
    Venice is a stream."""
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
    """OpenAI's client reads the assembled chat completion and response."""
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
    """A service that sends a heartbeat every tenth of a second."""
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.1)
    async with running(settings) as service:
        yield service
        await service.audit()


async def test_a_slow_response_begins_with_white_space(slow, upstream):
    """A slow response starts with white space, which keeps the connection alive and the JSON
    valid."""
    caller = await slow.new_caller()
    async with caller.chat("[tokens=5][delay=0.1]", **LONG) as response:
        assert response.status == 200
        begun = await response.content.readany()
        body = begun + await response.read()

    assert begun.strip() == b""
    assert body.count(b"\n") >= 3
    assert json.loads(body)["usage"]["completion_tokens"] == 5
    assert (await caller.only_entry())["cost_source"] == "reported"


async def test_anthropics_client_accepts_a_slow_response(slow):
    """Anthropic's client, whose maximum is often high, reads a slow assembled response."""
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
    """A failure before the first byte keeps its status."""
    upstream.faults.push("/chat/completions", kind)
    async with caller.chat(**LONG) as response:
        assert response.status == status


async def test_a_failure_before_the_first_byte_is_an_error(upstream, caller):
    """A stream that fails before the first byte is sent is an error with its own status, however
    Venice failed."""
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


async def test_a_failure_after_the_first_byte_cuts_the_connection(slow, upstream):
    """A stream that fails after the status was sent cuts the connection, which no client takes for
    a response."""
    caller = await slow.new_caller()
    upstream.faults.push("/chat/completions", "cut", after=4)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with caller.chat("[tokens=9][delay=0.1]", **LONG) as response:
            assert response.status == 200
            await response.read()

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_cut", "estimated")


async def test_a_hang_up_is_recorded_at_the_bound(upstream, caller):
    """A long call whose caller hangs up is recorded at its bound, like a stream."""
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
    """A long call to an end-to-end encrypted model must be a stream, because it cannot be
    assembled."""
    async with caller.chat(model="e2ee-qwen-2-5-7b", stream=False) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "stream")
    assert not upstream.calls.to("/chat/completions")
