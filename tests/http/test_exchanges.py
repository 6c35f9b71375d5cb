"""The HTTP client: connections, deadlines, uploads and backpressure, against real sockets."""

import asyncio
import socket
import time

import pytest
from raw_server import answer, lab

from service.errors import UpstreamCut, UpstreamTimeout, UpstreamUnreachable
from service.upstream.http import CHUNK_BYTES, READ_BUFFER_BYTES, Departure, StreamedBody, pool

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_request_arrives_as_it_was_sent():
    """Method, path, headers and body reach the server byte by byte, with the client's own."""
    bodies = []

    async def script(reader, writer):
        while True:
            bodies.append(await here.server.read(reader))
            writer.write(answer(b"{}"))

    async with lab(script) as here:
        status, body = await here.call(path="/a?b=%20c", headers={"X-A": "é"}, body=b"123")
        assert (status, body, bodies) == (200, b"{}", [b"123"])
        host = here.url.removeprefix("http://")
    assert here.server.heads == [
        f"POST /a?b=%20c HTTP/1.1\r\nHost: {host}\r\nUser-Agent: test\r\nX-A: é\r\n"
        "Content-Length: 3\r\n\r\n".encode()
    ]


async def test_connections_are_kept_newest_first():
    """Requests one after another share a connection; those at once have one each."""
    async with lab(answer()) as here:
        for _ in range(3):
            assert await here.call() == (200, b"ok")
        assert here.server.connections == 1
        await asyncio.gather(*(here.call() for _ in range(3)))
        assert here.server.connections == 3
        newest = next(reversed(here.pool._idle))
        assert here.pool.take() is newest


@pytest.mark.parametrize(
    ("response", "connections"),
    [
        (answer(b"ok", "200 OK", "Connection: close"), 2),
        (answer(b"ok", "200 OK", "Connection: x, Close"), 2),
        (answer(b"ok", "200 OK", "Connection: keep-alive"), 1),
        (answer().replace(b"1.1", b"1.0"), 2),
        (answer(b"ok", "200 OK", "Connection: keep-alive").replace(b"1.1", b"1.0"), 2),
        (CHUNKED + b"1\r\no\r\n1;x=y\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n", 1),
        (INTERIM * 3 + answer(), 1),
    ],
)
async def test_a_connection_is_kept_where_http_allows(response, connections):
    """HTTP/1.1 keeps a connection unless the server closes it; HTTP/1.0 never does here."""

    async def script(reader, writer):
        while True:
            await here.server.read(reader)
            writer.write(response)

    async with lab(script) as here:
        for _ in range(2):
            assert await here.call() == (200, b"ok")
    assert here.server.connections == connections


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_a_status_without_a_body(status):
    """Such a response ends with its head, whatever length it states."""
    async with lab(f"HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n".encode()) as here:
        for _ in range(2):
            assert await here.call() == (int(status[:3]), b"")
    assert here.server.connections == 1


async def test_the_media_type_has_one_name():
    """A media type reaches the caller under the name that a relay can replace it by."""
    async with lab(answer(b"{}", "200 OK", "content-type: Application/JSON; a=b")) as here:
        response = await here.send()
        assert response.headers == {"Content-Type": "Application/JSON; a=b"}
        assert response.content_type == "application/json"
        response.close()


async def test_a_response_to_head_has_no_body():
    """Its length is that of the body that GET would return."""
    async with lab(answer(b"")[:-5] + b"5\r\n\r\n") as here:
        for _ in range(2):
            assert await here.call(method="HEAD") == (200, b"")
    assert here.server.connections == 2


