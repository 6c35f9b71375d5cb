"""Connections to Venice: whatever comes together, the end of an answer is read."""

import asyncio

import aiohttp
import pytest

from service.upstream.connector import Connector

MOST_CHUNKS = 16_384
"""So many that wait to be read have aiohttp tell a connection to wait."""
LAST = b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"


@pytest.mark.parametrize("count", [1, 200, MOST_CHUNKS, MOST_CHUNKS + 1, MOST_CHUNKS + 2])
async def test_a_slow_reader_gets_all_of_an_answer(count):
    """Also when the chunk that was one too many is the last that has come."""
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
