"""The sandbox's responses conform to Venice's own API description."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from sandbox_client import Client, StartClient, asking, refused

from service.sandbox import ROUTES, create_sandbox

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT.parent / "shared" / "venice-openapi.yaml"


VIDEO = {"model": "wan-2.5-preview-text-to-video", "duration": "5s"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}
SEARCHING = {"enable_web_search": "on", "enable_web_citations": True}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def _problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """Return where a value violates a schema: types, enums, required and unknown fields, at any
    depth."""
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
    # Parse as YAML 1.2, because in 1.1 the values on and off are booleans.
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
        ("post", "/chat/completions", asking("[call=look]", tools=[LOOK]), 200),
        ("post", "/chat/completions", asking("[think=2]", model="claude-opus-4-8"), 200),
        ("post", "/chat/completions", asking(venice_parameters=SEARCHING), 200),
        ("post", "/responses", {"model": "llama-3.3-70b", "input": "a"}, 200),
        (
            "post",
            "/responses",
            {"model": "kimi-k2-6", "input": "[think=2][call=look]", "tools": [LOOK]},
            200,
        ),
        (
            "post",
            "/responses",
            {"model": "kimi-k2-6", "input": "a", "venice_parameters": SEARCHING},
            200,
        ),
        ("post", "/augment/search", {"query": "a"}, 200),
        ("post", "/augment/scrape", {"url": "https://a.invalid"}, 200),
        ("post", "/crypto/rpc/base-mainnet", {"method": "eth_blockNumber", "id": 1}, 200),
        ("post", "/video/quote", VIDEO, 200),
        ("post", "/video/queue", {**VIDEO, "prompt": "a"}, 200),
        ("post", "/audio/quote", {"model": "elevenlabs-music"}, 200),
        ("post", "/audio/queue", {"model": "elevenlabs-music", "prompt": "a"}, 200),
        ("get", "/image/styles", None, 200),
        ("get", "/characters", None, 200),
        ("get", "/characters/simulated-sage", None, 200),
        ("get", "/characters/simulated-sage/reviews", None, 200),
        ("get", "/crypto/rpc/networks", None, 200),
    ],
)
async def test_conforms(
    venice: Client, spec: Any, method: str, path: str, body: Any, status: int
) -> None:
    """The sandbox's responses conform to Venice's description, except those of decision models,
    which are newer."""
    schema = _schema(spec, path.partition("?")[0], method, status)

    async with venice.request(method, f"/api/v1{path}", json=body) as response:
        assert response.status == status
        problems = _problems(await response.json(), schema, spec)
    assert [problem for problem in problems if "'decision'" not in problem] == []


def _schema(spec: Any, path: str, method: str, status: int) -> Any:
    for described in sorted(spec["paths"], key=lambda known: "{" in known):
        pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(described))
        if path == described or re.fullmatch(pattern, path):
            break
    responses = spec["paths"][described][method]["responses"]
    return responses[str(status)]["content"]["application/json"]["schema"]


def test_every_path_is_played(spec: Any) -> None:
    """The sandbox plays every described path except the account's management, which no caller
    reaches."""
    described = {
        (method.upper(), re.sub(r"{[^}]*}", "{}", path))
        for path, methods in spec["paths"].items()
        for method in methods.keys() & {"get", "post", "put", "patch", "delete"}
        if not path.startswith(("/api_keys", "/billing", "/x402"))
    }
    played = {(method, re.sub(r"{[^}]*}", "{}", path)) for method, path, _ in ROUTES}

    assert described - played == set()


async def test_refusal_without_key_conforms(aiohttp_client: StartClient, spec: Any) -> None:
    """The response to a call without a key conforms to Venice's description."""
    client = await aiohttp_client(create_sandbox())
    branches = spec["components"]["schemas"]["X402InferencePaymentRequired"]["anyOf"]

    _, body = await refused(client, asking())

    assert _problems(body, branches[0], spec) == []


async def test_request_fields_conform(venice: Client, spec: Any) -> None:
    """The sandbox knows every request field that Venice describes."""
    properties = spec["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    _, body = await refused(venice, {"nonsense": 1, **dict.fromkeys(properties)})

    assert body["issues"][0]["keys"] == ["nonsense"]
