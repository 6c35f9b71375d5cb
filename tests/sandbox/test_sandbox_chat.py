"""Chat completions of the sandbox."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from sandbox_client import CHAT, Client, asking, last_call, refused, stream

from service.sandbox import CALLS


async def test_unknown_fields(venice: Client) -> None:
    """Unknown top-level fields are a 400 that names all of them in issues and details."""
    status, body = await refused(venice, asking(functions=[], function_call="auto"))

    assert status == 400
    assert body["issues"][0]["keys"] == ["functions", "function_call"]
    assert body["details"]["_errors"] == [body["issues"][0]["message"]]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_completion_tokens": None}, ["max_completion_tokens"]),
        ({"max_tokens": "ten"}, ["max_tokens"]),
        ({"temperature": 3}, ["temperature"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, ["messages", "0", "role"]),
        ({"tool_choice": "required"}, ["tool_choice"]),
        ({"model": "llama-3.3-70b:enable_web_search=never"}, ["model"]),
    ],
)
async def test_bad_field(venice: Client, fields: dict[str, Any], path: list[str]) -> None:
    """A field with an invalid value is a 400 with its path."""
    status, body = await refused(venice, asking() | fields)

    assert (status, body["issues"][0]["path"]) == (400, path)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"1", b""])
async def test_no_json_object(venice: Client, body: bytes) -> None:
    """A body that is not a JSON object is a 400."""
    async with venice.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as given:
        assert "error" in await given.json()

    assert given.status == 400


async def test_aliases(venice: Client) -> None:
    """Venice's aliases of fields are replaced by the fields."""
    body = {
        "model": "default",
        "input": "hello [tokens=9]",
        "max_output_tokens": 2,
        "web_search": True,
        "promptCacheKey": "x",
    }
    async with venice.post(CHAT, json=body) as response:
        answer = await response.json()

    assert answer["usage"]["completion_tokens"] == 2
    assert answer["venice_parameters"]["enable_web_search"] == "on"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_length(venice: Client, limit: str) -> None:
    """A limit on tokens ends the response with finish_reason length, plain and streamed."""
    async with venice.post(CHAT, json=asking(**{limit: 3})) as response:
        plain = await response.json()
    events = await stream(venice, "hello", **{limit: 3})

    assert plain["choices"][0]["message"]["content"] == "This is a"
    assert plain["choices"][0]["finish_reason"] == "length"
    assert plain["usage"]["completion_tokens"] == 3
    assert [event["choices"][0]["finish_reason"] for event in events[:3]] == [None, None, "length"]


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
async def test_requested_tokens(venice: Client, count: int) -> None:
    """``[tokens=N]`` makes a response of exactly N chunks and N tokens."""
    events = await stream(venice, f"please [tokens={count}]")

    chunks = [event["choices"][0]["delta"] for event in events[:-2]]
    assert sum(bool(delta["content"]) for delta in chunks) == count
    assert events[-2]["usage"]["completion_tokens"] == count
    assert events[-1] == "[DONE]"


async def test_max_tokens(venice: Client) -> None:
    """A response has a hundred thousand tokens at most, and other calls are answered meanwhile."""
    long = asking("[tokens=999999]", stream=True)
    async with venice.post(CHAT, json=long) as response:
        await response.content.readany()
        async with venice.post(CHAT, json=asking()) as other:
            await other.read()
        assert last_call(venice).finished_at is not None
        assert venice.app[CALLS][0].finished_at is None
        rest = await response.read()

    assert b'"completion_tokens":100000,' in rest


async def test_delay(venice: Client) -> None:
    """``[delay=S]`` waits between chunks, and as long in total before a plain response."""
    started = time.monotonic()
    await stream(venice, "[tokens=3][delay=0.05]")
    streamed = time.monotonic()
    async with venice.post(CHAT, json=asking("[tokens=3][delay=0.05]")) as response:
        await response.read()

    assert streamed - started >= 0.1
    assert time.monotonic() - streamed >= 0.1


