"""The models that a caller may use: Venice's list, filtered, with aliases."""

import asyncio

import openai
import pytest
from support import MODEL, ORGANIZATIONS, make_settings, running, set_alias

from service import api
from service.catalog import Catalog

pytestmark = pytest.mark.shares_service

EMBEDDING = "text-embedding-bge-m3"


async def read(caller, path="/v1/models"):
    """Request a path; return the status and the decoded body."""
    async with caller.service.http.get(path, headers=caller.headers) as response:
        return response.status, await response.json()


async def ids(caller, query=""):
    """Return the ids in the list."""
    status, body = await read(caller, f"/v1/models{query}")
    assert status == 200, body
    return [model["id"] for model in body["data"]]


async def venices(upstream, caller, path):
    """Return Venice's own response."""
    async with caller.service.http.get(f"{upstream.url}/api/v1{path}") as response:
        return await response.read()


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/models"])
@pytest.mark.parametrize("query", ["", "?type=embedding", "?type=all", "?type=code"])
async def test_the_list_is_venices(upstream, caller, path, query):
    """Both paths return Venice's list of the requested type, byte for byte."""
    theirs = await venices(upstream, caller, f"/models{query}")

    async with caller.service.http.get(path + query, headers=caller.headers) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.read() == theirs


async def test_an_unknown_type_is_a_400(caller):
    """An unknown type is a 400 that lists the known ones."""
    status, body = await read(caller, "/v1/models?type=poem")

    assert (status, body["error"]["param"]) == (400, "type")
    assert "embedding" in body["error"]["message"]


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
    """A model can be read by any of its names and of any type, as it is in Venice's list."""
    http = caller.service.http
    async with http.get(f"{upstream.url}/api/v1/models?type=all") as response:
        (theirs,) = [model for model in (await response.json())["data"] if model["id"] == wanted]

    for prefix in ("/v1", "/api/v1"):
        async with http.get(f"{prefix}/models/{name}", headers=caller.headers) as response:
            assert (response.status, await response.json()) == (200, theirs)


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}"])
async def test_a_key_is_needed(service, path):
    """The list needs a key."""
    async with service.http.get(path) as response:
        assert response.status == 401


async def test_venice_is_not_asked_for_a_list(upstream, caller):
    """The list is served from memory without asking Venice."""
    await ids(caller)
    upstream.calls.clear()

    assert MODEL in await ids(caller, "?type=all")
    assert (await read(caller, f"/v1/models/{MODEL}"))[0] == 200
    assert upstream.calls.to("/models") == []


async def test_many_ask_once(database_address, upstream, monkeypatch):
    """Fifty concurrent requests before any model is known are one request to Venice; a failure is
    returned to them, and the next request asks again."""
    monkeypatch.setattr(Catalog, "keep_fresh", lambda _: asyncio.sleep(3600))
    settings = make_settings(database_address, upstream.url)
    async with running(settings, knows_models=False) as service:
        caller = await service.new_caller()
        upstream.faults.push("/models", "at_capacity", times=1)
        assert (await read(caller))[0] == 503
        upstream.calls.clear()
        upstream.faults.push("/models", "slow_headers", seconds=0.2, times=1)

        answers = await asyncio.gather(*(read(caller) for _ in range(50)))

    assert {status for status, _ in answers} == {200}
    assert len(upstream.calls.to("/models")) == 1


async def test_the_first_to_ask_may_leave(service, upstream):
    """Requests that wait for the same list get it even if the first of them was cancelled."""
    catalog = service.app[api.CATALOG]
    await catalog.sync()
    upstream.calls.clear()
    upstream.faults.push("/models", "barrier", times=1)
    first, second = (asyncio.create_task(catalog.sync()) for _ in range(2))
    await upstream.faults.wait_held(1)
    first.cancel()
    upstream.faults.release()
    await second

    assert first.cancelled()
    assert len(upstream.calls.to("/models")) == 1


async def test_one_model_as_the_sdk_asks(upstream, caller):
    """One model is returned as Venice's object, by any of its names, including names with a
    slash."""
    asr = "nvidia/parakeet-tdt-0.6b-v3"
    listed = {
        model["id"]: model for model in (await read(caller, "/v1/models?type=all"))[1]["data"]
    }
    async with openai.AsyncOpenAI(
        base_url=f"{caller.service.url}/v1", api_key=caller.key, max_retries=0
    ) as client:
        assert (await client.models.retrieve(asr)).id == asr
        with pytest.raises(openai.NotFoundError, match=f"Did you mean {MODEL}") as refused:
            await client.models.retrieve("lama-3.3-70b")

    assert refused.value.code == "model_not_found"
    for name in (MODEL, "llama-3-3-70b", "gpt-4o-mini", f"{MODEL}:enable_web_search=on"):
        assert await read(caller, f"/v1/models/{name}") == (200, listed[MODEL])


