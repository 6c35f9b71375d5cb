"""The routes that callers use."""

from aiohttp import web

from service import money
from service.api.auth import authenticate
from service.api.state import CATALOG, GATEWAY
from service.api.wire import REQUEST_ID, error_object, json_response, read_body, relay
from service.gateway import CHAT


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``, streamed or not."""
    caller = await authenticate(request)
    content = await read_body(request)
    call = CHAT.parse(content, request[REQUEST_ID], request.headers)
    async with request.app[GATEWAY].call(caller, call) as reply:
        return await relay(request, reply)


async def quote(request: web.Request) -> web.Response:
    """``POST /v1/quote`` with the body of a chat completion: what it could cost, which limits it
    would meet, and whether it would pass; nothing is sent and nothing held."""
    caller = await authenticate(request)
    content = await read_body(request)
    call = CHAT.parse(content, request[REQUEST_ID], request.headers)
    quote = await request.app[GATEWAY].quote(caller, call)
    bound, refusal = quote.bound, quote.refusal
    return json_response(
        {
            "endpoint": call.endpoint.path,
            "model": call.model,
            "max_cost_usd": None if bound.nanos is None else money.format_usd(bound.nanos),
            "max_tokens": bound.tokens,
            "max_output_tokens": bound.output_cap or call.max_output_tokens,
            "would_pass": refusal is None,
            "refusal": None if refusal is None else error_object(refusal, None)["error"],
            "limits": quote.limits,
        }
    )


async def models(request: web.Request) -> web.Response:
    """``GET /v1/models?type=``: Venice's own list."""
    await authenticate(request)
    body = await request.app[CATALOG].models(request.query.get("type"))
    return web.Response(body=body, content_type="application/json")