async def test_a_body_to_the_end_of_the_connection():
    """Without a length, the body ends with the connection."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nab")
        await asyncio.sleep(0.05)
        writer.write(b"cd")

    async with lab(script) as here:
        assert await here.call() == (200, b"abcd")


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        answer(b"x" * 9)[:-1],
        CHUNKED + b"1\r\na\r\n0\r\n",
        CHUNKED + b"5\r\nab",
    ],
)
async def test_a_connection_that_ends_early(part):
    """A response that ends before its end is cut, and what came of its body is kept."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(part)

    async with lab(script) as here:
        departure = Departure()
        with pytest.raises(UpstreamCut):
            response = await here.send(departure=departure)
            await response.read()
        assert departure.has_left
        if part.endswith(b"x"):
            assert response.received == b"x" * 8


async def test_what_arrived_before_a_cut_is_read_first():
    """A reader gets all bytes of a broken response before its error."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(CHUNKED + b"2\r\nab\r\n")

    async with lab(script) as here:
        response = await here.send()
        await asyncio.sleep(0.1)
        assert await response.next_chunk() == b"ab"
        with pytest.raises(UpstreamCut):
            await response.next_chunk()


async def test_a_kept_connection_that_the_server_closes_is_not_used():
    """It leaves the pool as soon as the server closes it, so no request is sent on it."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(answer())
        await writer.drain()
        await asyncio.sleep(0.05)

    async with lab(script) as here:
        assert await here.call() == (200, b"ok")
        assert len(here.pool._idle) == 1
        await asyncio.sleep(0.2)
        assert here.pool._idle == {}
        assert here.pool._connections == set()
        assert await here.call() == (200, b"ok")


@pytest.mark.parametrize(
    ("request_", "sends"),
    [
        ({"method": "GET"}, 3),
        ({"method": "GET", "departure": Departure()}, 2),
        ({"method": "POST"}, 2),
        ({"method": "DELETE"}, 2),
    ],
)
async def test_only_a_free_get_is_sent_again(request_, sends):
    """A request that met a closed kept connection is sent again only if it is a GET that costs
    nothing; any other counts as sent."""

    async def script(reader, writer):
        is_first = here.server.connections == 1
        await here.server.read(reader)
        writer.write(answer())
        await here.server.read(reader)
        if not is_first:
            writer.write(answer())

    async with lab(script) as here:
        assert await here.call() == (200, b"ok")
        if sends == 3:
            assert await here.call(**request_) == (200, b"ok")
        else:
            with pytest.raises(UpstreamCut):
                await here.call(**request_)
    assert len(here.server.heads) == sends


