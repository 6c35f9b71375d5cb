"""The sandbox as a stand-in for Venice: what its clients see, what each fault is on the wire."""

import asyncio
import base64
import io
import json
import signal
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from aiohttp.test_utils import TestClient
from ruamel.yaml import YAML

from service.sandbox import CALLS, FAULTS, FaultKind, Faults, create_sandbox
from service.sandbox.calls import KEPT_BODY_BYTES, MAX_CALLS, Call, Calls

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT.parent / "shared" / "venice-openapi.yaml"
CHAT = "/api/v1/chat/completions"
KEY = {"Authorization": "Bearer sandbox"}

Client = TestClient[Any, Any]
StartClient = Callable[..., Awaitable[Client]]


@pytest.fixture
async def venice(aiohttp_client: StartClient) -> Client:
    """A client of a sandbox of its own, with the key."""
    return await aiohttp_client(create_sandbox(), headers=KEY)


@pytest.fixture
async def sdk(venice: Client) -> Any:
    """OpenAI's SDK, pointed at the sandbox."""
    async with openai.AsyncOpenAI(
        base_url=str(venice.make_url("/api/v1")), api_key="sandbox", max_retries=0
    ) as client:
        yield client


def asking(text: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


def push(venice: Client, kind: FaultKind, **options: Any) -> None:
    venice.app[FAULTS].push("/chat/completions", kind, **options)


def last_call(venice: Client) -> Call:
    return venice.app[CALLS][-1]


async def refused(venice: Client, body: dict[str, Any], path: str = CHAT) -> tuple[int, Any]:
    async with venice.post(path, json=body) as response:
        return response.status, await response.json()


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    """The events of a stream, ``[DONE]`` as a string."""
    lines = (await response.text()).split("\n\n")
    data = [line.removeprefix("data: ") for line in lines if line]
    return [text if text == "[DONE]" else json.loads(text, parse_float=Decimal) for text in data]


async def stream(venice: Client, text: str = "[tokens=4]", **fields: Any) -> list[Any]:
    async with venice.post(CHAT, json=asking(text, stream=True, **fields)) as response:
        assert response.status == 200
        return await events_of(response)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


# Clients


async def test_openai_plain(sdk: Any) -> None:
    """OpenAI's SDK reads a plain answer that says it is simulated and what it cost."""
    answer = await sdk.chat.completions.create(**asking("what is a gateway?"))

    assert "simulated answer" in answer.choices[0].message.content
    assert "what is a gateway?" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["cost"]["usd"] > 0


async def test_openai_stream(sdk: Any) -> None:
    """OpenAI's SDK reads a stream of one token a chunk, then usage and cost unasked."""
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asking(), stream=True)]

    text = "".join(chunk.choices[0].delta.content for chunk in chunks[:-1])
    assert text.startswith("This is a simulated answer")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1
    assert chunks[-1].model_extra["cost"]["usd"] > 0


async def test_openai_models_embeddings_images(sdk: Any) -> None:
    """OpenAI's SDK lists models, embeds (in its base64) and makes images."""
    models = await sdk.models.list()
    vectors = await sdk.embeddings.create(model="text-embedding-bge-m3", input=["one", "two"])
    picture = await sdk.images.generate(prompt="a fox", model="no-such-model")

    assert "llama-3.3-70b" in [model.id for model in models.data]
    assert [len(item.embedding) for item in vectors.data] == [1024, 1024]
    assert base64.b64decode(picture.data[0].b64_json).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:pydantic-settings is not installed")
async def test_venice_py(venice: Client) -> None:
    """The community's SDK reads answers, streams, models and rate limits."""
    venice_ai = pytest.importorskip("venice_ai")
    url = str(venice.make_url("/api/v1"))

    async with venice_ai.VeniceClient(api_key="sandbox", base_url=url) as client:
        answer = await client.chat.completions.create(**asking())
        streamed = await client.chat.completions.create(**asking("[tokens=3]"), stream=True)
        chunks = [chunk async for chunk in streamed]
        models = await client.models.list(type="all")
        limits = await client.api_keys.get_rate_limits()

    assert answer.cost.usd > 0
    assert chunks[-1].usage.completion_tokens == 3
    assert {"text", "embedding", "image", "tts", "asr"} <= {model.type for model in models.data}
    assert limits.data.accessPermitted is True


