"""Anthropic's SDK with the service's base URL and key."""

import asyncio
import json

import anthropic
import pytest
from support import MODEL, make_settings, running, set_limit, wait_for_entry

pytestmark = pytest.mark.shares_service

REASONING = "zai-org-glm-5-1"
MESSAGES = [{"role": "user", "content": "Hello [tokens=12]"}]
LOOK = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {
        "type": "object",
        "properties": {"where": {"type": "string"}, "times": {"type": "integer"}},
        "required": ["where", "times"],
    },
}
PNG = "iVBORw0KGgo="
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


@pytest.fixture
async def client(caller):
    """Anthropic's SDK with a caller's key in its own header."""
    async with anthropic.AsyncAnthropic(
        base_url=caller.service.url, api_key=caller.key, max_retries=0
    ) as client:
        yield client


def asking(**members):
    return {"model": MODEL, "max_tokens": 100, "messages": MESSAGES, **members}


async def test_plain(client, caller, upstream):
    """A message has the usage that the ledger has."""
    message = await client.messages.create(**asking(system="Be short."))

    assert [block.type for block in message.content] == ["text"]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 12)
    entry = await caller.only_entry()
    assert (entry["input_tokens"], entry["output_tokens"]) == (message.usage.input_tokens, 12)
    assert message._request_id == entry["request_id"]
    sent = json.loads(upstream.posts[-1].body)
    assert sent["messages"] == [{"role": "system", "content": "Be short."}, *MESSAGES]
    assert sent["max_completion_tokens"] == 100


async def test_stream(client, caller):
    """A streamed message arrives as events that the SDK accumulates."""
    async with client.messages.stream(**asking()) as stream:
        pieces = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()

    assert len(pieces) == 12
    assert message.content[0].text == "".join(pieces)
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 12)
    entry = await caller.only_entry()
    assert (entry["input_tokens"], entry["output_tokens"]) == (message.usage.input_tokens, 12)


async def test_bearer(caller):
    """A bearer token is accepted, as Claude Code sends it."""
    async with anthropic.AsyncAnthropic(
        base_url=caller.service.url, auth_token=caller.key, max_retries=0
    ) as client:
        assert (await client.messages.create(**asking())).content


async def test_length(client):
    """``max_tokens`` limits the output."""
    message = await client.messages.create(**asking(max_tokens=3))

    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
async def test_tools(client, choice):
    """A tool call works plain and streamed, and its result is answered."""
    plain = await client.messages.create(**asking(tools=[TOOL], tool_choice=choice))
    async with client.messages.stream(**asking(tools=[TOOL], tool_choice=choice)) as stream:
        streamed = await stream.get_final_message()

    for message in (plain, streamed):
        (block,) = message.content
        assert (block.type, block.name, block.input) == ("tool_use", "look", {})
        assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "A fox."}
    conversation = [
        *MESSAGES,
        {"role": "assistant", "content": streamed.content},
        {"role": "user", "content": [result]},
    ]
    answer = await client.messages.create(**asking(messages=conversation, tools=[TOOL]))
    assert answer.stop_reason == "end_turn"


async def test_thinking(client, upstream):
    """Only a caller that asks for thinking gets it."""
    asked = asking(model=REASONING, messages=[{"role": "user", "content": "[think=4][tokens=2]"}])
    thinking = {"type": "enabled", "budget_tokens": 1024}
    without = await client.messages.create(**asked)
    plain = await client.messages.create(**asked | {"max_tokens": 2000}, thinking=thinking)
    async with client.messages.stream(**asked | {"max_tokens": 2000}, thinking=thinking) as stream:
        streamed = await stream.get_final_message()

    assert [block.type for block in without.content] == ["text"]
    for message in (plain, streamed):
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert message.content[0].thinking == "Hm, " * 4
        assert message.usage.output_tokens == 6
    assert without.usage.output_tokens == 2


async def test_claude_codes_habits(client, upstream):
    """Long user names, cache markers, beta members and efforts of Claude Code are accepted."""
    mark = {"type": "ephemeral", "ttl": "1h"}
    message = await client.beta.messages.create(
        **asking(
            system=[{"type": "text", "text": "You code.", "cache_control": mark}],
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Go", "cache_control": mark}],
                }
            ],
            tools=[{**TOOL, "name": f"tool_{index}", "cache_control": mark} for index in range(30)],
            metadata={"user_id": "user_" + "a" * 150},
            thinking={"type": "adaptive"},
            extra_body={
                "context_management": {"edits": []},
                "output_config": {"effort": "high"},
            },
            betas=["context-1m-2025-08-07"],
        )
    )

    assert message.stop_reason == "end_turn"
    sent = json.loads(upstream.posts[-1].body)
    assert len(sent["tools"]) == 30
    assert "a" * 150 not in str(sent)


