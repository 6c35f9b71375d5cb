"""The routes of Anthropic's clients."""

import functools

import msgspec
from aiohttp import web

from service import anthropic
from service.accounts import Caller
from service.api.auth import authenticate
from service.api.state import CATALOG, GATEWAY
from service.api.wire import (
    REQUEST_ID,
    json_response,
    read_body,
    relay,
)
from service.gateway import CHAT, Call, Inbound, parse, read_large


class TokenCount(msgspec.Struct):
    """About how many tokens the input has."""

    input_tokens: int


async def create(request: web.Request) -> web.StreamResponse:
    """``POST /v1/messages``: a chat completion in other words."""
    caller = await authenticate(request)
    asked, call = await _read(request, caller)
    async with request.app[GATEWAY].call(caller, call) as answer:
        translation = anthropic.MessageEvents(with_thinking=asked.wants_thinking)
        return await relay(request, answer, translation)


async def read_call(request: web.Request, caller: Caller) -> Call:
    """The chat completion that the request asks for in Anthropic's words.

    :raises ClientError: naming the field and the rule.
    """
    _, call = await _read(request, caller)
    return call


async def _read(request: web.Request, caller: Caller) -> tuple[anthropic.MessagesRequest, Call]:
    content = await read_body(request)
    size_bytes = len(content)
    asked = await read_large(size_bytes, anthropic.decode, content)
    catalog = request.app[CATALOG]
    first, *_ = catalog.targets(caller.organization_id, asked.model, caller.allowed_models, "text")
    takes_effort = catalog.can(first, "supportsReasoningEffort")
    translate = functools.partial(anthropic.chat_body, takes_effort=takes_effort)
    inbound = Inbound(
        content=await read_large(size_bytes, translate, asked),
        request_id=request[REQUEST_ID],
        headers=request.headers,
        settings=caller.settings,
    )
    call = await parse(CHAT, inbound)
    return asked, msgspec.structs.replace(call, output_field="max_tokens")


async def count_tokens(request: web.Request) -> web.Response:
    """``POST /v1/messages/count_tokens``: an estimate, from the length of what was sent."""
    await authenticate(request)
    content = await read_body(request)
    tokens = await read_large(len(content), anthropic.estimate_tokens, content)
    return json_response(TokenCount(tokens))
