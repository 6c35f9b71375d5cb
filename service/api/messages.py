"""The routes of Anthropic's clients."""

import functools

import msgspec
from aiohttp import web

from service import anthropic
from service.accounts import Caller
from service.api.auth import authenticate
from service.api.requests import Request
from service.api.state import CATALOG, GATEWAY
from service.api.wire import json_response, read_body, relay
from service.gateway import CHAT, Call, Inbound, parse, read_large


class TokenCount(msgspec.Struct):
    """The estimated number of tokens in the input."""

    input_tokens: int


async def create(request: Request) -> web.StreamResponse:
    """``POST /v1/messages``: a chat completion in Anthropic's format."""
    caller = await authenticate(request)
    call = await read_call(request, caller)
    context = request.app[GATEWAY].call(caller, call)
    request.relay = context.relay
    async with context as answer:
        return await relay(request, answer)


async def read_call(request: Request, caller: Caller) -> Call:
    """Translate a request in Anthropic's format into a chat completion.

    :raises ClientError: naming the field and the rule.
    """
    content = await read_body(request)
    size_bytes = len(content)
    message = await read_large(size_bytes, anthropic.decode, content)
    catalog = request.app[CATALOG]
    first, *_ = catalog.targets(
        caller.organization_id, message.model, caller.allowed_models, "text"
    )
    takes_effort = catalog.can(first, "supportsReasoningEffort")
    translate = functools.partial(anthropic.chat_request, takes_effort=takes_effort)
    chat = await read_large(size_bytes, translate, message)
    inbound = Inbound(
        content=chat.body,
        request_id=request.request_id,
        headers=request.headers,
        settings=caller.settings,
    )
    call = await parse(CHAT, inbound)
    translation = functools.partial(
        anthropic.MessageEvents,
        with_thinking=message.wants_thinking,
        input_estimate=chat.input_estimate,
    )
    return msgspec.structs.replace(call, output_field="max_tokens", translation=translation)


async def count_tokens(request: Request) -> web.Response:
    """``POST /v1/messages/count_tokens``: an estimate from the length of the body."""
    await authenticate(request)
    content = await read_body(request)
    tokens = await read_large(len(content), anthropic.estimate_tokens, content)
    return json_response(TokenCount(tokens))