# Keys


async def test_no_key(aiohttp_client: StartClient) -> None:
    """Without credentials Venice answers 402 with the ways to pay, in body and header."""
    client = await aiohttp_client(create_sandbox())

    async with client.post(CHAT, json=asking()) as response:
        body = await response.json()

    assert response.status == 402
    assert body["error"] == "Authentication required"
    assert body == json.loads(base64.b64decode(response.headers["PAYMENT-REQUIRED"]))


@pytest.mark.parametrize("given", ["Bearer other", "Basic sandbox", "sandbox"])
async def test_bad_key(aiohttp_client: StartClient, given: str) -> None:
    """A key that is not among the accepted ones is 401, and leaves faults to others."""
    client = await aiohttp_client(create_sandbox({"one", "two"}))
    push(client, FaultKind.TIMEOUT, times=1)

    async with client.post(CHAT, json=asking(), headers={"Authorization": given}) as response:
        assert await response.json() == {"error": "Authentication failed"}
    async with client.post(CHAT, json=asking(), headers={"Authorization": "Bearer two"}) as later:
        assert later.status == 504

    assert response.status == 401


@pytest.mark.parametrize("path", ["/models", "/models/traits", "/models/compatibility_mapping"])
async def test_public(aiohttp_client: StartClient, path: str) -> None:
    """The catalogue needs no key; a type that does not exist is 400."""
    client = await aiohttp_client(create_sandbox())

    async with client.get(f"/api/v1{path}") as response:
        assert (await response.json())["type"] == "text"
    async with client.get(f"/api/v1{path}?type=nonsense") as wrong:
        assert (await wrong.json())["issues"][0]["path"] == ["type"]

    assert (response.status, wrong.status) == (200, 400)


async def test_rate_limits(venice: Client) -> None:
    """The rate limits prove the key and state balances that go down as calls are billed."""
    async with venice.post(CHAT, json=asking()) as response:
        cost = json.loads(await response.text(), parse_float=Decimal)["cost"]["usd"]
    async with venice.get("/api/v1/api_keys/rate_limits") as response:
        data = json.loads(await response.text(), parse_float=Decimal)["data"]

    assert data["accessPermitted"] is True
    assert data["balances"] == {"USD": 1_000_000 - cost, "DIEM": 0}
    assert data["nextEpochBegins"].endswith("T00:00:00.000Z")
    assert data["rateLimits"][0]["rateLimits"][0] == {"amount": 500, "type": "RPM"}


# Models


async def test_prices(venice: Client) -> None:
    """Prices have Venice's shapes, and one model has none."""
    async with venice.get("/api/v1/models?type=all") as response:
        listed = (await response.json())["data"]
    pricing = {model["id"]: model["model_spec"].get("pricing") for model in listed}

    assert pricing["llama-3.3-70b"] == {
        "input": {"usd": 0.7, "diem": 0.7},
        "output": {"usd": 2.8, "diem": 2.8},
    }
    assert pricing["claude-opus-4-8"]["extended"]["context_token_threshold"] == 32_000
    assert pricing["unpriced-preview"] is None
    assert "generation" in pricing["venice-sd35"]
    assert "per_audio_second" in pricing["nvidia-parakeet-tdt-0-6b-v3"]


async def test_types_and_traits(venice: Client) -> None:
    """Models are listed by type, text by default; traits and old names point to models."""

    async def data(path: str) -> Any:
        async with venice.get(f"/api/v1/models{path}") as response:
            return (await response.json())["data"]

    assert {model["type"] for model in await data("")} == {"text"}
    assert {model["type"] for model in await data("?type=image")} == {"image"}
    assert (await data("/traits"))["default"] == "zai-org-glm-5-1"
    assert (await data("/compatibility_mapping"))["gpt-4o"] == "zai-org-glm-5-1"