async def test_choices(venice: Client) -> None:
    """``n`` choices are streamed side by side, and all are counted."""
    events = await stream(venice, "[tokens=2]", n=3)

    assert [event["choices"][0]["index"] for event in events[:-2]] == [0, 1, 2, 0, 1, 2]
    assert events[-2]["usage"]["completion_tokens"] == 6


async def test_exact_cost(venice: Client) -> None:
    """The cost is the exact price of the tokens without a float's rounding, plain and streamed."""
    async with venice.post(
        CHAT, json=asking("[tokens=7]") | {"model": "qwen3-coder-480b"}
    ) as response:
        plain = json.loads(await response.text(), parse_float=Decimal)
    events = await stream(venice, "[tokens=7]", model="qwen3-coder-480b")

    # 4 tokens at 0.7515 and 7 at 3.0125 USD per million, rounded up to a nano-dollar.
    assert plain["usage"]["prompt_tokens"] == 4
    assert plain["cost"] == {"usd": Decimal("0.000024094"), "diem": 0}
    assert events[-2]["cost"] == plain["cost"]
    assert [call.charged_nanos for call in venice.app[CALLS]] == [24_094, 24_094]
    assert venice.app[CALLS].charged_nanos == 48_188


async def test_extended_price(venice: Client) -> None:
    """Past the threshold the whole call costs the extended price."""
    words = "x " * 32_000
    async with venice.post(
        CHAT, json=asking(f"{words}[tokens=1]", model="claude-opus-4-8")
    ) as response:
        body = json.loads(await response.text(), parse_float=Decimal)

    assert body["usage"]["prompt_tokens"] == 32_004
    assert body["cost"]["usd"] == Decimal(32_004 * 12 + 45) / 1_000_000


async def test_costs_left_out(venice: Client) -> None:
    """A model without a price states no cost, and a response without tokens costs nothing."""
    async with venice.post(CHAT, json=asking(model="unpriced-preview")) as response:
        unpriced = await response.json()
    empty = await stream(venice, "[tokens=0]")

    assert "cost" not in unpriced
    assert unpriced["usage"]["completion_tokens"] > 0
    assert empty[-2]["cost"] == {"usd": 0, "diem": 0}
    assert venice.app[CALLS].charged_nanos == 0


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_tool_call(sdk: Any, choice: Any) -> None:
    """A required tool is called with an empty object, plain and streamed."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked = asking(tools=tools, tool_choice=choice)

    plain = await sdk.chat.completions.create(**asked)
    async with sdk.chat.completions.stream(**asked) as streamed:
        final = await streamed.get_final_completion()

    for answer in (plain, final):
        assert answer.choices[0].finish_reason == "tool_calls"
        called = answer.choices[0].message.tool_calls[0].function
        assert (called.name, called.arguments) == ("weather", "{}")


async def test_context_exceeded(venice: Client) -> None:
    """A prompt longer than the context is refused in OpenAI's format."""
    status, body = await refused(venice, asking("x " * 40_000, model="venice-uncensored"))

    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


async def test_e2ee(venice: Client) -> None:
    """A model with end-to-end encryption only streams, and names its enclave in a header."""
    status, body = await refused(venice, asking(model="e2ee-qwen3-30b"))
    async with venice.post(CHAT, json=asking(model="e2ee-qwen3-30b", stream=True)) as response:
        await response.read()

    assert (status, body["issues"][0]["path"]) == (400, ["stream"])
    assert response.headers["X-Venice-TEE"] == "true"


async def test_gzip(venice: Client) -> None:
    """JSON is compressed only for clients that accept it, and streams never are."""
    encodings = []
    for accepted, streams in [("gzip", False), ("identity", False), ("gzip", True)]:
        async with venice.post(
            CHAT,
            json=asking("[tokens=300]", stream=streams),
            headers={"Accept-Encoding": accepted},
        ) as response:
            assert "simulated" in await response.text()
            encodings.append(response.headers.get("Content-Encoding"))

    assert encodings == ["gzip", None, None]
