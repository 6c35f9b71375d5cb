"""The list of models: Venice's own, asked for once."""

import asyncio

import pytest

from service.catalog import Catalog


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/models"])
@pytest.mark.parametrize("query", ["", "?type=embedding"])
async def test_the_list_is_venices(upstream, caller, path, query):
    """Both paths answer with Venice's list of the type that was asked for, byte for byte."""
    http = caller.service.http
    async with http.get(f"{upstream.url}/api/v1/models{query}") as response:
        theirs = await response.read()

    async with http.get(path + query, headers=caller.headers) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.read() == theirs


async def test_an_unknown_type_is_told(caller):
    """A type that Venice does not have is a 400 that lists those it has."""
    async with caller.service.http.get("/v1/models?type=poem", headers=caller.headers) as response:
        error = (await response.json())["error"]

        assert (response.status, error["param"]) == (400, "type")
    assert "embedding" in error["message"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama-3.3-70b", "llama-3.3-70b"),
        ("Llama 3_3-70b", "llama-3.3-70b"),
        ("nvidia/parakeet-tdt-0.6b-v3", "nvidia/parakeet-tdt-0.6b-v3"),
        ("text-embedding-bge-m3", "text-embedding-bge-m3"),
    ],
)
async def test_one_model(upstream, caller, name, wanted):
    """By any of its names and of any type, as it stands in Venice's list."""
    http = caller.service.http
    async with http.get(f"{upstream.url}/api/v1/models?type=all") as response:
        (theirs,) = [model for model in (await response.json())["data"] if model["id"] == wanted]

    for prefix in ("/v1", "/api/v1"):
        async with http.get(f"{prefix}/models/{name}", headers=caller.headers) as response:
            assert (response.status, await response.json()) == (200, theirs)


async def test_no_model(caller):
    """404, and where to look."""
    async with caller.service.http.get("/v1/models/nope", headers=caller.headers) as response:
        error = (await response.json())["error"]

        assert (response.status, error["code"]) == (404, "not_found")
    assert "/v1/models" in error["message"]


async def test_a_key_is_needed(service):
    """The list is for callers."""
    async with service.http.get("/v1/models") as response:
        assert response.status == 401


async def test_many_ask_once(upstream, caller):
    """Fifty at once are one request to Venice, and those who come within a minute are none."""
    upstream.faults.push("/models", "slow_headers", seconds=0.2, times=1)

    async def ask():
        async with caller.service.http.get(
            "/v1/models?type=image", headers=caller.headers
        ) as response:
            return response.status

    assert set(await asyncio.gather(*(ask() for _ in range(50)))) == {200}
    assert await ask() == 200
    asked = [call for call in upstream.calls.to("/models") if call.query.get("type") == "image"]
    assert len(asked) == 1


async def test_venice_fails_at_first(upstream, caller):
    """With nothing kept the failure is the caller's to see; the next one asks again."""
    upstream.faults.push("/models", "at_capacity", times=1)

    async with caller.service.http.get("/v1/models?type=tts", headers=caller.headers) as response:
        assert response.status == 503
    async with caller.service.http.get("/v1/models?type=tts", headers=caller.headers) as response:
        assert response.status == 200


async def test_venice_fails_later(upstream, caller, monkeypatch):
    """A list that was kept is served stale when Venice does not answer."""
    monkeypatch.setattr("service.catalog.FRESH_S", 0.0)
    url = "/v1/models?type=tts"
    async with caller.service.http.get(url, headers=caller.headers) as response:
        kept = await response.read()
    upstream.faults.push("/models", "inference_failed")

    async with caller.service.http.get(url, headers=caller.headers) as response:
        assert response.status == 200
        assert await response.read() == kept


async def test_the_first_to_ask_may_leave():
    """Those who wait for the same list get it although the one who asked first went away."""
    answer = asyncio.Event()

    async def fetch(model_type):
        await answer.wait()
        return b'{"data":[]}'

    catalog = Catalog(fetch, database=None)
    first, second = (asyncio.create_task(catalog.models("text")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    answer.set()

    assert await second == b'{"data":[]}'