@pytest.mark.parametrize(
    ("name", "answering"),
    [
        ("llama-3.3-70b", "llama-3.3-70b"),
        ("llama-3-3-70b", "llama-3.3-70b"),
        ("venice-llama 3.3 70b", "llama-3.3-70b"),
        ("fastest", "kimi-k2-6"),
        ("gpt-4o", "zai-org-glm-5-1"),
        ("llama-3.3-70b:enable_web_search=on&disable_thinking=true", "llama-3.3-70b"),
    ],
)
async def test_model_names(venice: Client, name: str, answering: str) -> None:
    """A trait, an old name, another spelling or a feature suffix all find the model."""
    async with venice.post(CHAT, json=asking() | {"model": name}) as response:
        body = await response.json()

    assert body["model"] == response.headers["x-venice-model-id"] == answering
    parameters = body["venice_parameters"]
    assert parameters["enable_web_search"] == ("on" if ":" in name else "off")
    assert parameters["disable_thinking"] is (":" in name)


async def test_unknown_model(venice: Client) -> None:
    """An unknown model is 404 with the nearest name, one of another type 400."""
    unknown = await refused(venice, asking() | {"model": "lama-3.3-70"})
    other = await refused(venice, asking() | {"model": "venice-sd35"})

    assert unknown[0] == 404
    assert unknown[1]["code"] == "MODEL_NOT_FOUND"
    assert "Did you mean 'llama-3.3-70b'" in unknown[1]["error"]
    assert (other[0], other[1]["code"]) == (400, "INVALID_MODEL")


async def test_headers(venice: Client) -> None:
    """Answers carry limits in Unix milliseconds, the balance before the call, and the mark."""
    async with venice.post(CHAT, json=asking() | {"model": "llama-3.2-3b"}) as response:
        headers = response.headers

    assert headers["x-rialto-sandbox"] == "simulated"
    assert headers["x-venice-balance-usd"] == "1000000"
    assert int(headers["x-ratelimit-reset-requests"]) > time.time() * 1000
    assert headers["x-venice-deprecated-replacement"] == "llama-3.3-70b"
    assert "llama-3.3-70b" in headers["x-venice-model-deprecation-warning"]
    assert "Content-Encoding" not in headers or "gzip" in response.request_info.headers.get(
        "Accept-Encoding", ""
    )


# Chat


async def test_unknown_field(venice: Client) -> None:
    """Unknown top-level fields are 400, all of them named in issues and details."""
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
    """A field with a wrong value is 400 with its path."""
    status, body = await refused(venice, asking() | fields)

    assert (status, body["issues"][0]["path"]) == (400, path)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"1", b""])
async def test_not_json(venice: Client, body: bytes) -> None:
    """A body that is no JSON object is 400, whatever it is."""
    async with venice.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as given:
        assert "error" in await given.json()

    assert given.status == 400


async def test_aliases(venice: Client) -> None:
    """Venice's own aliases of fields are rewritten."""
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
    """A limit on tokens ends the answer there and says so, plain and streamed."""
    async with venice.post(CHAT, json=asking(**{limit: 3})) as response:
        plain = await response.json()
    events = await stream(venice, "hello", **{limit: 3})

    assert plain["choices"][0]["message"]["content"] == "This is a"
    assert plain["choices"][0]["finish_reason"] == "length"
    assert plain["usage"]["completion_tokens"] == 3
    assert [event["choices"][0]["finish_reason"] for event in events[:3]] == [None, None, "length"]


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
async def test_tokens_asked_for(venice: Client, count: int) -> None:
    """``[tokens=N]`` makes an answer of exactly N chunks and N tokens."""
    events = await stream(venice, f"please [tokens={count}]")

    chunks = [event["choices"][0]["delta"] for event in events[:-2]]
    assert sum(bool(delta["content"]) for delta in chunks) == count
    assert events[-2]["usage"]["completion_tokens"] == count
    assert events[-1] == "[DONE]"


async def test_most_tokens(venice: Client) -> None:
    """A hundred thousand tokens are the most that an answer has, and leave room for other calls."""
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
    """``[delay=S]`` waits between chunks, and as long in all before a plain answer."""
    started = time.monotonic()
    await stream(venice, "[tokens=3][delay=0.05]")
    streamed = time.monotonic()
    async with venice.post(CHAT, json=asking("[tokens=3][delay=0.05]")) as response:
        await response.read()

    assert streamed - started >= 0.1
    assert time.monotonic() - streamed >= 0.1


