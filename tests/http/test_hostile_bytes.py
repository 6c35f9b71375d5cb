"""Responses that two parsers could read differently, and requests that would inject something, are
refused by the HTTP client."""

import asyncio
import contextlib

import pytest
from raw_server import LIMITS, answer, lab

from service.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from service.upstream.http import Departure, InvalidRequestError
from service.upstream.http.errors import InvalidResponse

OK = b"HTTP/1.1 200 OK\r\n"
CL = b"Content-Length: 2\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
NEXT = answer(b"stolen")

INVALID = {
    # Two ways to find the end of the body.
    "length and chunks": OK + CL + TE + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "chunks and length": OK + TE + CL + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": OK + CL + b"Content-Length: 3\r\n\r\nok",
    "the same length twice": OK + CL + CL + b"\r\nok",
    "two lengths in one header": OK + b"Content-Length: 2, 2\r\n\r\nok",
    "chunked twice": OK + TE + TE + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice in one header": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\nok",
    "another coding after chunked": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\nok",
    "chunks of HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + TE + b"\r\n2\r\nok\r\n0\r\n\r\n",
    # Lengths.
    "a negative length": OK + b"Content-Length: -2\r\n\r\nok",
    "a length with a plus": OK + b"Content-Length: +2\r\n\r\nok",
    "a length with a space": OK + b"Content-Length: 2 2\r\n\r\nok",
    "a hexadecimal length": OK + b"Content-Length: 0x2\r\n\r\nok",
    "a huge length": OK + b"Content-Length: 9999999999999999999999\r\n\r\nok",
    "a length of other digits": OK + "Content-Length: ٢\r\n\r\nok".encode(),
    "an empty length": OK + b"Content-Length:\r\n\r\nok",
    # Chunks.
    "a negative chunk": OK + TE + b"\r\n-2\r\nok\r\n0\r\n\r\n",
    "a chunk size with 0x": OK + TE + b"\r\n0x2\r\nok\r\n0\r\n\r\n",
    "a chunk size with a plus": OK + TE + b"\r\n+2\r\nok\r\n0\r\n\r\n",
    "a chunk size and a space": OK + TE + b"\r\n2 \r\nok\r\n0\r\n\r\n",
    "a huge chunk size": OK + TE + b"\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n",
    "a chunk size that is none": OK + TE + b"\r\nzz\r\nok\r\n0\r\n\r\n",
    "an empty chunk size": OK + TE + b"\r\n\r\nok\r\n0\r\n\r\n",
    "a chunk longer than its size": OK + TE + b"\r\n1\r\nok\r\n0\r\n\r\n",
    "a bare LF after a chunk size": OK + TE + b"\r\n2\nok\r\n0\r\n\r\n",
    "a bare LF after a chunk": OK + TE + b"\r\n2\r\nok\n0\r\n\r\n",
    "a bare LF in an extension": OK + TE + b"\r\n2;a\nb\r\nok\r\n0\r\n\r\n",
    "a NUL in an extension": OK + TE + b"\r\n2;a\0b\r\nok\r\n0\r\n\r\n",
    "a bare LF after a trailer": OK + TE + b"\r\n2\r\nok\r\n0\r\nX: y\n\r\n",
    "a folded trailer": OK + TE + b"\r\n2\r\nok\r\n0\r\nX: y\r\n z\r\n\r\n",
    "a length as a trailer": OK + TE + b"\r\n2\r\nok\r\n0\r\nContent-Length: 2\r\n\r\n",
    "an endless extension": OK + TE + b"\r\n2;" + b"a" * 300_000,
    "endless trailers": OK + TE + b"\r\n2\r\nok\r\n0\r\n" + b"X: yyyyyyyyy\r\n" * 20_000,
    # Lines of the head.
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "a bare LF in a value": OK + b"X: a\nY: b\r\n" + CL + b"\r\nok",
    "a bare LF before the end": OK + CL + b"\n\r\nok",
    "a bare CR": OK + b"X: a\rY: b\r\n" + CL + b"\r\nok",
    "a folded header": OK + b"X: a\r\n b\r\n" + CL + b"\r\nok",
    "a folded length": OK + b"Content-Length:\r\n 2\r\n\r\nok",
    "a space before a colon": OK + b"Content-Length : 2\r\n\r\nok",
    "a space before a name": OK + b" Content-Length: 2\r\n\r\nok",
    "a line without a colon": OK + b"Content-Length\r\n" + CL + b"\r\nok",
    "an empty name": OK + b": a\r\n" + CL + b"\r\nok",
    "a NUL in a value": OK + b"X: a\0b\r\n" + CL + b"\r\nok",
    "a NUL in a name": OK + b"X\0: a\r\n" + CL + b"\r\nok",
    "a control character": OK + b"X: a\x1bb\r\n" + CL + b"\r\nok",
    "a name that is not ASCII": OK + b"X\xff: a\r\n" + CL + b"\r\nok",
    # Status lines.
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2": b"HTTP/2 200\r\n" + CL + b"\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + CL + b"\r\nok",
    "another protocol": b"RTSP/1.0 200 OK\r\n" + CL + b"\r\nok",
    "a status of two digits": b"HTTP/1.1 99 Odd\r\n" + CL + b"\r\nok",
    "a status of four digits": b"HTTP/1.1 2000 Odd\r\n" + CL + b"\r\nok",
    "a status of zeros": b"HTTP/1.1 000 Odd\r\n" + CL + b"\r\nok",
    "two spaces before the status": b"HTTP/1.1  200 OK\r\n" + CL + b"\r\nok",
    "an empty line first": b"\r\n" + answer(),
    "no status line": b"Content-Length: 2\r\n\r\nok",
    "an unsolicited 101": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "an informational response of HTTP/1.0": b"HTTP/1.0 103 Early\r\n\r\n" + answer(),
    "an informational response with a body": b"HTTP/1.1 103 Early\r\n" + CL + b"\r\nok" + answer(),
    # Heads that are too large.
    "a long header": OK + b"X: " + b"x" * LIMITS.head_max_bytes + b"\r\n" + CL + b"\r\nok",
    "a long reason": b"HTTP/1.1 200 " + b"x" * LIMITS.head_max_bytes + b"\r\n" + CL + b"\r\nok",
    "an endless head": OK + b"X: y\r\n" * LIMITS.head_max_bytes,
    "an endless line": OK + b"X: " + b"y" * 2 * LIMITS.head_max_bytes,
    "too many headers": OK + b"X: y\r\n" * LIMITS.max_headers + CL + b"\r\nok",
    # More than one response.
    "bytes after a length": answer() + b"x",
    "a response after a length": answer() + NEXT,
    "a response after chunks": OK + TE + b"\r\n2\r\nok\r\n0\r\n\r\n" + NEXT,
    "a body of 204": b"HTTP/1.1 204 No\r\n" + CL + b"\r\nok",
    "a body of 304": b"HTTP/1.1 304 No\r\n" + CL + b"\r\nok",
    "bytes after the last response": answer(b"ok", "200 OK", "Connection: close") + b"x",
}


