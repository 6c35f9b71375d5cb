"""Plays any bytes to one connection of the HTTP client, piece by piece, and checks what must hold
whatever they are."""

import asyncio
import re

from raw_server import LIMITS

from service.errors import UpstreamError
from service.upstream.http.connection import Connection
from service.upstream.response import UpstreamResponse

TIMEOUT_S = 5.0
HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n((?:[^\r\n:]+:[^\r\n]*\r\n)*)\r\n")
CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\r\n]*)?\r\n")
TRAILERS = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n")

# What random bytes would seldom contain.
PARTS_OF_RESPONSES = [
    *(b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK", b"103 Early", b"204 No", b"101 Switch"),
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0", b"1", b"5", b"ff", b";"),
    *(b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Connection: close"),
    *(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"a", b"abc", b"1\r\na\r\n", b"0\r\n\r\n", b"X: y\r\n"),
]


class Wire(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self, protocol):
        super().__init__()
        self.protocol = protocol
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._is_closing = False

    def write(self, data):
        assert not self._is_closing

    def pause_reading(self):
        self.may_read.clear()

    def resume_reading(self):
        self.may_read.set()

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self._is_closing

    def close(self):
        if not self._is_closing:
            self._is_closing = True
            self.may_read.set()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class Keeper:
    """Plays the pool: notes which connections are given back and which are forgotten."""

    limits = LIMITS

    def __init__(self):
        self.idle = set()

    def give_back(self, connection):
        self.idle.add(connection)

    def forget(self, connection):
        self.idle.discard(connection)


async def play(pieces, method="POST", *, ends=True):
    """Answer one request with the pieces and return ``(status, body, error, is_kept)``."""
    loop, keeper = asyncio.get_running_loop(), Keeper()
    connection = Connection(keeper, loop)
    wire = Wire(connection)
    connection.connection_made(wire)
    response = UpstreamResponse(connection, loop.create_future(), has_body=method != "HEAD")
    connection.send(response, b"", b"", LIMITS.connect_s + LIMITS.silence_s)
    reading = asyncio.create_task(_read(response))
    played = b""
    async with asyncio.timeout(TIMEOUT_S):
        for piece in pieces:
            await wire.may_read.wait()
            if wire.is_closing():
                break
            connection.data_received(piece)
            played += piece
            if connection in keeper.idle:
                _check_end(played, method)
        await asyncio.sleep(0)
        is_kept = connection in keeper.idle
        if ends:
            await wire.may_read.wait()
            connection.eof_received()
            wire.close()
        body, error = await reading
    wire.close()
    await asyncio.sleep(0)
    return response.status, body, error, is_kept


async def _read(response):
    """Read a response to its end. Nothing but the service's own errors may come."""
    body = b""
    try:
        await response.waiter
        while not response.unread_bytes and not response.is_complete:
            await response.renew_waiter()
        while chunk := await response.next_chunk():
            body += chunk
    except UpstreamError as error:
        return body, type(error)
    finally:
        response.close()
    return body, None


def _check_end(played, method):
    """Check that a kept connection has no bytes left that a next response could begin with."""
    at = 0
    while (head := HEAD.match(played, at)) is not None and head[1].startswith(b"1"):
        at = head.end()
    assert head is not None, "a connection is kept without a valid head"
    at = head.end()
    fields = head[2].lower()
    if b"transfer-encoding" in fields and head[1] not in (b"204", b"304"):
        while size := int((chunk := CHUNK.match(played, at))[1], 16):
            at = chunk.end() + size + 2
        at = TRAILERS.match(played, chunk.end()).end()
    elif head[1] not in (b"204", b"304"):
        at += int(re.search(rb"(?m)^content-length:[ \t]*(\d+)[ \t]*\r?$", fields)[1])
    assert method != "HEAD", "a connection is kept after HEAD"
    # Empty lines between responses belong to none: RFC 9112, section 2.2.
    assert played[at:].strip(b"\r\n") == b"", "a connection is kept with unread bytes"