async def test_choices(venice: Client) -> None:
    """``n`` answers come side by side and are all counted."""
    events = await stream(venice, "[tokens=2]", n=3)

    assert [event["choices"][0]["index"] for event in events[:-2]] == [0, 1, 2, 0, 1, 2]
    assert events[-2]["usage"]["completion_tokens"] == 6


async def test_exact_cost(venice: Client) -> None:
    """The cost is the exact price of the tokens, without a float's rounding, plain and streamed."""
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
    """Past the threshold the whole request costs the extended price."""
    words = "x " * 32_000
    async with venice.post(
        CHAT, json=asking(f"{words}[tokens=1]", model="claude-opus-4-8")
    ) as response:
        body = json.loads(await response.text(), parse_float=Decimal)

    assert body["usage"]["prompt_tokens"] == 32_004
    assert body["cost"]["usd"] == Decimal(32_004 * 12 + 45) / 1_000_000


async def test_costs_left_out(venice: Client) -> None:
    """A model without a price states no cost; an answer without tokens costs nothing."""
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
    """A prompt beyond the context is refused in OpenAI's shape."""
    status, body = await refused(venice, asking("x " * 40_000, model="venice-uncensored"))

    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


async def test_e2ee(venice: Client) -> None:
    """An encrypted model only streams, and names its enclave."""
    status, body = await refused(venice, asking(model="e2ee-qwen3-30b"))
    async with venice.post(CHAT, json=asking(model="e2ee-qwen3-30b", stream=True)) as response:
        await response.read()

    assert (status, body["issues"][0]["path"]) == (400, ["stream"])
    assert response.headers["X-Venice-TEE"] == "true"


async def test_gzip(venice: Client) -> None:
    """JSON is compressed only for those who ask for it, streams never."""
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


# Other endpoints


async def test_embeddings(venice: Client) -> None:
    """Vectors depend on the text alone; arrays of tokens are refused."""
    path = "/api/v1/embeddings"
    asked = {"model": "text-embedding-bge-m3", "input": ["a b", "c", "a b"], "dimensions": 8}
    async with venice.post(path, json=asked) as response:
        body = await response.json()
    vectors = [item["embedding"] for item in body["data"]]

    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [len(vector) for vector in vectors] == [8, 8, 8]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(number * number for number in vectors[0]) == pytest.approx(1)
    assert last_call(venice).charged_nanos == 750
    for tokens in ([1, 2], [[1, 2]], []):
        status, _ = await refused(venice, asked | {"input": tokens}, path)
        assert status == 400


async def test_image_generate(venice: Client) -> None:
    """Images come as base64 or as bytes, are whole PNGs, and are billed each."""
    path = "/api/v1/image/generate"
    asked = {"model": "venice-sd35", "prompt": "a fox"}
    async with venice.post(path, json=asked | {"variants": 2}) as response:
        pictures = [base64.b64decode(image) for image in (await response.json())["images"]]
    async with venice.post(path, json=asked | {"return_binary": True}) as response:
        raw = await response.read()

    assert response.content_type == "image/png"
    assert pictures[0] == raw != pictures[1]
    start = raw.index(b"IDAT")
    size = int.from_bytes(raw[start - 4 : start], "big")
    assert len(zlib.decompress(raw[start + 4 : start + 4 + size])) == 8 * (1 + 3 * 8)
    assert [call.charged_nanos for call in venice.app[CALLS]] == [20_000_000, 10_000_000]


async def test_not_there(venice: Client) -> None:
    """A path that the sandbox does not play is a JSON 404, and is recorded."""
    assert await refused(venice, {}, "/api/v1/nowhere?a=b") == (404, {"error": "Not Found"})

    call = last_call(venice)
    assert (call.path, call.query, call.status) == ("/nowhere", {"a": "b"}, 404)


async def test_too_large(venice: Client) -> None:
    """A body over 35 MB is 413."""
    body = io.BytesIO(b" " * (35 * 1024 * 1024 + 1))
    async with venice.post(CHAT, data=body) as response:
        assert (await response.json())["code"] == "PAYLOAD_TOO_LARGE"

    assert response.status == 413