async def test_count_tokens(client, upstream):
    """The token count is an estimate that asks nobody and records nothing."""
    short = await client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    long = await client.messages.count_tokens(
        model=MODEL, messages=[{"role": "user", "content": "word " * 4000}], tools=[TOOL]
    )

    assert 5 < short.input_tokens < 50
    assert 4000 < long.input_tokens < 6000
    assert upstream.calls.to("/chat/completions") == []


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        ("model_overloaded", anthropic.InternalServerError, "overloaded_error"),
        ("insufficient_balance", anthropic.InternalServerError, "overloaded_error"),
        ("detailed", anthropic.BadRequestError, "invalid_request_error"),
        ("inference_failed", anthropic.InternalServerError, "api_error"),
        ("timeout", anthropic.InternalServerError, "timeout_error"),
    ],
)
async def test_venices_errors(client, upstream, fault, error, kind):
    """Each of Venice's errors becomes the SDK's own exception, streamed or not."""
    upstream.faults.push("/chat/completions", fault)
    with pytest.raises(error) as plain:
        await client.messages.create(**asking())
    with pytest.raises(error) as streamed:
        await client.messages.create(**asking(), stream=True)

    assert {plain.value.type, streamed.value.type} == {kind}


async def test_own_errors(client, caller, service):
    """Errors about keys, limits, models and members have Anthropic's format."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(**asking(model="nope"))
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await client.with_options(api_key="rk_wrong").messages.create(**asking())
    assert caught.value.body["error"]["code"] == "malformed_api_key"
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].type") as caught:
        await client.messages.create(
            **asking(tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}])
        )
    assert caught.value.body["request_id"]
    await set_limit(caller, unit="usd", period="day", ceiling="0")
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(**asking())
    assert (caught.value.status_code, caught.value.type) == (402, "billing_error")
    other = await service.new_caller("other")
    await set_limit(other, unit="requests", period="minute", ceiling=0)
    with pytest.raises(anthropic.BadRequestError, match="limit of 0 requests a minute"):
        await client.with_options(api_key=other.key).messages.create(**asking())
    for body in (b"{", b"[]", b'{"model": "x"}'):
        async with service.http.post(
            "/v1/messages", data=body, headers={"x-api-key": caller.key}
        ) as response:
            assert (response.status, (await response.json())["type"]) == (400, "error")


@pytest.mark.parametrize("fault", ["cut", "in_band_error"])
async def test_a_stream_that_fails_is_an_error(client, caller, upstream, fault):
    """A stream that Venice fails raises in the SDK."""
    upstream.faults.push("/chat/completions", fault, after=4)
    with pytest.raises(anthropic.APIError):
        async with client.messages.stream(**asking()) as stream:
            await stream.get_final_message()

    assert (await wait_for_entry(caller))["outcome"] in ("upstream_cut", "upstream_error")


async def test_heartbeats_do_not_disturb(database_address, upstream):
    """Comments before and between events do not disturb the SDK."""
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.05)
    async with running(settings) as service:
        caller = await service.new_caller()
        upstream.faults.push("/chat/completions", "slow_headers", seconds=0.2, times=1)
        async with anthropic.AsyncAnthropic(base_url=service.url, api_key=caller.key) as client:
            slow = [{"role": "user", "content": "[tokens=3][delay=0.2]"}]
            async with client.messages.stream(**asking(messages=slow)) as stream:
                message = await stream.get_final_message()

    assert message.usage.output_tokens == 3


async def test_hang_up(client, caller, upstream):
    """A message whose caller hangs up is recorded at its bound."""
    long = [{"role": "user", "content": "[tokens=999][delay=0.01]"}]
    async with client.messages.stream(**asking(messages=long, max_tokens=2000)) as stream:
        async for _ in stream.text_stream:
            break

    entry = await wait_for_entry(caller)
    assert entry["outcome"] == "client_closed"
    assert (entry["output_tokens"], entry["cost_usd"]) == (2000, entry["bound_usd"])


async def test_parallel_tools(client, caller, upstream):
    """Two tool calls arrive whole and as events of their blocks, and their results are answered in
    one turn."""
    asked = asking(messages=[{"role": "user", "content": "[tools=2]"}], tools=[LOOK])
    whole = await client.messages.create(**asked)
    kinds, pieces = [], []
    async with client.messages.stream(**asked) as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type == "input_json":
                pieces.append(event.partial_json)
        streamed = await stream.get_final_message()

    for message in (whole, streamed):
        assert [(block.type, block.name) for block in message.content] == [("tool_use", "look")] * 2
        assert message.content[0].input == {"where": "simulated", "times": 0}
        assert message.stop_reason == "tool_use"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert len(pieces) > 4
    results = [
        {
            "type": "tool_result",
            "tool_use_id": block.id,
            "content": [{"type": "text", "text": "A fox."}],
            "is_error": index == 1,
        }
        for index, block in enumerate(streamed.content)
    ]
    conversation = [
        *asked["messages"],
        {"role": "assistant", "content": streamed.content},
        {"role": "user", "content": [*results, {"type": "text", "text": "And?"}]},
    ]
    answer = await client.messages.create(**asked | {"messages": conversation})
    assert answer.stop_reason == "end_turn"
    sent = json.loads(upstream.posts[-1].body)["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == [
        message["tool_call_id"] for message in sent[2:4]
    ]
    entries = await caller.entries()
    assert [entry["output_tokens"] for entry in entries] == [
        message.usage.output_tokens for message in (answer, streamed, whole)
    ]


async def test_a_picture(client, upstream):
    """A picture is sent as data beside a text with a cache marker."""
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [
        {"type": "image", "source": source},
        {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}},
    ]
    system = [{"type": "text", "text": "You see.", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": content}]
    assert await client.messages.create(
        **asking(model="kimi-k2-6", system=system, messages=messages)
    )

    instruction, shown = json.loads(upstream.posts[-1].body)["messages"]
    assert instruction == {"role": "system", "content": system}
    assert shown["content"][0]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert shown["content"][1] == content[1]


async def test_stop_sequences(client, caller):
    """The response ends before the first stop sequence."""
    message = await client.messages.create(**asking(stop_sequences=["model", "simulated answer"]))

    assert (message.content[0].text, message.stop_reason) == ("This is a ", "end_turn")
    assert (await caller.only_entry())["output_tokens"] == message.usage.output_tokens == 4


async def test_the_synchronous_client(caller):
    """The synchronous client calls a model and lists the models."""

    def work():
        with anthropic.Anthropic(base_url=caller.service.url, api_key=caller.key) as client:
            models = [model.id for model in client.models.list()]
            one = client.models.retrieve(MODEL)
            whole = client.messages.create(**asking())
            with client.messages.stream(**asking()) as stream:
                return models, one, whole, "".join(stream.text_stream)

    models, one, whole, streamed = await asyncio.to_thread(work)

    assert MODEL in models
    assert one.id == MODEL
    assert whole.content[0].text == streamed
    assert [entry["outcome"] for entry in await caller.entries()] == ["ok", "ok"]


async def test_the_sdk_waits_for_retry_after(client, caller):
    """The SDK retries after Retry-After and is admitted."""
    await set_limit(caller, unit="concurrency", ceiling=1)
    slow = [{"role": "user", "content": "[tokens=4][delay=0.1]"}]
    async with client.messages.stream(**asking(messages=slow)) as stream:
        patient = client.with_options(max_retries=3).messages.create(**asking())
        answer, _ = await asyncio.gather(patient, stream.get_final_message())

    assert answer.usage.output_tokens == 12
    assert len(await caller.entries()) == 2


async def test_a_quote(client, caller, upstream):
    """A quote for a message equals that of the chat completion it is translated into."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.000000001")
    http, request = caller.service.http, asking(system="Be short.")
    async with http.post("/v1/quote/messages", json=request, headers=caller.headers) as response:
        quote = await response.json()
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(**request)

    assert (response.status, quote["endpoint"], quote["model"]) == (200, "/chat/completions", MODEL)
    assert (quote["max_output_tokens"], quote["would_pass"]) == (100, False)
    message = caught.value.body["error"]["message"]
    assert quote["refusal"]["message"] == message
    assert quote["max_cost_usd"] in message
    assert upstream.calls.to("/chat/completions") == []
    async with http.post(
        "/v1/quote/messages", json={**request, "messages": 1}, headers=caller.headers
    ) as response:
        assert (await response.json())["error"]["param"] == "messages"