async def test_a_get_is_not_sent_again_once_a_byte_came():
    """One byte of a response shows that the server has the request."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(answer())
        await here.server.read(reader)
        writer.write(b"H")

    async with lab(script) as here:
        await here.call()
        with pytest.raises(UpstreamCut):
            await here.call(method="GET")
    assert len(here.server.heads) == 2


async def test_idle_and_old_connections_are_closed(monkeypatch):
    """A connection ends when it was idle too long, and is not used when it is too old."""
    async with lab(answer()) as here:
        monkeypatch.setattr(pool, "MAX_IDLE_S", 0.1)
        await here.call()
        await asyncio.sleep(0.3)
        assert here.pool._connections == set()
        monkeypatch.setattr(pool, "MAX_AGE_S", 0.0)
        await here.call()
        await here.call()
    assert here.server.connections == 3


async def test_an_old_connection_goes_to_no_waiting_request(monkeypatch):
    """The request makes a new one in its place, so that a busy client follows changes of DNS."""
    monkeypatch.setattr(pool, "MAX_AGE_S", 0.0)
    async with lab(answer(), max_connections=1) as here:
        assert await asyncio.gather(*(here.call() for _ in range(3))) == [(200, b"ok")] * 3
    assert here.server.connections == 3


async def test_waiting_is_fair_and_bounded(monkeypatch):
    """With all connections in use, requests wait in order, and too many are refused unsent."""
    monkeypatch.setattr(pool, "MAX_WAITING", 3)
    go_on, order = asyncio.Event(), []

    async def script(reader, writer):
        while True:
            await here.server.read(reader)
            await go_on.wait()
            writer.write(answer())

    async def call(number):
        await here.call()
        order.append(number)

    async with lab(script, max_connections=1) as here:
        calls = []
        for number in range(4):
            calls.append(asyncio.create_task(call(number)))
            await asyncio.sleep(0.02)
        departure = Departure()
        with pytest.raises(UpstreamUnreachable):
            await here.send(departure=departure)
        assert not departure.has_left
        calls[2].cancel()
        go_on.set()
        await asyncio.gather(*calls, return_exceptions=True)
    assert order == [0, 1, 3]
    assert here.server.connections == 1


async def test_waiting_has_a_deadline():
    """A request that gets no connection in time was not sent."""

    async def script(reader, writer):
        await asyncio.sleep(60)

    async with lab(script, max_connections=1, connect_s=0.2, silence_s=5.0) as here:
        first = asyncio.create_task(here.call())
        await asyncio.sleep(0.05)
        departure = Departure()
        with pytest.raises(UpstreamUnreachable):
            await here.send(departure=departure)
        assert not departure.has_left
        first.cancel()
        await asyncio.wait({first})
        assert here.pool._connections == set()


@pytest.mark.parametrize("ends", ["aborted", "cancelled"])
async def test_a_place_is_given_on(ends):
    """When a connection ends, the request that waits longest makes a new one in its place."""

    async def script(reader, writer):
        await here.server.read(reader)
        if here.server.connections == 1:
            await gone.wait()
            return
        writer.write(answer())

    gone = asyncio.Event()
    async with lab(script, max_connections=1) as here:
        first = asyncio.create_task(here.call())
        await asyncio.sleep(0.05)
        second = asyncio.create_task(here.call())
        await asyncio.sleep(0.05)
        if ends == "cancelled":
            first.cancel()
        gone.set()
        assert await second == (200, b"ok")
        with pytest.raises((UpstreamCut, asyncio.CancelledError)):
            await first


async def test_a_connection_that_ends_as_it_is_given_on():
    """The request that waited for it makes a new one."""
    async with lab(answer(b"ok"), max_connections=1) as here:
        await here.call()
        connection = here.pool.take()
        waiting = asyncio.create_task(here.call())
        async with asyncio.timeout(5):
            while not here.pool._waiting:
                await asyncio.sleep(0)
        here.pool.give_back(connection)
        connection.abort()
        assert await waiting == (200, b"ok")
    assert here.server.connections == 2


async def test_cancelling_closes_the_connection():
    """A cancelled request, and a response that is not read to its end, close their connection."""
    closed = []

    async def script(reader, writer):
        await here.server.read(reader)
        if is_answered:
            writer.write(CHUNKED + b"1\r\na\r\n")
        closed.append(await reader.read())

    async with lab(script) as here:
        is_answered = False
        sending = asyncio.create_task(here.send())
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        is_answered = True
        response = await here.send()
        assert await response.next_chunk() == b"a"
        response.close()
        await asyncio.sleep(0.1)
        assert here.pool._connections == set()


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nX", answer(b"abc")[:-1]])
async def test_silence_has_a_deadline(part):
    """A server that stops within its head or body is given up after the silence."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(part)
        await asyncio.sleep(60)

    async with lab(script, silence_s=0.3) as here:
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await here.call()
        assert 0.25 < time.monotonic() - began < 1.5


async def test_each_part_renews_the_silence():
    """A slow response may take far longer than the silence, and than its head may."""

    async def script(reader, writer):
        while True:
            await here.server.read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
            for _ in range(12):
                await asyncio.sleep(0.1)
                writer.write(b"x")

    async with lab(script, silence_s=0.4, connect_s=0.5) as here:
        for _ in range(2):
            assert await here.call() == (200, b"x" * 12)
    assert here.server.connections == 1


async def test_a_head_in_drops_has_a_deadline():
    """Bytes that never end a head renew no deadline."""

    async def script(reader, writer):
        await here.server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.1)

    async with lab(script, silence_s=0.3, connect_s=0.3) as here:
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await here.call()
        assert time.monotonic() - began < 1.5


