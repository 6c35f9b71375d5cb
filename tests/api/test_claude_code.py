"""What Claude Code and Anthropic's SDK send and expect, with models that answer oddly."""

import json

import anthropic
import pytest
from message_streams import check_events
from odd_venice import head, odd_venice, serving, stream, whole
from support import MODEL

pytestmark = pytest.mark.shares_service

ASKED = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Go"}]}
VERSION = {"anthropic-version": "2023-06-01"}
USAGE = {"prompt_tokens": 50, "completion_tokens": 7}
DONE = b"data: [DONE]\n\n"


def event(**members):
    return b"data: %b\n\n" % json.dumps(members).encode()


def chunk(finish_reason=None, **delta):
    return event(id="c", model="m", choices=[{"delta": delta, "finish_reason": finish_reason}])


def calls(*pieces):
    return chunk(tool_calls=list(pieces))


SPENT = event(choices=[], usage=USAGE, cost={"usd": 0.5})


@pytest.fixture
async def odd(database_address):
    """A Venice whose bytes the test writes, a caller, and Anthropic's SDK."""
    async with odd_venice() as venice, serving(database_address, venice) as service:
        caller = await service.new_caller()
        async with anthropic.AsyncAnthropic(
            base_url=service.url, api_key=caller.key, max_retries=0
        ) as client:
            yield venice, caller, client


async def streamed(client, **members):
    async with client.messages.stream(**ASKED | members) as stream:
        return await stream.get_final_message()


async def test_parallel_calls_of_the_same_index(odd):
    """Two calls that a provider sends with the same index are two tools, streamed and whole."""
    venice, caller, client = odd
    events = [
        calls({"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"city":'}}),
        calls({"index": 0, "function": {"arguments": '"A"}'}}),
        calls({"index": 0, "id": "b", "function": {"name": "look", "arguments": '{"city":"B"}'}}),
        chunk("tool_calls"),
    ]
    venice.answer = stream(*events, SPENT, DONE)
    plain = {"stream": False, "max_tokens": 20_000}
    for message in (await streamed(client), await client.messages.create(**ASKED | plain)):
        assert [(block.id, block.input) for block in message.content] == [
            ("a", {"city": "A"}),
            ("b", {"city": "B"}),
        ]
        assert message.stop_reason == "tool_use"
    assert [entry["outcome"] for entry in await caller.entries()] == ["ok", "ok"]


async def test_a_null_loses_nothing(odd):
    """Members of odd types are ignored, and the answer and its usage are kept."""
    venice, caller, client = odd
    odd_chunk = event(id=None, model=5, created="x", choices=[{"delta": {"content": "Hi"}}])
    usage = event(choices=None, usage={"prompt_tokens": 50.0, "completion_tokens": 7.0})
    venice.answer = stream(odd_chunk, chunk("stop", refusal=None), usage, DONE)

    message = await streamed(client)

    assert (message.content[0].text, message.stop_reason) == ("Hi", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (50, 7)
    entry = await caller.only_entry()
    assert (entry["input_tokens"], entry["output_tokens"]) == (50, 7)


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n"])
async def test_the_end_without_a_line_break(odd, end):
    """A stream whose last event lacks its empty line ends with ``message_stop``."""
    venice, _, client = odd
    venice.answer = stream(chunk(content="Hi"), chunk("stop"), SPENT, end)

    assert (await streamed(client)).stop_reason == "end_turn"


async def test_nothing_follows_the_end(odd):
    """A connection that breaks after the last event adds no error to a whole message."""
    venice, caller, _ = odd
    body = b"".join([chunk(content="Hi"), chunk("stop"), SPENT, DONE])
    venice.answer = head("200 OK", "text/event-stream", Content_Length=len(body) + 9) + body

    async with caller.service.http.post(
        "/v1/messages", json=ASKED | {"stream": True}, headers=caller.headers
    ) as response:
        events = await response.read()

    assert events.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_message_start_estimates_the_input(odd):
    """The first event has an estimate of the input, the last one what Venice counted."""
    venice, _, client = odd
    venice.answer = stream(chunk(content="Hi"), chunk("stop"), SPENT, DONE)
    long = [{"role": "user", "content": "word " * 400}]
    async with client.messages.stream(**ASKED | {"messages": long}) as messages:
        begun = [one.message async for one in messages if one.type == "message_start"]
        message = await messages.get_final_message()

    assert 400 < begun[0].usage.input_tokens < 700
    assert message.usage.input_tokens == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in"
            " 10000 tokens.",
            "prompt is too long: 10000 tokens > 8192 maximum",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens"
            " (8000 in the messages, 1000 in the completion).",
            "input length and `max_tokens` exceed context limit: 8000 + 1000 > 8192",
        ),
    ],
)
async def test_a_prompt_that_is_too_long(odd, text, expected):
    """The refusal is in the words that Claude Code acts on, free, and not to be repeated."""
    venice, caller, client = odd
    error = {"message": text, "type": "invalid_request_error", "code": "context_length_exceeded"}
    venice.answer = whole(json.dumps({"error": error}).encode(), "400 Bad Request")

    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**ASKED)

    assert caught.value.body["error"]["message"] == expected
    assert caught.value.body["error"]["code"] == "context_length_exceeded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", "not_charged")