# Faults


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FaultKind.RATE_LIMITED, 429, "RATE_LIMIT_EXCEEDED"),
        (FaultKind.MODEL_OVERLOADED, 429, "MODEL_OVERLOADED"),
        (FaultKind.ERROR_BUDGET, 429, None),
        (FaultKind.INSUFFICIENT_BALANCE, 402, "INSUFFICIENT_BALANCE"),
        (FaultKind.KEY_SPEND_LIMIT, 402, None),
        (FaultKind.INVALID_KEY, 401, None),
        (FaultKind.INFERENCE_FAILED, 500, "INFERENCE_FAILED"),
        (FaultKind.BAD_GATEWAY, 502, None),
        (FaultKind.AT_CAPACITY, 503, "MODEL_AT_CAPACITY"),
        (FaultKind.TIMEOUT, 504, "REQUEST_TIMEOUT"),
    ],
)
async def test_refusals(venice: Client, kind: FaultKind, status: int, code: str | None) -> None:
    """A refusing fault has Venice's status, text and code, and costs nothing."""
    push(venice, kind, times=1)

    async with venice.post(CHAT, json=asking(stream=True)) as response:
        body = await response.json()

    assert response.status == status
    assert isinstance(body["error"], str)
    assert body.get("code") == code
    assert last_call(venice).charged_nanos == 0
    assert last_call(venice).status == status


async def test_families_of_headers(venice: Client) -> None:
    """The three 429s are told apart by their headers."""
    push(venice, FaultKind.RATE_LIMITED, times=1)
    push(venice, FaultKind.MODEL_OVERLOADED, times=1, retry_after=7, message="busy")
    push(venice, FaultKind.ERROR_BUDGET, times=1)
    answers = [await venice.post(CHAT, json=asking()) for _ in range(3)]
    limited, overloaded, budget = (answer.headers for answer in answers)

    assert limited["x-ratelimit-remaining-requests"] == "0"
    assert [("Retry-After" in headers) for headers in (limited, overloaded, budget)] == [
        False,
        True,
        False,
    ]
    assert overloaded["Retry-After"] == "7"
    assert (await answers[1].json())["error"] == "busy"
    assert budget["x-ratelimit-remaining"] == "0"
    assert int(budget["x-ratelimit-resets"]) > time.time() * 1000


async def test_order_times_and_paths(venice: Client) -> None:
    """Faults apply to their path in the order pushed, so many times, then no more."""
    faults = venice.app[FAULTS]
    faults.push("/embeddings", "timeout")
    faults.push("/chat/completions", "at_capacity", times=2)
    faults.push("*", "bad_gateway", times=1)
    statuses = [(await venice.post(CHAT, json=asking())).status for _ in range(4)]

    assert statuses == [503, 503, 502, 200]
    assert [fault.path for fault in faults.pending()] == ["/embeddings"]
    faults.clear()
    assert faults.pending() == []


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.BARRIER])
async def test_held_until_release(venice: Client, kind: FaultKind) -> None:
    """Held calls are answered when they are released, all at once."""
    push(venice, kind)
    faults = venice.app[FAULTS]
    calls = [asyncio.create_task(refused(venice, asking())) for _ in range(5)]
    await faults.wait_held(5)

    assert not any(call.done() for call in calls)
    faults.clear() if kind is FaultKind.HANG else faults.release()
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 5
    assert (faults.held, faults.pending()) == (0, [])


async def test_hang_and_go(venice: Client) -> None:
    """A client that leaves a hanging call is noted at once as gone."""
    push(venice, FaultKind.HANG)
    with pytest.raises(TimeoutError):
        await venice.post(CHAT, json=asking(), timeout=aiohttp.ClientTimeout(total=0.1))
    await eventually(lambda: venice.app[FAULTS].held == 0)

    call = last_call(venice)
    assert call.cut_at is not None
    assert 0.05 < call.cut_at - call.received_at < 2


async def test_hang_ends(venice: Client) -> None:
    """A hang has an end, which is a dropped connection."""
    push(venice, FaultKind.HANG, seconds=0.05)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await venice.post(CHAT, json=asking())

    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)


async def test_disconnect(venice: Client) -> None:
    """A disconnect closes the connection without a byte."""
    push(venice, FaultKind.DISCONNECT)
    with pytest.raises(aiohttp.ClientConnectionError):
        await venice.post(CHAT, json=asking())

    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)


