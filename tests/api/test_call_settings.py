"""Settings of keys and organizations that change what Venice receives."""

import json

import pytest
from support import MODEL, ORGANIZATIONS, cost_of, set_limit

pytestmark = pytest.mark.shares_service

ODD = {
    "max_completion_tokens": None,
    "n": None,
    "stop": None,
    "user": None,
    "service_tier": "auto",
    "context_management": {"edits": []},
    "stream_options": {"include_usage": True},
    "functions": [{"name": "look", "parameters": {"type": "object"}}],
    "function_call": {"name": "look"},
}


def last_sent(upstream):
    return json.loads(upstream.calls.to("/chat/completions")[-1].body)


async def test_members_that_venice_would_refuse_are_removed(upstream, caller):
    """Members that Venice would refuse are removed, and the output cap is that of a call without a
    maximum."""
    async with caller.chat(**ODD) as response:
        assert response.status == 200, await response.text()
        (call,) = (await response.json())["choices"][0]["message"]["tool_calls"]

    assert call["function"]["name"] == "look"
    sent = last_sent(upstream)
    assert sent["max_completion_tokens"] == 8192
    assert set(sent) == {"model", "messages", "max_completion_tokens", "user", "tools"} | {
        "tool_choice"
    }


async def test_a_key_can_switch_tolerance_off(upstream, service):
    """With ``tolerant`` off the body passes, and Venice refuses it."""
    caller = await service.new_caller(settings={"tolerant": False})
    async with caller.chat(**ODD) as response:
        assert response.status == 400
        assert "service_tier" in (await response.json())["error"]["message"]

    assert last_sent(upstream).items() >= {"service_tier": "auto", "stop": None}.items()


async def test_embeddings_too(upstream, caller):
    """Members are removed from embeddings too, and default parameters for text are not added."""
    body = {"model": "text-embedding-bge-m3", "input": "a", "dimensions": None}
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    settings = {"venice_parameters": {"disable_thinking": True}}
    await caller.service.operate("PATCH", path, json={"settings": settings})
    async with caller.service.http.post(
        "/v1/embeddings", json=body, headers=caller.headers
    ) as response:
        assert response.status == 200, await response.text()


async def test_parameters_of_organization_key_and_call(upstream, service):
    """A call's parameters override the key's, which override the organization's; a change applies
    at once."""
    caller = await service.new_caller(
        settings={"venice_parameters": {"disable_thinking": True, "enable_web_search": "auto"}}
    )
    common = {"disable_thinking": False, "include_venice_system_prompt": False}
    status, organization = await service.operate(
        "PATCH",
        f"{ORGANIZATIONS}/{caller.organization_id}",
        json={"settings": {"venice_parameters": common}},
    )
    assert (status, organization["settings"]["venice_parameters"]) == (200, common)
    async with caller.chat(venice_parameters={"enable_web_search": "off"}) as response:
        assert response.status == 200
    async with caller.chat() as response:
        assert response.status == 200

    first, second = (
        json.loads(call.body)["venice_parameters"]
        for call in upstream.calls.to("/chat/completions")
    )
    assert first == {
        "disable_thinking": True,
        "include_venice_system_prompt": False,
        "enable_web_search": "off",
    }
    assert second == first | {"enable_web_search": "auto"}
    _, events = await service.operate(
        "GET", f"{ORGANIZATIONS}/{caller.organization_id}/audit-events"
    )
    assert events["events"][0]["action"] == "organization.change"


async def test_searches_by_default_are_in_the_bound(upstream, service):
    """A search that a setting switches on is in the bound."""
    caller = await service.new_caller(settings={"venice_parameters": {"enable_web_search": "on"}})
    await set_limit(caller, unit="usd", period="day", ceiling="0.009")
    async with caller.chat(max_tokens=1) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            402,
            "limit_exceeded",
        )


async def test_encrypted_calls_are_not_touched(upstream, service):
    """No setting changes an end-to-end encrypted call."""
    caller = await service.new_caller(settings={"venice_parameters": {"enable_x_search": True}})
    async with caller.chat(model="e2ee-qwen3-30b", stream=True, stop=None) as response:
        assert response.status == 200

    sent = last_sent(upstream)
    assert "venice_parameters" not in sent
    assert "stop" in sent


@pytest.mark.parametrize(
    "parameters",
    [{"Odd Name": 1}, {"a": {"b": 1}}, {"a": "x" * 257}, {f"a{n}": 1 for n in range(33)}, []],
)
async def test_bad_parameters(service, caller, parameters):
    """Default parameters must be names with plain values, and not too many."""
    settings = {"venice_parameters": parameters}
    for path in (f"{ORGANIZATIONS}/{caller.organization_id}", f"/admin/v1/keys/{caller.key_id}"):
        status, body = await service.operate("PATCH", path, json={"settings": settings})
        assert status == 400
        assert body["error"]["param"].startswith("settings.venice_parameters")


async def test_a_streamed_call_keeps_its_stream_options(upstream, caller):
    """A streamed call keeps ``stream_options``, which Venice accepts there."""
    options = {"include_usage": True}
    async with caller.chat(stream=True, stream_options=options, model=MODEL) as response:
        await response.read()

    assert last_sent(upstream)["stream_options"] == options
    assert cost_of(await caller.only_entry()) > 0
