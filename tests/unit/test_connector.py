"""The connections to Venice deliver the end of a response however its chunks arrive."""

import asyncio

import aiohttp
import pytest

from service.upstream.connector import Connector

MOST_CHUNKS = 16_384
"""aiohttp pauses reading when more chunks than this wait to be read."""
LAST = b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"


@pytest.mark.parametrize("count", [1, 200, MOST_CHUNKS, MOST_CHUNKS + 1, MOST_CHUNKS + 2])
async def test_a_slow_reader_gets_the_whole_response(count):
    """A slow reader gets the whole response, even if the chunk that paused reading was the last."""
    is_read = asyncio.Event()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"2\r\nab\r\n" * count)
        await asyncio.sleep(0.3)
        writer.write(LAST)
        await is_read.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        aiohttp.ClientSession(connector=Connector(), auto_decompress=False) as session,
        session.get(f"http://127.0.0.1:{port}/") as response,
    ):
        await asyncio.sleep(0.2)
        content = b""
        async with asyncio.timeout(5):
            while chunk := await response.content.readany():
                content += chunk
        is_read.set()

    assert content == b"ab" * count + b"firstsecond"
