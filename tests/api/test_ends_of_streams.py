"""Answers of a Venice that does not end them as it should."""

import json

import pytest
from aiohttp import web
from support import make_settings, running

PRICES = {"input": {"usd": 1}, "output": {"usd": 1}}
MODELS = {"data": [{"id": "m", "type": "text", "model_spec": {"pricing": PRICES}}]}
TOKEN = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
BAD_ID = (
    TOKEN.replace(b'"c"', b"5")
    + b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
ERROR = b'data: {"error":{"message":"no","code":"upstream_error"}}'
USAGE = {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
NO_MESSAGE = {"id": "c", "model": "m", "choices": "none", "usage": USAGE}


@pytest.fixture(params=[TOKEN + ERROR])
async def caller(request, database_address, aiohttp_server):
    """A caller of a service whose Venice sends such a stream; here it breaks off in the middle of
    its error."""
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


async def test_an_error_without_its_end_is_one(caller):
    """Said in our words, as the stream's last event."""
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
async def test_a_stream_that_makes_no_answer_is_booked_as_it_was_answered(caller):
    """It came to its end, but there is nothing to put together."""
    async with caller.chat(model="m", max_tokens=20_000) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "upstream_error")
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["status"]) == ("upstream_error", 502)


@pytest.mark.parametrize(
    ("caller", "max_tokens"), [(BAD_ID, 10), (BAD_ID, 20_000)], indirect=["caller"]
)
async def test_what_cannot_be_said_is_booked_as_it_was_answered(caller, max_tokens):
    """Whether it came whole or was put together. It is what Venice charges for all the same."""
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