async def test_a_tools_text_in_parts(odd):
    """A chat's tool message with its text in parts reaches Venice as one text; a key that is not
    tolerant sends it as it is."""
    venice, caller, _ = odd
    venice.answer = whole(b'{"id":"c","model":"m","choices":[{"message":{"content":"Hi"}}]}')
    tool = {"role": "tool", "tool_call_id": "t"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = {"model": "m", "messages": [{**tool, "content": parts}]}
    strict = await caller.service.new_caller("strict", settings={"tolerant": False})
    for one, content in ((caller, "a\nb"), (strict, parts)):
        async with one.service.http.post(
            "/v1/chat/completions", json=asked, headers=one.headers
        ) as response:
            assert response.status == 200
        assert venice.received[-1].json()["messages"] == [{**tool, "content": content}]


async def test_members_that_reach_venice(odd):
    """The session is the key of the cache, and forced search alone is forced at Venice."""
    venice, _, client = odd
    venice.answer = whole(b'{"id":"c","model":"m","choices":[{"message":{"content":"Hi"}}]}')
    user = json.dumps({"device_id": "d", "account_uuid": "my-account", "session_id": "s-1"})
    await client.messages.create(
        **ASKED,
        metadata={"user_id": user},
        tools=[{"type": "web_search_20250305", "name": "web_search"}],
        tool_choice={"type": "tool", "name": "web_search"},
    )

    sent = venice.received[-1].json()
    assert sent["prompt_cache_key"] == "s-1"
    assert sent["venice_parameters"]["enable_web_search"] == "on"
    assert "tool_choice" not in sent
    assert "my-account" not in json.dumps(sent)


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_batches_are_not_found(caller, prefix):
    """What Rialto lacks below ``/messages`` is an error in Anthropic's format."""
    async with caller.service.http.post(
        f"{prefix}/messages/batches", json={"requests": []}, headers=caller.headers
    ) as response:
        body = await response.json()

    assert (response.status, body["type"], body["error"]["type"]) == (
        404,
        "error",
        "not_found_error",
    )


@pytest.mark.parametrize("authorization", ["", " "])
async def test_an_empty_authorization(caller, authorization):
    """An empty header does not hide the key in the other one."""
    headers = {"Authorization": authorization, "x-api-key": caller.key}
    async with caller.service.http.get("/v1/models", headers=headers) as response:
        assert response.status == 200
    async with caller.service.http.get("/v1/models", headers={"Authorization": ""}) as response:
        assert (await response.json())["error"]["code"] == "malformed_api_key"


@pytest.fixture
async def client(caller):
    async with anthropic.AsyncAnthropic(
        base_url=caller.service.url, api_key=caller.key, max_retries=0
    ) as client:
        yield client


async def test_the_list_of_models(client, caller):
    """Anthropic's clients get the models in their own format, and may page through them."""
    page = await client.models.list()
    ids = [model.id for model in page.data]

    assert MODEL in ids
    assert (page.has_more, page.first_id, page.last_id) == (False, ids[0], ids[-1])
    model = await client.models.retrieve(MODEL)
    assert model == next(one for one in page.data if one.id == MODEL)
    assert model.type == "model"
    assert model.display_name
    assert model.display_name != MODEL
    assert model.created_at.year == 2026
    assert model.max_input_tokens > 1000
    assert [one.id async for one in client.models.list(limit=2)] == ids
    back = await client.models.list(limit=2, before_id=ids[4])
    assert ([one.id for one in back.data], back.has_more) == (ids[2:4], True)
    assert (await client.models.list(limit=2, before_id=ids[1])).has_more is False


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("after_id=nope", "after_id"),
        ("before_id=nope", "before_id"),
        (f"after_id={MODEL}&before_id={MODEL}", "before_id"),
    ],
)
async def test_a_page_that_is_not_there(caller, query, param):
    """A malformed page is refused in Anthropic's format."""
    async with caller.service.http.get(
        f"/v1/models?{query}", headers=caller.headers | VERSION
    ) as response:
        body = await response.json()

    assert (response.status, body["type"], body["error"]["param"]) == (400, "error", param)


async def test_errors_of_models(client):
    """Errors about models have Anthropic's format for its clients."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.models.retrieve("nope")

    assert caught.value.type == "not_found_error"


async def test_a_conversation_of_claude_code(client, upstream):
    """A session with folded system messages, found tools, searches and marks goes on."""
    mark = {"type": "ephemeral"}
    search = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
    ]
    message = await client.beta.messages.create(
        model=MODEL,
        max_tokens=100,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1;"},
            {"type": "text", "text": "You code.", "cache_control": mark},
        ],
        messages=[
            {"role": "user", "content": "Find the fox."},
            {"role": "system", "content": "Be brief."},
            {
                "role": "assistant",
                "content": [
                    *search,
                    {"type": "tool_use", "id": "toolu_1", "name": "ToolSearch", "input": {"q": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [{"type": "tool_reference", "tool_name": "look"}],
                        "cache_control": mark,
                    }
                ],
            },
        ],
        tools=[
            {"type": "bash_20250124", "name": "bash"},
            {"name": "look", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        betas=["tool-search-tool-2025-10-19"],
    )

    assert message.stop_reason == "end_turn"
    sent = json.loads(upstream.posts[-1].body)
    assert [one["role"] for one in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert "billing" not in json.dumps(sent)
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["bash", "look"]


async def test_events_are_valid(caller, upstream):
    """The raw events of the sandbox pass an independent check."""
    asked = ASKED | {"model": MODEL, "stream": True}
    async with caller.service.http.post(
        "/v1/messages", json=asked, headers=caller.headers
    ) as response:
        events = await response.read()

    start = events.index(b'"input_tokens":')
    estimate = int(events[start:].partition(b":")[2].partition(b",")[0])
    assert estimate > 0
    blocks, last = check_events(events, input_estimate=estimate)
    assert [block["type"] for block in blocks] == ["text"]
    assert last["delta"]["stop_reason"] == "end_turn"