@pytest.mark.parametrize("after", [0, 1, 3, 4])
async def test_cut(venice: Client, after: int) -> None:
    """A cut stream has so many chunks, then no end; what was sent is billed."""
    push(venice, FaultKind.CUT, after=after)
    received = b""
    async with venice.post(CHAT, json=asking("[tokens=4]", stream=True)) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            async for piece in response.content.iter_any():
                received += piece

    assert received.count(b"data: ") == after
    assert b"usage" not in received
    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)
    assert (last_call(venice).charged_nanos > 0) is (after > 0)


async def test_cut_plain(venice: Client) -> None:
    """A plain answer is cut in its middle."""
    push(venice, FaultKind.CUT)
    async with venice.post(CHAT, json=asking()) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()

    assert response.status == 200


async def test_stall(venice: Client) -> None:
    """A stalled stream stays open after its chunks, and goes on when it is released."""
    push(venice, FaultKind.STALL, after=2, times=1)
    async with venice.post(CHAT, json=asking("[tokens=4]", stream=True)) as response:
        received = b""
        while received.count(b"\n\n") < 2:
            received += await response.content.readany()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.1)
        venice.app[FAULTS].release()
        received += await response.read()

    assert received.count(b"data: ") == 6
    assert received.endswith(b"data: [DONE]\n\n")


async def test_client_leaves_stream(venice: Client) -> None:
    """A client that leaves a running stream is noted, and the tokens it got are billed."""
    async with venice.post(CHAT, json=asking("[tokens=999][delay=0.01]", stream=True)) as response:
        await response.content.readany()
        response.close()
    await eventually(lambda: last_call(venice).finished_at)

    call = last_call(venice)
    assert call.cut_at is not None
    assert 0 < call.charged_nanos < 999 * 2750


async def test_in_band_error(venice: Client) -> None:
    """A stream may fail inside a 200: an error event, then [DONE]. A plain answer is 500 then."""
    push(venice, FaultKind.IN_BAND_ERROR, after=2, message="broken")
    events = await stream(venice)
    status, body = await refused(venice, asking())

    assert len(events) == 4
    assert events[2]["error"]["message"] == "broken"
    assert {"message", "type", "code"} <= events[2]["error"].keys()
    assert events[3] == "[DONE]"
    assert (status, body) == (500, {"error": "broken"})


async def test_slow_bytes(venice: Client) -> None:
    """Slow bytes split events in the middle of a line, and lose none."""
    push(venice, FaultKind.SLOW_BYTES)
    async with venice.post(CHAT, json=asking("[tokens=2]", stream=True)) as response:
        pieces = [piece async for piece in response.content.iter_any()]

    assert max(map(len, pieces)) < 200
    assert any(not piece.endswith(b"\n\n") for piece in pieces)
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("kind", "stated"), [(FaultKind.MISSING_USAGE, set()), (FaultKind.MISSING_COST, {"usage"})]
)
async def test_missing_usage(venice: Client, kind: FaultKind, stated: set[str]) -> None:
    """Usage and cost may be missing, plain and streamed, and are billed all the same."""
    push(venice, kind)
    events = await stream(venice)
    async with venice.post(CHAT, json=asking("[tokens=4]")) as response:
        plain = await response.json()

    names = {"usage", "cost"}
    streamed = set().union(*(event.keys() & names for event in events[:-1]))
    assert streamed == plain.keys() & names == stated
    assert events[-1] == "[DONE]"
    assert [call.charged_nanos > 0 for call in venice.app[CALLS]] == [True, True]


async def test_garbage(venice: Client) -> None:
    """Garbage is a 200 that claims to be JSON and is not."""
    push(venice, FaultKind.GARBAGE)
    async with venice.post(CHAT, json=asking()) as response:
        with pytest.raises(json.JSONDecodeError):
            await response.json()

    assert response.status == 200


async def test_slow_headers(venice: Client) -> None:
    """Slow headers are late by so many seconds, and right."""
    push(venice, FaultKind.SLOW_HEADERS, seconds=0.15)
    started = time.monotonic()
    async with venice.post(CHAT, json=asking()) as response:
        assert response.status == 200

    assert time.monotonic() - started >= 0.15