async def test_a_slow_reader_holds_the_server_back():
    """Unread bytes are bounded, silence does not count meanwhile, and nothing is lost."""
    sent, size = 0, 20 * 1024 * 1024

    async def script(reader, writer):
        nonlocal sent
        await here.server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536
        await reader.read()

    async with lab(script, silence_s=0.3) as here:
        response = await here.send()
        await asyncio.sleep(0.7)
        assert response.unread_bytes <= READ_BUFFER_BYTES + 256 * 1024
        assert sent < size
        received = 0
        while chunk := await response.next_chunk():
            assert len(chunk) <= CHUNK_BYTES
            received += len(chunk)
        assert received == size
        assert len(here.pool._idle) == 1


async def pieces(*parts, wait=None):
    """Yield the parts of a body, with a wait before the last."""
    for part in parts[:-1]:
        yield part
    if wait is not None:
        await wait.wait()
    yield parts[-1]


async def read_chunked(reader):
    """Read a chunked body."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return body


@pytest.mark.parametrize("length_bytes", [None, 6])
@pytest.mark.parametrize("is_continued", [True, False])
async def test_an_upload_waits_for_100_continue(length_bytes, is_continued):
    """A streamed body follows after 100 Continue, or after a second without one."""
    bodies, waits = [], []

    async def script(reader, writer):
        while True:
            here.server.heads.append(await reader.readuntil(b"\r\n\r\n"))
            began = time.monotonic()
            if is_continued:
                await asyncio.sleep(0.1)
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if length_bytes is None:
                bodies.append(await read_chunked(reader))
            else:
                bodies.append(await reader.readexactly(length_bytes))
            waits.append(time.monotonic() - began)
            writer.write(answer())

    async with lab(script) as here:
        for _ in range(2):
            body = StreamedBody(pieces(b"ab", b"", b"cdef"), length_bytes)
            assert await here.call(body=body) == (200, b"ok")
    assert bodies == [b"abcdef"] * 2
    assert here.server.connections == 1
    assert all(
        head.lower().count(b"\r\nexpect: 100-continue\r\n") == 1 for head in here.server.heads
    )
    assert all((wait < 0.9) == is_continued for wait in waits)


@pytest.mark.parametrize("parts", [(b"ab",), (b"ab", b"cdefg"), (b"abcdefg",), (b"",)])
async def test_an_upload_of_another_length_than_stated(parts):
    """It fails the request and closes the connection, so no later request can complete it."""
    received = []

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        received.append(await reader.read())

    async with lab(script) as here:
        with pytest.raises(UpstreamCut):
            await here.call(body=StreamedBody(pieces(*parts), 6))
        await asyncio.sleep(0.1)
        assert here.pool._connections == set()
    assert len(received[0]) < 6


async def test_an_upload_that_raises():
    """The failure of a body's source fails the request and closes the connection."""

    async def broken():
        yield b"ab"
        raise LookupError

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()

    async with lab(script) as here:
        with pytest.raises(UpstreamCut) as caught:
            await here.call(body=StreamedBody(broken(), None))
        assert isinstance(caught.value.__cause__, LookupError)
        assert here.pool._connections == set()


@pytest.mark.parametrize("is_begun", [True, False])
async def test_an_early_answer_ends_the_upload(is_begun):
    """A response before the end of an upload is returned, and its connection is not kept."""

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if is_begun:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(2)
        writer.write(answer(b"no", "413 Too Large"))
        await reader.read()

    async with lab(script) as here:
        body = StreamedBody(pieces(b"ab", b"cd", wait=asyncio.Event()), 4)
        async with asyncio.timeout(3):
            assert await here.call(body=body) == (413, b"no")
        assert here.pool._connections == set()


