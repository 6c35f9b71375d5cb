"""A cancelled request of the HTTP client leaves no place taken and no connection in use."""

import asyncio
import contextlib
import random

import pytest
from raw_server import answer, lab

from service.errors import UpstreamError
from service.upstream.http import StreamedBody

REQUESTS = 200
MAX_CONNECTIONS = 4


async def parts(rng):
    """Yield a body of any number of parts."""
    for _ in range(rng.choice((0, 1, 5))):
        await asyncio.sleep(rng.random() / 500)
        yield b"y" * rng.choice((1, 100_000))


async def read_chunked(reader):
    """Read a chunked body."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


async def request(here, rng):
    """Send a request with any body, and read any part of its response."""
    body = rng.choice((b"{}", b"q" * 1_000_000, StreamedBody(parts(rng), None)))
    with contextlib.suppress(UpstreamError):
        response = await here.send(body=body)
        with contextlib.closing(response):
            while rng.random() < 0.95 and await response.next_chunk():
                pass


async def cancel(task, rng):
    """Cancel a task after any number of turns of the event loop, or after a moment."""
    for _ in range(rng.randrange(15)):
        await asyncio.sleep(0)
    if rng.random() < 0.5:
        await asyncio.sleep(rng.random() / 20)
    task.cancel()


@pytest.mark.parametrize("given", ["connection", "place"])
async def test_what_a_cancelled_request_was_given_is_free_again(given):
    """A request that is cancelled just as its turn comes gives on what it got."""
    async with lab(answer(), max_connections=1) as here:
        await here.call()
        connection = here.pool.take()
        waiting = asyncio.create_task(here.call())
        async with asyncio.timeout(5):
            while not here.pool._waiting:
                await asyncio.sleep(0)
        if given == "connection":
            here.pool.give_back(connection)
        else:
            connection.abort()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await here.call() == (200, b"ok")
    assert here.server.connections == (1 if given == "connection" else 2)


async def test_a_cancelled_request_ends_no_others_lookup(monkeypatch):
    """Requests share the lookup of a name, and each can be cancelled alone."""
    async with lab(answer()) as here:
        loop, may_resolve = asyncio.get_running_loop(), asyncio.Event()
        resolve = loop.getaddrinfo

        async def getaddrinfo(*arguments, **others):
            await may_resolve.wait()
            return await resolve(*arguments, **others)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        first, second = (asyncio.create_task(here.call()) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        may_resolve.set()
        assert await second == (200, b"ok")


async def test_cancelling_anywhere_leaves_nothing_behind():
    """Whatever the server does, every request ends and all places are free for the next ones."""
    rng = random.Random(1)

    async def script(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            mode = rng.choice(("whole", "whole", "early", "cut", "partial", "last"))
            if mode == "cut":
                return
            if mode == "early":
                writer.write(answer())
            if b"chunked" in head:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * (mode != "early"))
                await read_chunked(reader)
            else:
                size = int(head.partition(b"Content-Length: ")[2].split()[0])
                await reader.readexactly(size)
            await asyncio.sleep(rng.random() / 200)
            content = answer(b"z" * rng.choice((0, 10, 500_000)))
            if mode in ("partial", "last"):
                writer.write(content[:-1] if mode == "partial" else b"HTTP/1.1 200 OK\r\n\r\nok")
                return
            if mode == "whole":
                writer.write(content)

    limits = {"max_connections": MAX_CONNECTIONS, "connect_s": 10.0, "silence_s": 10.0}
    async with lab(script, **limits) as here:
        tasks = []
        for _ in range(REQUESTS):
            tasks.append(asyncio.create_task(request(here, rng)))
            if rng.random() < 0.6:
                tasks.append(asyncio.create_task(cancel(tasks[-1], rng)))
            await asyncio.sleep(rng.random() / 100)
            pool = here.pool if here.client._pools else None
            assert pool is None or len(pool._connections) + pool._dialing <= MAX_CONNECTIONS
        async with asyncio.timeout(20):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        assert (pool._dialing, len(pool._waiting)) == (0, 0)
        assert pool._connections == set(pool._idle)
        # The server still notices the last closed connections.
        await asyncio.sleep(0.3)