def test_every_kind_is_tested() -> None:
    """A new kind of fault comes with a test of what it is on the wire."""
    text = Path(__file__).read_text()

    assert [kind.name for kind in FaultKind if f"FaultKind.{kind.name}" not in text] == []
    assert all(kind.doc.endswith(".") for kind in FaultKind)


# Records, and the control over HTTP


async def test_calls(venice: Client) -> None:
    """What reached the sandbox can be read: headers in any case, and the body as it came."""
    body = b'{"model": "default",  "messages": [{"role":"user","content":"hi"}]}'
    headers = {"Content-Type": "application/json", "X-Trace": "7"}
    await venice.post(f"{CHAT}?a=b", data=body, headers=headers)

    call = last_call(venice)
    assert (call.method, call.path, call.query) == ("POST", "/chat/completions", {"a": "b"})
    assert (call.body, call.body_bytes) == (body, len(body))
    assert call.headers["x-trace"] == "7"
    assert call.headers["authorization"] == "Bearer sandbox"
    assert (call.status, call.cut_at) == (200, None)
    assert venice.app[CALLS].to("/chat/completions") == [call]


def test_calls_are_bounded() -> None:
    """The record forgets the oldest calls, by number and by bytes, and keeps the sums."""
    calls = Calls()
    for number in range(MAX_CALLS + 10):
        call = Call(method="GET", path=str(number), query={}, headers={}, received_at=0.0)
        call.keep(b"x" * (KEPT_BODY_BYTES + 1 if number > MAX_CALLS else 1))
        calls.add(call)
    assert (len(calls), calls[0].path, calls.received) == (MAX_CALLS, "10", MAX_CALLS + 10)
    assert (len(calls[-1].body), calls[-1].body_bytes) == (KEPT_BODY_BYTES, KEPT_BODY_BYTES + 1)
    for _ in range(1100):
        call = Call(method="GET", path="/", query={}, headers={}, received_at=0.0)
        call.keep(b"x" * KEPT_BODY_BYTES)
        calls.add(call)

    assert len(calls) == 1024


async def test_control_over_http(venice: Client) -> None:
    """Faults can be pushed, listed and cleared over HTTP, and held calls released."""
    fault = {"path": CHAT, "kind": "barrier", "times": 1}
    async with venice.put("/sandbox/faults", json=fault) as response:
        listed = (await response.json())["faults"]
    held = asyncio.create_task(refused(venice, asking()))
    await venice.app[FAULTS].wait_held(1)
    async with venice.get("/sandbox/faults") as response:
        assert (await response.json())["held"] == 1
    async with venice.post("/sandbox/release") as response:
        assert await response.json() == {"released": 1}
    await venice.put("/sandbox/faults", json={"kind": "timeout"})
    async with venice.delete("/sandbox/faults") as response:
        assert (await response.json())["faults"] == []

    assert listed[0]["path"] == "/chat/completions"
    assert listed[0]["times"] == 1
    assert (await held)[0] == 200


@pytest.mark.parametrize(
    ("fault", "field", "rule"),
    [
        ({"kind": "nope"}, "kind", "enum"),
        ({}, "kind", "required"),
        ({"kind": "cut", "after": -1}, "after", ">= 0"),
        ({"kind": "cut", "times": 0}, "times", ">= 1"),
        ({"kind": "hang", "seconds": 601}, "seconds", "<= 600"),
        ({"kind": "cut", "path": "chat"}, "path", "regex"),
        ({"kind": "cut", "tmies": 1}, "tmies", "unknown"),
    ],
)
async def test_bad_faults(venice: Client, fault: dict[str, Any], field: str, rule: str) -> None:
    """A bad fault is 400 and names the field and the rule."""
    async with venice.put("/sandbox/faults", json=fault) as response:
        error = (await response.json())["error"]

    assert response.status == 400
    assert field in error
    assert rule in error.lower()


def test_bad_fault_in_python() -> None:
    """A bad fault raises in Python, and is not kept."""
    faults = Faults()
    with pytest.raises(msgspec.ValidationError, match="after"):
        faults.push("/models", FaultKind.CUT, after=-1)

    assert faults.pending() == []