async def test_an_upload_has_backpressure():
    """A server that reads nothing stops the source of an upload."""
    taken = 0

    async def source():
        nonlocal taken
        for _ in range(500):
            taken += 1
            yield b"x" * 65_536

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await may_read.wait()
        await reader.readexactly(500 * 65_536)
        writer.write(answer())

    may_read = asyncio.Event()
    async with lab(script, silence_s=30.0) as here:
        sending = asyncio.create_task(here.call(body=StreamedBody(source(), 500 * 65_536)))
        await asyncio.sleep(0.5)
        assert taken < 300
        may_read.set()
        assert await sending == (200, b"ok")


async def test_tls(contexts):
    """Requests go over TLS, and a connection is kept."""
    server, client = contexts
    async with lab(answer(b"x" * 300_000), server_context=server, context=client) as here:
        for _ in range(2):
            assert await here.call() == (200, b"x" * 300_000)
    assert here.server.connections == 1


async def test_a_certificate_that_is_not_trusted(contexts):
    """Nothing is sent to a server that cannot prove its name."""
    server, _ = contexts
    async with lab(answer(), server_context=server) as here:
        departure = Departure()
        with pytest.raises(UpstreamUnreachable):
            await here.send(departure=departure)
    assert not departure.has_left
    assert here.server.heads == []


async def test_a_server_that_never_ends_the_handshake():
    """TLS has the deadline of the connection."""

    async def script(reader, writer):
        await reader.read()

    async with lab(script, connect_s=0.3) as here:
        here.url = here.url.replace("http:", "https:")
        began = time.monotonic()
        with pytest.raises(UpstreamUnreachable):
            await here.call()
        assert time.monotonic() - began < 1.5


async def test_the_next_address_is_tried():
    """A name with several addresses is reached by the one that answers."""
    async with lab(answer()) as here:
        port = int(here.url.rpartition(":")[2])
        loop = asyncio.get_running_loop()
        lookups, resolve = [], loop.getaddrinfo

        async def getaddrinfo(host, *arguments, **others):
            if host != "two.example":
                return await resolve(host, *arguments, **others)
            lookups.append(host)
            dead = (2, 1, 6, "", ("127.0.0.1", 1))
            return [dead, (2, 1, 6, "", ("127.0.0.1", port))]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "getaddrinfo", getaddrinfo)
            here.url = f"http://two.example:{port}"
            await asyncio.gather(*(here.call() for _ in range(3)))
    assert lookups == ["two.example"]


@pytest.mark.parametrize("first_port", [None, 1])
async def test_a_name_is_looked_up_again_after_a_failure(first_port):
    """What a name resolved to is forgotten at once when no address answers, and so is a failed
    lookup."""
    async with lab(answer()) as here:
        port = int(here.url.rpartition(":")[2])
        loop = asyncio.get_running_loop()
        ports, resolve = [first_port, port], loop.getaddrinfo

        async def getaddrinfo(host, *arguments, **others):
            if host != "moved.example":
                return await resolve(host, *arguments, **others)
            if (found := ports.pop(0)) is None:
                raise socket.gaierror
            return [(2, 1, 6, "", ("127.0.0.1", found))]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "getaddrinfo", getaddrinfo)
            here.url = f"http://moved.example:{port}"
            with pytest.raises(UpstreamUnreachable):
                await here.call()
            assert await here.call() == (200, b"ok")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "http://no-such-host.invalid", f"http://{'a' * 70}.example"],
)
async def test_an_unreachable_server(url):
    """Names and ports where nobody listens leave the request unsent, and take up no place."""
    async with lab(answer(), max_connections=1) as here:
        here.url = url
        for _ in range(2):
            departure = Departure()
            with pytest.raises(UpstreamUnreachable):
                await here.send(departure=departure)
            assert not departure.has_left


async def test_a_response_is_not_the_next_ones():
    """What one response left unread does not reach the next one on its connection."""
    async with lab(answer(b"x" * 1000)) as here:
        first = await here.send()
        await asyncio.sleep(0.05)
        second = await here.send()
        assert here.server.connections == 1
        assert await second.read() == b"x" * 1000
        assert await first.read() == b"x" * 1000