def serving(response, *, is_slow=False):
    """Return a script that sends the response once, and a valid one to any other connection."""

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        for piece in (
            [response[at : at + 1] for at in range(len(response))] if is_slow else [response]
        ):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    return script


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_response_is_refused(name):
    """It fails at once, counts as sent, and ends its connection."""
    async with lab(serving(INVALID[name]), silence_s=10.0) as here:
        departure = Departure()
        async with asyncio.timeout(3):
            with pytest.raises(InvalidResponse):
                response = await here.send(departure=departure)
                await response.read()
        assert departure.has_left
        assert here.pool._connections == set()


SLOW = [
    name
    for name, response in INVALID.items()
    if len(response) < 1000
    # Its response is complete before the byte arrives that should not be there.
    and not name.startswith(("bytes after", "a response after", "a body of"))
]


@pytest.mark.parametrize("name", SLOW)
async def test_an_invalid_response_in_pieces(name):
    """It is refused however it is cut."""
    async with lab(serving(INVALID[name], is_slow=True), silence_s=10.0) as here:
        async with asyncio.timeout(5):
            with pytest.raises(InvalidResponse):
                response = await here.send()
                await response.read()
        assert here.pool._connections == set()


@pytest.mark.parametrize("extra", [b"x", b"\r\n", NEXT, b"HTTP/1.1 408 Timeout\r\n\r\n"])
async def test_bytes_while_idle(extra):
    """Bytes on a kept connection end it, and are never the response to the next request."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(answer())
        await asyncio.sleep(0.1)
        writer.write(extra)
        await reader.read()

    async with lab(script) as here:
        for _ in range(2):
            assert await here.call() == (200, b"ok")
            assert len(here.pool._idle) == 1
            await asyncio.sleep(0.3)
            assert here.pool._connections == set()
    assert here.server.connections == 2


async def test_bytes_before_a_request():
    """A server that speaks first gets no request on that connection."""

    async def script(reader, writer):
        if here.server.connections == 1:
            writer.write(NEXT)
            await reader.read()
        await here.server.read(reader)
        writer.write(answer())

    async with lab(script) as here:
        base = here.client._open_base(here.url)
        with contextlib.suppress(UpstreamUnreachable):
            # It depends on the moment whether the bytes are there before the connection is used.
            connection = await base.pool.connect()
            await asyncio.sleep(0.1)
            assert connection.transport.is_closing()
        assert base.pool._connections == set()
        assert await here.call() == (200, b"ok")


async def test_a_response_to_head_with_a_body():
    """A body after a response to HEAD is not the next response."""
    async with lab(answer(b"ok")) as here:
        with pytest.raises(InvalidResponse):
            await here.send(method="HEAD")
        assert here.pool._connections == set()


async def test_a_head_that_is_too_large_names_the_rule():
    """The error names the limit, and nothing of the response."""
    async with lab(INVALID["a long header"]) as here:
        with pytest.raises(UpstreamError, match=f"longer than {LIMITS.head_max_bytes} bytes"):
            await here.call()
    async with lab(INVALID["too many headers"]) as here:
        with pytest.raises(UpstreamError, match=f"more than {LIMITS.max_headers} headers"):
            await here.call()


async def test_endless_informational_responses():
    """They end at the deadline for the head and are not kept."""

    async def script(reader, writer):
        await here.server.read(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Early\r\n\r\n" * 100)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with lab(script, connect_s=0.2, silence_s=0.2) as here:
        with pytest.raises(UpstreamTimeout):
            await here.call()


INJECTED = {
    "a line in a value": {"headers": {"X": "a\r\nEvil: 1"}},
    "a bare LF in a value": {"headers": {"X": "a\nEvil: 1"}},
    "a bare CR in a value": {"headers": {"X": "a\rEvil: 1"}},
    "a NUL in a value": {"headers": {"X": "a\0"}},
    "a control character in a value": {"headers": {"X": "a\x7f"}},
    "half of a surrogate pair": {"headers": {"X": "a\udc80"}},
    "a line in a name": {"headers": {"X: a\r\nEvil": "1"}},
    "a LF at the end of a name": {"headers": {"X\n": "1"}},
    "two names in one": {"headers": {"X\nY": "1"}},
    "a colon in a name": {"headers": {"X:": "1"}},
    "a space in a name": {"headers": {"X Y": "1"}},
    "an empty name": {"headers": {"": "1"}},
    "a name that is not ASCII": {"headers": {"é": "1"}},
    "a length": {"headers": {"content-length": "1"}},
    "a transfer coding": {"headers": {"Transfer-Encoding": "chunked"}},
    "a host": {"headers": {"Host": "evil"}},
    "a connection option": {"headers": {"Connection": "close"}},
    "an expectation": {"headers": {"Expect": "100-continue"}},
    "a line in the path": {"path": "/x HTTP/1.1\r\nEvil: 1"},
    "a space in the path": {"path": "/x y"},
    "a fragment": {"path": "/x#y"},
    "a NUL in the path": {"path": "/x\0"},
    "a path that is not ASCII": {"path": "/é"},
    "a path without a slash": {"path": "x"},
    "another method": {"method": "GET /y HTTP/1.1\r\nEvil: 1\r\n\r\nPOST"},
    "a method in lower case": {"method": "post"},
    "no method": {"method": ""},
}


@pytest.mark.parametrize("name", INJECTED)
async def test_nothing_is_injected_into_a_request(name):
    """A part that would change the request is refused, and nothing is sent or quoted."""
    async with lab(answer()) as here:
        departure = Departure()
        with pytest.raises(InvalidRequestError) as caught:
            await here.send(departure=departure, **INJECTED[name])
        assert not departure.has_left
        assert "Evil" not in str(caught.value)
    assert here.server.connections == 0


@pytest.mark.parametrize(
    "url", ["http://[::1", "ftp://a", "a", "http://", "http://a@b", "http://é"]
)
async def test_an_invalid_base_url(url):
    """A base URL that names no server is refused before anything is sent."""
    async with lab(answer()) as here:
        here.url = url
        with pytest.raises(InvalidRequestError):
            await here.send()
