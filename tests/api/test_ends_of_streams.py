"""Streams of a Venice that does not end them as it should."""

import json

import pytest
from aiohttp import web
from support import make_settings, running

PRICES = {"input": {"usd": 1}, "output": {"usd": 1}}
MODELS = {"data": [{"id": "m", "type": "text", "model_spec": {"pricing": PRICES}}]}
TOKEN = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
ERROR = b'data: {"error":{"message":"no","code":"upstream_error"}}'


@pytest.fixture
async def caller(database_address, aiohttp_server):
    """A caller of a service whose Venice breaks off in the middle of its error."""

    async def chat(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(TOKEN + ERROR)
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
