"""The sandbox's clients, keys and models."""

import base64
import json
import time
from decimal import Decimal
from typing import Any

import pytest
from sandbox_client import CHAT, Client, StartClient, asking, push, refused

from service.sandbox import FaultKind, create_sandbox

# Clients


async def test_openai_plain(sdk: Any) -> None:
    """OpenAI's SDK parses a plain response, which states that it is simulated and its cost."""
    answer = await sdk.chat.completions.create(**asking("what is a gateway?"))

    assert "simulated answer" in answer.choices[0].message.content
    assert "what is a gateway?" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["cost"]["usd"] > 0


async def test_openai_stream(sdk: Any) -> None:
    """OpenAI's SDK parses a stream of one token per chunk, with usage and cost at the end by
    default."""
    chunks = [chunk async for chunk in await sdk.chat.completions.create(**asking(), stream=True)]

    text = "".join(chunk.choices[0].delta.content for chunk in chunks[:-1])
    assert text.startswith("This is a simulated answer")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1
    assert chunks[-1].model_extra["cost"]["usd"] > 0


async def test_openai_models_embeddings_images(sdk: Any) -> None:
    """OpenAI's SDK lists models, embeds (as base64) and generates images."""
    models = await sdk.models.list()
    vectors = await sdk.embeddings.create(model="text-embedding-bge-m3", input=["one", "two"])
    picture = await sdk.images.generate(prompt="a fox", model="no-such-model")

    assert "llama-3.3-70b" in [model.id for model in models.data]
    assert [len(item.embedding) for item in vectors.data] == [1024, 1024]
    assert base64.b64decode(picture.data[0].b64_json).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:pydantic-settings is not installed")
async def test_venice_py(venice: Client) -> None:
    """The community's SDK parses responses, streams, models and rate limits."""
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
    """Without credentials Venice returns 402 with the ways to pay, in body and header."""
    client = await aiohttp_client(create_sandbox())

    async with client.post(CHAT, json=asking()) as response:
        body = await response.json()

    assert response.status == 402
    assert body["error"] == "Authentication required"
    assert body == json.loads(base64.b64decode(response.headers["PAYMENT-REQUIRED"]))


@pytest.mark.parametrize("given", ["Bearer other", "Basic sandbox", "sandbox"])
async def test_invalid_key(aiohttp_client: StartClient, given: str) -> None:
    """An unknown key is a 401 and uses up no fault."""
    client = await aiohttp_client(create_sandbox({"one", "two"}))
    push(client, FaultKind.TIMEOUT, times=1)

    async with client.post(CHAT, json=asking(), headers={"Authorization": given}) as response:
        assert await response.json() == {"error": "Authentication failed"}
    async with client.post(CHAT, json=asking(), headers={"Authorization": "Bearer two"}) as later:
        assert later.status == 504

    assert response.status == 401


@pytest.mark.parametrize("path", ["/models", "/models/traits", "/models/compatibility_mapping"])
async def test_public(aiohttp_client: StartClient, path: str) -> None:
    """The catalog needs no key, and an unknown type is a 400."""
    client = await aiohttp_client(create_sandbox())

    async with client.get(f"/api/v1{path}") as response:
        assert (await response.json())["type"] == "text"
    async with client.get(f"/api/v1{path}?type=nonsense") as wrong:
        assert (await wrong.json())["issues"][0]["path"] == ["type"]

    assert (response.status, wrong.status) == (200, 400)


async def test_rate_limits(venice: Client) -> None:
    """The rate limits identify the key and state balances that decrease with each charge."""
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
    """Prices have Venice's formats, and one model has none."""
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
    assert "per_audio_second" in pricing["nvidia/parakeet-tdt-0.6b-v3"]


async def test_types_and_traits(venice: Client) -> None:
    """Models are listed by type, text by default, and traits and old names lead to models."""

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
    """A trait, an old name, another spelling and a feature suffix lead to the model."""
    async with venice.post(CHAT, json=asking() | {"model": name}) as response:
        body = await response.json()

    assert body["model"] == response.headers["x-venice-model-id"] == answering
    parameters = body["venice_parameters"]
    assert parameters["enable_web_search"] == ("on" if ":" in name else "off")
    assert parameters["disable_thinking"] is (":" in name)


async def test_unknown_model(venice: Client) -> None:
    """An unknown model is a 404 with the most similar name, and one of another type is a 400."""
    unknown = await refused(venice, asking() | {"model": "lama-3.3-70"})
    other = await refused(venice, asking() | {"model": "venice-sd35"})

    assert unknown[0] == 404
    assert unknown[1]["code"] == "MODEL_NOT_FOUND"
    assert "Did you mean 'llama-3.3-70b'" in unknown[1]["error"]
    assert (other[0], other[1]["code"]) == (400, "INVALID_MODEL")


async def test_headers(venice: Client) -> None:
    """Responses state limits with Unix milliseconds, the balance before the call, and that they are
    simulated."""
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
