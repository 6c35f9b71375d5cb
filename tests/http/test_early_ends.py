"""The HTTP client, when a server answers or closes before it has read the request, and when the
client itself is closed."""

import asyncio
import contextlib
import math
import time

import pytest
from http_wire import Wire
from raw_server import answer, lab

from service.errors import UpstreamCut, UpstreamUnreachable
from service.upstream.http import Departure, StreamedBody
from service.upstream.http.deadline import Deadline
from service.upstream.http.upload import Upload

LARGE = b"x" * 20_000_000
"""More than the system's buffers hold."""


async def parts(body):
    """Yield a body in parts."""
    for start in range(0, len(body), 60_000):
        yield body[start : start + 60_000]


@pytest.mark.parametrize("is_tls", [False, True])
async def test_no_request_waits_behind_a_body_that_is_not_read(is_tls, contexts):
    """A connection with an answer to a body that is not sent whole serves no other request."""

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"no", "413 Too Large"))
        writer.transport.pause_reading()
        await asyncio.sleep(60)

    server, client = contexts if is_tls else (None, None)
    async with lab(script, server_context=server, context=client) as here:
        for count in (1, 2):
            assert await here.call(body=LARGE) == (413, b"no")
            assert here.pool._connections == set()
            assert here.server.connections == count


@pytest.mark.parametrize(
    "response",
    [answer(b"no", "413 Too Large", "Connection: close"), b"HTTP/1.1 413 Too Large\r\n\r\nno"],
)
@pytest.mark.parametrize("is_tls", [False, True])
async def test_the_rest_of_a_body_is_dropped(response, is_tls, contexts):
    """When the last answer of a connection comes early, the connection ends at once, whether the
    server reads on or not."""
    received = []

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        if b"Content-Length" not in response:
            writer.write_eof() if writer.can_write_eof() else writer.close()
        writer.transport.pause_reading()
        await asyncio.sleep(0.2)
        writer.transport.resume_reading()
        with contextlib.suppress(OSError):
            while part := await reader.read(len(LARGE)):
                received.append(part)
        ended.set()

    ended = asyncio.Event()
    server, client = contexts if is_tls else (None, None)
    async with lab(script, server_context=server, context=client) as here:
        assert await here.call(body=LARGE) == (413, b"no")
        async with asyncio.timeout(5):
            await ended.wait()
    assert sum(map(len, received)) < len(LARGE)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_server_that_closes_its_side_alone(is_streamed):
    """It cannot answer any more, so the request fails at once, though it was not sent whole."""

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.2)
        writer.write_eof()
        await asyncio.sleep(60)

    async with lab(script, silence_s=10.0) as here:
        body = StreamedBody(parts(LARGE), len(LARGE)) if is_streamed else LARGE
        departure, began = Departure(), time.monotonic()
        with pytest.raises(UpstreamCut):
            await here.send(body=body, departure=departure)
        assert departure.has_left
        assert time.monotonic() - began < 3
        assert here.pool._connections == set()


async def test_closing_the_client_ends_every_request():
    """Those that were sent are cut; those that wait for a connection are unsent."""

    async def script(reader, writer):
        await here.server.read(reader)
        if here.server.connections == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na")
        await asyncio.sleep(60)

    async def read_on():
        while await response.next_chunk():
            pass

    async with lab(script, max_connections=3, connect_s=5.0, silence_s=5.0) as here:
        response = await here.send()
        departures = [Departure() for _ in range(3)]
        requests = [asyncio.create_task(read_on())]
        requests += [asyncio.create_task(here.send(departure=one)) for one in departures]
        await asyncio.sleep(0.1)
        await here.client.close()
        async with asyncio.timeout(2):
            ends = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(end) for end in ends] == [UpstreamCut] * 3 + [UpstreamUnreachable]
        assert [one.has_left for one in departures] == [True, True, False]
        with pytest.raises(UpstreamUnreachable):
            await here.send()
        assert here.pool._connections == set()
        assert here.pool._dialing == 0


async def test_closing_the_client_ends_a_request_that_is_connecting():
    """Its connection is closed as soon as it is made, and nothing is sent."""
    async with lab(answer(b"ok", "200 OK", "Connection: close")) as here:
        # The name is known then, so the next request is not ended by the end of its lookup.
        await here.call()
        departure = Departure()
        sending = asyncio.create_task(here.send(departure=departure))
        async with asyncio.timeout(5):
            while not here.pool._dialing:
                await asyncio.sleep(0)
        await here.client.close()
        with pytest.raises(UpstreamUnreachable):
            await sending
        assert not departure.has_left
        assert here.pool._connections == set()


async def test_an_upload_lets_a_paused_deadline_rest():
    """While the reader of an early answer is slow, no silence is counted, whatever is sent."""
    deadline = Deadline(asyncio.get_running_loop(), 1.0, lambda: None)
    upload = Upload(StreamedBody(parts(b"ab"), 2))
    upload.begin()
    deadline.pause()
    await upload.send(Wire(None), deadline)
    assert upload.is_whole
    assert deadline.active_at == math.inf


async def test_a_response_that_another_task_closes():
    """Its reader fails at once."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na")
        await asyncio.sleep(60)

    async with lab(script) as here:
        response = await here.send()
        assert await response.next_chunk() == b"a"
        reading = asyncio.create_task(response.next_chunk())
        await asyncio.sleep(0)
        response.close()
        async with asyncio.timeout(1):
            with pytest.raises(UpstreamCut):
                await reading