async def test_a_key_sees_what_it_may_use(service):
    """A key with a list of models sees only those, and others are not found."""
    caller = await service.new_caller(models=[MODEL, EMBEDDING, "unheard-of"])

    assert await ids(caller) == [MODEL]
    assert await ids(caller, "?type=embedding") == [EMBEDDING]
    assert await ids(caller, "?type=image") == []
    status, body = await read(caller, "/v1/models/kimi-k2-6")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert (await read(caller, "/v1/models/gpt-4o-mini"))[0] == 200


async def test_aliases_are_listed(service, caller):
    """Shared aliases and those of the organization follow Venice's models with their first target's
    description; other organizations' do not."""
    other = await service.new_caller("other")
    await set_alias(service, "fast", [MODEL, "kimi-k2-6"])
    await set_alias(service, "vectors", [EMBEDDING])
    await set_alias(service, "theirs", [MODEL], other.organization_id)
    await set_alias(service, "fast", ["kimi-k2-6"], other.organization_id)
    _, body = await read(caller)
    listed = {model["id"]: model for model in body["data"]}
    entry = body["data"][-1]

    assert entry == {
        "id": "fast",
        "object": "model",
        "created": entry["created"],
        "owned_by": "rialto",
        "type": "text",
        "model_spec": listed[MODEL]["model_spec"],
    }
    assert {"theirs", "vectors"}.isdisjoint(listed)
    assert (await ids(caller, "?type=embedding"))[-1] == "vectors"
    assert (await ids(other))[-2:] == ["fast", "theirs"]
    assert await read(caller, "/v1/models/fast") == (200, entry)
    its_own = (await read(other, "/v1/models/fast"))[1]
    assert its_own["model_spec"] == listed["kimi-k2-6"]["model_spec"]


async def test_an_allow_list_lets_aliases_through(service):
    """A key sees an alias that it may use, or one with an allowed target, described by the first
    allowed one."""
    await set_alias(service, "fast", ["kimi-k2-6", MODEL])
    await set_alias(service, "slow", ["zai-org-glm-5-1"])
    by_alias = await service.new_caller("by alias", models=["fast"])
    by_target = await service.new_caller("by target", models=[MODEL])

    assert await ids(by_alias) == ["fast"]
    assert await ids(by_target) == [MODEL, "fast"]
    names = [
        (await read(caller, "/v1/models/fast"))[1]["model_spec"]["name"]
        for caller in (by_alias, by_target)
    ]
    assert names == ["Kimi K2.6 (simulated)", "Llama 3.3 70B (simulated)"]
    assert (await read(by_target, "/v1/models/slow"))[0] == 404


async def test_a_keys_models_are_changed(service):
    """PATCH replaces a key's models or its settings, leaves the other unchanged, applies at once
    and is audited."""
    caller = await service.new_caller(models=[MODEL], settings={"tolerant": False})
    path = f"/admin/v1/keys/{caller.key_id}"
    _, listed = await service.operate("GET", f"{ORGANIZATIONS}/{caller.organization_id}/keys")
    assert listed["keys"][0]["models"] == [MODEL]
    assert await ids(caller) == [MODEL]

    status, changed = await service.operate("PATCH", path, json={"models": ["kimi-k2-6"]})
    assert (status, changed["models"]) == (200, ["kimi-k2-6"])
    assert changed["settings"]["tolerant"] is False
    assert await ids(caller) == ["kimi-k2-6"]

    _, changed = await service.operate("PATCH", path, json={"settings": {"tolerant": True}})
    assert (changed["models"], changed["settings"]["tolerant"]) == (["kimi-k2-6"], True)

    _, changed = await service.operate("PATCH", path, json={"models": None})
    assert changed["models"] is None
    assert len(await ids(caller)) > 2

    _, events = await service.operate(
        "GET", f"{ORGANIZATIONS}/{caller.organization_id}/audit-events"
    )
    details = [event["detail"] for event in events["events"] if "api_key" in event["action"]]
    assert [detail.get("models", "as it was") for detail in details] == [
        None,
        "as it was",
        ["kimi-k2-6"],
        [MODEL],
    ]


@pytest.mark.parametrize(
    ("models", "rule"),
    [
        ([], "1 to 100"),
        (["m"] * 101, "1 to 100"),
        ([""], "printable ASCII"),
        (["a b"], "printable ASCII"),
        (["a\n"], "printable ASCII"),
        (["é"], "printable ASCII"),
        (["m" * 201], "1 to 200"),
        ("m", "array"),
        ([1], "str"),
    ],
)
async def test_a_bad_allow_list(service, caller, models, rule):
    """An invalid list of models is a 400 that names the field and the rule, for a new key and for a
    change."""
    keys = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    for method, path in (("POST", keys), ("PATCH", f"/admin/v1/keys/{caller.key_id}")):
        body = {"models": models} | ({"name": "x"} if method == "POST" else {})
        status, answer = await service.operate(method, path, json=body)
        assert status == 400
        assert answer["error"]["param"].startswith("models")
        assert rule in answer["error"]["message"]


async def test_a_change_of_nothing(service, caller):
    """A PATCH that changes nothing is a 400."""
    status, body = await service.operate("PATCH", f"/admin/v1/keys/{caller.key_id}", json={})

    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert "At least one" in body["error"]["message"]
