"""Streams that Venice does not end as it should."""

import asyncio
import json
from decimal import Decimal

import pytest
from aiohttp import web
from odd_venice import head, odd_venice, serving, stream, whole
from support import cost_of, make_settings, running, wait_for_entry

pytestmark = pytest.mark.shares_service

PRICES = {"input": {"usd": 1}, "output": {"usd": 1}}
MODELS = {"data": [{"id": "m", "type": "text", "model_spec": {"pricing": PRICES}}]}
TOKEN = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
BAD_CONTENT = (
    TOKEN.replace(b'"a"', b"5")
    + b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
ERROR = b'data: {"error":{"message":"no","code":"upstream_error"}}'
USAGE = {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
NO_MESSAGE = {"id": "c", "model": "m", "choices": "none", "usage": USAGE}


@pytest.fixture(params=[TOKEN + ERROR])
async def caller(request, database_address, aiohttp_server):
    """A caller of a service whose Venice sends the given stream; by default it breaks off within an
    error."""
    events = request.param

    async def chat(request):
        if not (await request.json()).get("stream"):
            return web.json_response(NO_MESSAGE)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events)
        return response

    async def models(request):
        return web.json_response(MODELS)

    app = web.Application()
    app.router.add_post("/api/v1/chat/completions", chat)
    app.router.add_get("/api/v1/models", models)
    server = await aiohttp_server(app)
    settings = make_settings(database_address, str(server.make_url("")).rstrip("/"))
    async with running(settings) as service:
        yield await service.new_caller()
        await service.audit()


async def test_a_truncated_error_is_an_error(caller):
    """An error event that Venice truncates becomes the service's own error as the stream's last
    event."""
    async with caller.chat(model="m", stream=True) as response:
        body = await response.read()

    *_, last, done, _ = body.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert b'"no"' not in body
    assert (await caller.only_entry())["outcome"] == "upstream_error"


@pytest.mark.parametrize(
    "caller", [b"data: [DONE]\n\n", b"data: []\n\ndata: [DONE]\n\n"], indirect=True
)
async def test_a_stream_without_a_result_is_recorded_as_502(caller):
    """A complete stream without anything to assemble is recorded as the 502 that the caller got."""
    async with caller.chat(model="m", max_tokens=20_000) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "upstream_error")
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["status"]) == ("upstream_error", 502)


@pytest.mark.parametrize(
    ("caller", "max_tokens"), [(BAD_CONTENT, 10), (BAD_CONTENT, 20_000)], indirect=["caller"]
)
async def test_a_result_that_cannot_be_translated_is_recorded_as_502(caller, max_tokens):
    """A plain or assembled result that cannot be translated is recorded as a 502, at the cost of
    its usage."""
    headers = {"x-api-key": caller.key, "anthropic-version": "2023-06-01"}
    asked = {
        "model": "m",
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    async with caller.service.http.post("/v1/messages", headers=headers, json=asked) as response:
        error = await response.json()

    assert (response.status, error["error"]["type"]) == (502, "api_error")
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["status"]) == ("upstream_error", 502)
    assert (entry["input_tokens"], entry["cost_source"]) == (5, "computed")


@pytest.fixture
async def odd(database_address):
    """A Venice of odd streams, and a caller."""
    async with odd_venice() as venice, serving(database_address, venice) as service:
        yield venice, await service.new_caller()


def held(*pieces):
    """Return an answer that writes these pieces and keeps the stream open."""

    async def answer(request, writer):
        writer.write(head("200 OK", "text/event-stream"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        await asyncio.sleep(30)

    return answer


SPENT = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7},'
    b'"cost":{"usd":0.5}}\n\n'
)
SO_FAR = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
COMPLETED = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r",'
    b'"model":"m","output":[],"usage":{"input_tokens":5,"output_tokens":7}}}\n\n'
)
DELTA = b'event: x\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
ASKED = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "pieces", "terminal", "outcome"),
    [
        ("/chat/completions", [TOKEN, SPENT], b'"cost"', "ok"),
        ("/chat/completions", [TOKEN, SPENT, b"data: [DONE]\n\n"], b"[DONE]", "ok"),
        ("/messages", [TOKEN, SPENT, b"data: [DONE]\n\n"], b"message_stop", "ok"),
        ("/responses", [DELTA, COMPLETED], b"response.completed", "ok"),
        ("/chat/completions", [TOKEN, TOKEN], b"content", "client_closed"),
        ("/responses", [DELTA, DELTA], b"delta", "client_closed"),
        ("/chat/completions", [TOKEN, SO_FAR], b"usage", "client_closed"),
    ],
)
async def test_a_caller_may_leave_after_the_last_event(odd, path, pieces, terminal, outcome):
    """A call whose caller closes after the last event, before the body ends, is recorded as
    successful."""
    venice, caller = odd
    venice.answer = held(*pieces)
    asked = dict(ASKED, stream=True)
    if path == "/responses":
        asked = {"model": "m", "input": "x", "stream": True}
    url = f"/v1{path}"
    async with caller.service.http.post(url, json=asked, headers=caller.headers) as response:
        seen = b""
        while terminal not in seen or not seen.endswith(b"\n\n"):
            seen += await response.content.readany()
        await asyncio.sleep(0.05)
        response.close()

    entry = await wait_for_entry(caller)
    assert entry["outcome"] == outcome
    if outcome == "client_closed":
        assert entry["cost_usd"] == entry["bound_usd"]
    else:
        assert (entry["input_tokens"], entry["output_tokens"]) == (5, 7)
        assert entry["cost_source"] == ("computed" if path == "/responses" else "reported")


