"""The routes that callers use."""

from aiohttp import web

from service.api.auth import authenticate
from service.api.state import CATALOG, GATEWAY
from service.api.wire import REQUEST_ID, read_body, relay
from service.gateway import CHAT


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``, streamed or not."""
    caller = await authenticate(request)
    content = await read_body(request)
    call = CHAT.parse(content, request[REQUEST_ID], request.headers)
    async with request.app[GATEWAY].call(caller, call) as reply:
        return await relay(request, reply)


async def models(request: web.Request) -> web.Response:
    """``GET /v1/models?type=``: Venice's own list."""
    await authenticate(request)
    body = await request.app[CATALOG].models(request.query.get("type"))
    return web.Response(body=body, content_type="application/json")
