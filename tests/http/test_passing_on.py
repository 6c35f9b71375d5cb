"""How a response's body goes to a sink while it arrives."""

import asyncio
import contextlib
import contextvars
import random

import pytest

from service.upstream.http import HttpClient
from service.upstream.http.connection import Limits
from service.upstream.response import UpstreamResponse

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
LIMITS = Limits(
    connect_s=5, silence_s=5, upload_s=5, head_max_bytes=65_536, max_headers=100, max_connections=10
)
READER = contextvars.ContextVar("READER", default="another")


class Sent:
    """A server that sends what the test has it send, as chunks of HTTP."""

    def __init__(self):
        self.writers = asyncio.Queue()
        self.serving = set()

    async def serve(self, reader, writer):
        self.serving.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        self.writers.put_nowait(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()


class Sink:
    """Takes chunks. ``room`` is how many it takes before it has to be waited for."""

    def __init__(self, room=1_000_000):
        self.chunks, self.room, self.drains, self.readers = [], room, 0, set()
        self.arrived = asyncio.Event()

    def write(self, chunk):
        self.readers.add(READER.get())
        self.chunks.append(chunk)
        self.arrived.set()
        return len(self.chunks) % self.room != 0

    async def drain(self):
        written = len(self.chunks)
        await asyncio.sleep(0.005)
        assert len(self.chunks) == written
        self.drains += 1


@pytest.fixture
async def passing():
    """Begins to pass a body to a sink; gives the task, the response and the server's writer."""
    sent = Sent()
    server = await asyncio.start_server(sent.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = HttpClient(UpstreamResponse, LIMITS, {})

    async def begin(sink):
        response = await client.send("POST", url, "/", {}, b"")
        READER.set("this one")
        return asyncio.create_task(response.pass_to(sink)), response, await sent.writers.get()

    yield begin
    await client.close()
    server.close()
    await asyncio.wait(sent.serving)


def framed(chunk):
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


@pytest.mark.parametrize("room", [1, 3, 1_000_000])
async def test_every_byte_arrives_in_order(passing, room):
    """Whether chunks are small or large, come singly or together, and the sink has room or not:
    nothing is written to it while it has to be waited for."""
    numbers = random.Random(room)
    chunks = [numbers.randbytes(numbers.choice((1, 200, 20_000, 300_000))) for _ in range(40)]
    sink = Sink(room)
    task, response, writer = await passing(sink)

    for chunk in chunks:
        writer.write(framed(chunk))
        if numbers.random() < 0.5:
            await asyncio.sleep(0.001)
    writer.write(END)
    await asyncio.wait_for(task, 20)

    assert b"".join(sink.chunks) == b"".join(chunks)
    assert sink.drains == len(sink.chunks) // room
    assert response.is_complete


async def test_a_chunk_that_arrives_wakes_no_task(passing):
    """The connection itself gives it to the sink, in the context of who reads the response."""
    sink = Sink()
    task, _, writer = await passing(sink)
    writer.write(framed(b"first"))
    await sink.arrived.wait()
    waits = task.get_coro().cr_await

    for number in range(5):
        sink.arrived.clear()
        writer.write(framed(b"%d" % number))
        await asyncio.wait_for(sink.arrived.wait(), 5)

    assert task.get_coro().cr_await is waits
    assert sink.chunks == [b"first", b"0", b"1", b"2", b"3", b"4"]
    assert sink.readers == {"this one"}
    writer.write(END)
    await asyncio.wait_for(task, 5)


async def test_a_sink_that_fails_ends_the_passing(passing):
    """Its error is raised where the response is read, and it gets nothing more."""

    class Gone(Sink):
        def write(self, chunk):
            if super().write(chunk) and len(self.chunks) == 2:
                raise ConnectionResetError("gone")
            return True

    sink = Gone()
    task, response, writer = await passing(sink)
    for number in range(4):
        writer.write(framed(b"%d" % number))
        await asyncio.sleep(0.01)

    with pytest.raises(ConnectionResetError, match="gone"):
        await asyncio.wait_for(task, 5)

    assert sink.chunks == [b"0", b"1"]
    # What came after it can still be read, as for the books.
    assert await response.next_chunk() == b"23"
    response.close()


async def test_a_passing_that_is_cancelled_leaves_the_rest_to_be_read(passing):
    """Nothing more goes to the sink, and no byte is lost."""
    sink = Sink()
    task, response, writer = await passing(sink)
    writer.write(framed(b"first"))
    await sink.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    writer.write(framed(b"second") + END)

    assert await response.next_chunk() == b"second"
    assert await response.next_chunk() == b""
    assert sink.chunks == [b"first"]