@pytest.mark.parametrize(
    "odd_event",
    [
        TOKEN.replace(b'"a"', b"5"),
        TOKEN.replace(b'{"content":"a"}', b"[]"),
        b'data: {"choices":[{"delta":{"tool_calls":7}}]}\n\n',
        b"data: <html>\n\n",
        b'data: {"x":' + b"[" * 5000 + b"]" * 5000 + b"}\n\n",
    ],
)
@pytest.mark.parametrize("has_cost", [True, False])
async def test_an_event_that_cannot_be_translated_is_an_upstream_error(odd, odd_event, has_cost):
    """An event that cannot be translated is an upstream error, with the cost that follows it or
    else the bound."""
    venice, caller = odd
    rest = [SPENT, b"data: [DONE]\n\n"] if has_cost else []
    venice.answer = stream(TOKEN, odd_event, *rest)
    asked = dict(ASKED, stream=True)
    async with caller.service.http.post(
        "/v1/messages", json=asked, headers=caller.headers
    ) as response:
        body = await response.read()

    assert (response.status, b"event: error" in body) == (200, True)
    entry = await caller.only_entry()
    assert entry["outcome"] == "upstream_error"
    expected = Decimal("0.5") if has_cost else Decimal(entry["bound_usd"])
    assert (cost_of(entry), entry["cost_source"]) == (
        expected,
        "reported" if has_cost else "estimated",
    )


def delta(content, **more):
    """Return a chunk of a completion, with the text as JavaScript encodes it."""
    return b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (
        content
    )


HALVES = [delta(b"a \\ud83d"), delta(b"\\ude00 b \\ud83d"), delta(b" c \\ude00 d \\ud83d")]
WHOLE = "a 😀 b \ufffd c \ufffd d \ufffd"
END = [SPENT, b"data: [DONE]\n\n"]
PLAIN = (
    b'{"id":"c","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":'
    b'"a \\ud83d\\ude00 b \\ud83d c \\ude00 d \\ud83d"}}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":7},"cost":{"usd":0.5}}'
)


@pytest.mark.parametrize("maximum", [100, 20_000])
@pytest.mark.parametrize("path", ["/messages", "/chat/completions"])
async def test_lone_surrogates(odd, path, maximum):
    """Surrogate halves are joined in an assembled response and passed on unchanged in a stream; the
    cost is kept in both."""
    venice, caller = odd
    venice.answer = whole(PLAIN) if maximum == 100 else stream(*HALVES, *END)
    asked = {**ASKED, "max_tokens": maximum}
    async with caller.service.http.post(
        f"/v1{path}", json=asked, headers=caller.headers
    ) as response:
        body = await response.read()

    assert response.status == 200, body
    if path == "/messages":
        assert json.loads(body)["content"] == [{"type": "text", "text": WHOLE}]
    elif maximum == 100:
        assert body == PLAIN
    else:
        assert json.loads(body)["choices"][0]["message"]["content"] == WHOLE
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"], cost_of(entry)) == (
        "ok",
        "reported",
        Decimal("0.5"),
    )


async def test_lone_surrogates_in_a_translated_message(odd):
    """In a translated stream a surrogate half waits for the other one, in text, thinking and
    arguments of tools."""
    venice, caller = odd
    call = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,%b}]}}]}\n\n'
    tools = [
        call % b'"id":"x","function":{"name":"f","arguments":"{\\"a\\":\\"\\ud83d"}',
        call % b'"function":{"arguments":"\\ude00\\"}"}',
    ]
    venice.answer = stream(*HALVES, *tools, *END)
    asked = {**ASKED, "stream": True}
    async with caller.service.http.post(
        "/v1/messages", json=asked, headers=caller.headers
    ) as response:
        body = (await response.read()).decode()

    events = [json.loads(line[6:]) for line in body.split("\n") if line.startswith("data: ")]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == WHOLE
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"a":"😀"}'
    assert (await caller.only_entry())["outcome"] == "ok"


async def test_lone_surrogates_in_an_assembled_response(odd):
    """An assembled response equals the stream's last event, byte for byte."""
    venice, caller = odd
    answer = (
        b'{"id":"r","output":[{"text":"a \\ud83d b \\ud83d\\ude00"}],'
        b'"usage":{"input_tokens":5,"output_tokens":7}}'
    )
    event = b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n'
    venice.answer = stream(DELTA, event % answer)
    asked = {"model": "m", "input": "x", "max_output_tokens": 20_000}
    async with caller.service.http.post(
        "/v1/responses", json=asked, headers=caller.headers
    ) as response:
        assert await response.read() == answer

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("ok", "computed")
