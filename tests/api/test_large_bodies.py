"""Bodies that are large, or slow to parse for their size, do not delay other callers."""

import asyncio
import json
import threading
from io import BytesIO

import pytest
from support import MODEL

from service.gateway import CHAT, Inbound, parse

pytestmark = pytest.mark.shares_service

MANY_MEMBERS = b'{"model":"%b"%b}' % (MODEL.encode(), b',"a":1' * 250_000)
MANY_MESSAGES = b'{"model":"%b","max_tokens":9,"input":"x","messages":[%b]}' % (
    MODEL.encode(),
    b",".join([b'{"role":"user","content":""}'] * 84_000),
)
DEEP = b'{"model":"%b","messages":%b' % (MODEL.encode(), b"[" * 250_001)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/decisions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/image/generate",
        "/v1/image/edit",
        "/v1/audio/speech",
        "/v1/video/queue",
        "/v1/video/retrieve",
        "/v1/quote",
        "/v1/crypto/rpc/base-mainnet",
        "/v1/augment/search",
    ],
)
async def test_a_body_that_is_slow_to_parse_is_refused(caller, upstream, path):
    """A body that is slow to parse is refused on every route, in the caller's API format, before it
    is parsed."""
    headers = {**caller.headers, "Content-Type": "application/json"}
    for content, status, rule in (
        (MANY_MEMBERS, 413, "250,000 values"),
        (MANY_MESSAGES, 413, "250,000 values"),
        (DEEP, 413, "250,000 values"),
        (b'{"model":"m","mod\\u0065l":"m"}', 400, "model: is there twice"),
    ):
        async with caller.service.http.post(
            path, data=BytesIO(content), headers=headers
        ) as response:
            error = (await response.json())["error"]
        assert (response.status, rule in error["message"]) == (status, True), error
    assert not [call for call in upstream.calls if call.method == "POST"]


class Recording(type(CHAT)):
    """Chat completions that record the thread in which they are parsed."""

    def __init__(self):
        self.threads = []

    def parse(self, inbound):
        self.threads.append(threading.current_thread())
        return super().parse(inbound)


async def test_large_bodies_are_read_outside_the_event_loop():
    """Large bodies are parsed in another thread, small ones in the event loop."""
    endpoint = Recording()
    for length in (1_000, 1_000_000):
        content = json.dumps(
            {"model": MODEL, "messages": [{"role": "user", "content": "x" * length}]}
        ).encode()
        inbound = Inbound(content=content, request_id="r", headers={})
        call = await parse(endpoint, inbound)
        assert call.body == content

    small, large = endpoint.threads
    assert small is threading.main_thread()
    assert large is not threading.main_thread()


@pytest.mark.parametrize(
    ("members", "is_located"),
    [({}, False), ({"max_tokens": 5}, False), ({"user": "u"}, True), ({"anon_user_id": "u"}, True)],
)
async def test_members_to_replace_are_located_with_a_large_body(members, is_located):
    """The members of a large body are located in the other thread if one of them is replaced in
    every call. If none is, the body is not looked through once more."""
    message = {"role": "user", "content": "x" * 1_000_000}
    content = json.dumps({"model": MODEL, "messages": [message], **members}).encode()
    call = await parse(CHAT, Inbound(content=content, request_id="r", headers={}))

    assert (call.document.spans is not None) == is_located


async def test_the_service_responds_while_a_large_body_is_parsed(caller):
    """Small calls are answered while a large body is parsed."""
    big = json.dumps({"role": "user", "content": [{"type": "text", "text": "a, b"}] * 60_000})
    content = b'{"model":"%b","messages":[%b]}' % (MODEL.encode(), big.encode())
    headers = {**caller.headers, "Content-Type": "application/json"}

    async def quote():
        quoted = caller.service.http.post("/v1/quote", data=BytesIO(content), headers=headers)
        async with quoted as response:
            return response.status

    large, answered = asyncio.create_task(quote()), 0
    while not large.done():
        async with caller.chat() as response:
            assert response.status == 200
        answered += 1
    assert await large == 200
    assert answered > 1


async def test_a_lone_surrogate_passes_unchanged(caller, upstream):
    """A lone surrogate, which JavaScript sends for a truncated text, passes unchanged; a translated
    body has a replacement character."""
    headers = {**caller.headers, "Content-Type": "application/json"}
    content = rb'{"model":"%b","max_tokens":9,"messages":[{"role":"user","content":"a \ud83d b"}]}'
    content %= MODEL.encode()
    for path, sent in (
        ("/v1/chat/completions", rb'"a \ud83d b"'),
        ("/v1/messages", '"a \ufffd b"'.encode()),
    ):
        async with caller.service.http.post(
            path, data=BytesIO(content), headers=headers
        ) as response:
            assert response.status == 200, await response.text()
        assert sent in upstream.calls.to("/chat/completions")[-1].body