async def test_calls_over_http(venice: Client) -> None:
    """Recorded calls are listed without the key; a bad limit is 400."""
    for _ in range(3):
        await venice.post(CHAT, json=asking())
    async with venice.get("/sandbox/calls?limit=2") as response:
        text = await response.text()
    async with venice.get("/sandbox/calls?limit=0") as bad:
        assert "limit" in (await bad.json())["error"]

    assert "Bearer" not in text
    assert (json.loads(text)["received"], len(json.loads(text)["calls"])) == (3, 2)
    assert bad.status == 400


async def test_alone() -> None:
    """It runs alone, says in one line where it listens, and ends at SIGTERM even with a call."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.sandbox", "--port", "0", "--key", "mine"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    url = next(word for word in line.split() if word.startswith("http"))
    headers = {"Authorization": "Bearer mine"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}/api_keys/rate_limits") as response:
            assert response.status == 200
        await session.put(
            url.replace("/api/v1", "/sandbox/faults"), json={"kind": "hang", "times": 1}
        )
        held = asyncio.create_task(session.post(f"{url}/chat/completions", json=asking()))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait({held}, timeout=5)
        held.exception()

    assert await asyncio.wait_for(process.wait(), 5) == 0
    assert await process.stdout.read() == b""


# The official description


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def _problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """Where a value breaks a schema: types, enums, required and unknown fields, at any depth."""
    while "$ref" in schema:
        schema = root["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        return min((_problems(value, one, root, at) for one in schema["anyOf"]), key=len)
    wanted = schema.get("type")
    if value is None and schema.get("nullable"):
        return []
    if wanted and not isinstance(value, TYPES[wanted]):
        return [f"{at} is no {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at} is {value!r}"]
    if isinstance(value, dict):
        return _problems_of_fields(value, schema, root, at)
    found = []
    for index, item in enumerate(value if isinstance(value, list) else ()):
        found += _problems(item, schema.get("items", {}), root, f"{at}[{index}]")
    return found


def _problems_of_fields(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    properties = schema.get("properties", {})
    found = [f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    if schema.get("additionalProperties") is False:
        found += [f"{at}.{name} is not known" for name in value.keys() - properties.keys()]
    for name in properties.keys() & value.keys():
        found += _problems(value[name], properties[name], root, f"{at}.{name}")
    return found


@pytest.fixture(scope="module")
def spec() -> Any:
    """The official description of the API."""
    if not SPEC.exists():
        pytest.skip("the official OpenAPI description is no part of this repository")
    # YAML 1.2: in 1.1 the values on and off would be booleans.
    return YAML(typ="safe").load(SPEC)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("get", "/models", None, 200),
        ("get", "/models?type=all", None, 200),
        ("get", "/models/traits", None, 200),
        ("get", "/models/compatibility_mapping", None, 200),
        ("get", "/api_keys/rate_limits", None, 200),
        ("post", "/chat/completions", asking(), 200),
        ("post", "/chat/completions", asking(nonsense=1), 400),
        ("post", "/embeddings", {"model": "text-embedding-bge-m3", "input": "a"}, 200),
        ("post", "/images/generations", {"prompt": "a"}, 200),
        ("post", "/image/generate", {"model": "venice-sd35", "prompt": "a"}, 200),
    ],
)
async def test_conforms(
    venice: Client, spec: Any, method: str, path: str, body: Any, status: int
) -> None:
    """What the sandbox answers has the form that Venice's own description gives."""
    described = spec["paths"][path.partition("?")[0]][method]["responses"][str(status)]
    schema = described["content"]["application/json"]["schema"]

    async with venice.request(method, f"/api/v1{path}", json=body) as response:
        assert response.status == status
        assert _problems(await response.json(), schema, spec) == []


async def test_refusal_without_key_conforms(aiohttp_client: StartClient, spec: Any) -> None:
    """The answer to a call without a key has the form that Venice's own description gives."""
    client = await aiohttp_client(create_sandbox())
    branches = spec["components"]["schemas"]["X402InferencePaymentRequired"]["anyOf"]

    _, body = await refused(client, asking())

    assert _problems(body, branches[0], spec) == []


async def test_request_fields_conform(venice: Client, spec: Any) -> None:
    """Every field of a request that Venice describes is known to the sandbox."""
    properties = spec["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    _, body = await refused(venice, {"nonsense": 1, **dict.fromkeys(properties)})

    assert body["issues"][0]["keys"] == ["nonsense"]
