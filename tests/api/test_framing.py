"""The service frames an upload by what it really sends, so that no part of it can become the next
request on the connection."""

import asyncio
import contextlib
import functools
import gzip
import math
import random
import re

import aiohttp
import pytest
from support import make_settings, running

MEBIBYTE = 1024 * 1024
NOISE = random.Random(1).randbytes(2 * MEBIBYTE)
packed = functools.partial(gzip.compress, mtime=0)
URL = "/v1/augment/text-parser"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
ANSWER = b'{"text": "a", "tokens": 1}'
PLAIN_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(ANSWER), ANSWER)
)


class Venice:
    """A Venice that keeps connections open and collects the bodies of uploads as they are framed.

    ``answers_after`` makes it answer an upload after so many bytes, and read on.
    """

    def __init__(self):
        self.heads = []
        self.bodies = []
        self.answers_after = None

    async def serve(self, reader, writer):
        """Serve one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answers_after = None
                if b"text-parser" in head:
                    self.heads.append(head)
                    self.bodies.append(bytearray())
                    answers_after = self.answers_after
                    async for piece in _pieces_of_frame(reader, head.lower()):
                        self.bodies[-1] += piece
                        if answers_after is not None and len(self.bodies[-1]) >= answers_after:
                            writer.write(PLAIN_ANSWER)
                            answers_after = math.inf
                if answers_after is None:
                    writer.write(PLAIN_ANSWER)
                await writer.drain()
        writer.close()


async def _pieces_of_frame(reader, head):
    """Yield the pieces of the body of a request with this head."""
    left = int((re.findall(rb"content-length: (\d+)", head) or [0])[0])
    is_chunked = b"transfer-encoding: chunked" in head
    while left or is_chunked:
        if not left:
            left = int(await reader.readuntil(b"\r\n"), 16)
            if not left:
                await reader.readexactly(2)
                return
        piece = await reader.read(left)
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece
        if is_chunked and not left:
            await reader.readexactly(2)


@pytest.fixture
async def venice():
    """A running framing Venice."""
    venice = Venice()
    server = await asyncio.start_server(venice.serve, "127.0.0.1", 0, limit=64 * MEBIBYTE)
    venice.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield venice
    server.close()


@pytest.fixture
async def service(database_address, venice):
    """A service before this Venice."""
    settings = make_settings(database_address, venice.url)
    async with running(settings, knows_models=False) as service:
        yield service
        await service.audit()


async def pieces(content, pause=None):
    """Yield the body in pieces, with a pause before the last."""
    for at in range(0, len(content), 65_536):
        if pause is not None and at + 65_536 >= len(content):
            await pause.wait()
        yield content[at : at + 65_536]


@pytest.mark.parametrize("content", [NOISE, NOISE + b"x" * 5 * MEBIBYTE], ids=["noise", "text"])
@pytest.mark.parametrize("coding", ["gzip", None])
@pytest.mark.parametrize("with_length", [True, False])
async def test_the_frame_is_that_of_the_sent_bytes(
    service, caller, venice, content, coding, with_length
):
    """The upload has the length of its bytes where it is known, else chunked encoding, and no
    connection header of the caller's."""
    body = packed(content) if coding else content
    headers = {**caller.headers, **FORM}
    if coding:
        headers["Content-Encoding"] = coding
    if with_length:
        headers["Content-Length"] = str(len(body))
    async with service.http.post(
        URL, data=pieces(body), headers=headers, expect100=with_length
    ) as response:
        assert response.status == 200

    head = venice.heads[0].lower()
    assert venice.bodies == [content]
    assert (b"content-length: %d\r\n" % len(content) in head) == (with_length and not coding)
    assert (b"transfer-encoding: chunked" in head) == (bool(coding) or not with_length)
    for name in (b"content-encoding:", b"trailer:", b"te:"):
        assert b"\r\n" + name not in head
    # Rialto's own, whether or not the caller sent one.
    assert re.findall(rb"\r\nexpect:[^\r]*", head) == [b"\r\nexpect: 100-continue"]


@pytest.mark.parametrize("coding", ["gzip", None])
@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("answers_after", [1, len(NOISE)])
async def test_no_other_request_becomes_part_of_a_body(
    service, caller, venice, coding, with_length, answers_after
):
    """When Venice answers before the whole upload arrived, the next request is not read as its
    rest."""
    venice.answers_after = answers_after
    body = packed(NOISE) if coding else NOISE
    headers = {**caller.headers, **FORM}
    if coding:
        headers["Content-Encoding"] = coding
    if with_length:
        headers["Content-Length"] = str(len(body))
    pause = asyncio.Event() if answers_after == 1 else None
    async with service.http.post(URL, data=pieces(body, pause), headers=headers) as response:
        assert (response.status, await response.read()) == (200, ANSWER)
        for _ in range(3):
            async with service.http.get("/v1/image/styles", headers=caller.headers) as other:
                assert other.status == 200
    if pause is not None:
        pause.set()

    assert len(venice.bodies) == 1
    assert NOISE.startswith(venice.bodies[0])


@pytest.mark.parametrize("how", ["hang-up", "bad-coding", "too-large"])
async def test_a_failed_upload_does_not_reach_the_next_request(service, caller, venice, how):
    """An upload that fails on the caller's side leaves no bytes that become part of another
    request."""
    body = packed(NOISE + b"y" * 40 * MEBIBYTE if how == "too-large" else NOISE)
    if how == "bad-coding":
        body = body[: len(body) // 2] + b"no gzip" * 100_000
    headers = {**caller.headers, **FORM, "Content-Encoding": "gzip"}
    pause = asyncio.Event() if how == "hang-up" else None

    async def post():
        async with service.http.post(URL, data=pieces(body, pause), headers=headers) as response:
            return response.status

    asking = asyncio.create_task(post())
    async with asyncio.timeout(10):
        while not venice.heads and not asking.done():
            await asyncio.sleep(0.01)
        if how == "hang-up":
            asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            assert await asking in (400, 413)
        while not await caller.entries():
            await asyncio.sleep(0.01)
    for _ in range(3):
        async with service.http.get("/v1/image/styles", headers=caller.headers) as other:
            assert other.status == 200

    assert (await caller.only_entry())["cost_source"] == "not_charged"
    (unfinished,) = venice.bodies
    assert b"/image/styles" not in unfinished
