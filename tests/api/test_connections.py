"""Connections: invalid requests, long or slow heads, many connections, and how they end."""

import asyncio
import contextlib
import json
import time
from email.utils import parsedate_to_datetime

import pytest
from support import MODEL, OPERATOR_KEY, make_settings, running, wait_for_entry

from service.api.connections import READ_BUFFER_BYTES

HEAD_TIMEOUT_S = 0.5
OF_VENICE = {"cf-ray", "x-venice-model-id", "x-venice-model-name", "x-venice-version"}
UNKNOWN = 20


@pytest.fixture
async def service(database_address, upstream):
    """A service with short timeouts for heads."""
    changes = {"head_timeout_s": HEAD_TIMEOUT_S, "unknown_connections": UNKNOWN}
    async with running(make_settings(database_address, upstream.url, **changes)) as service:
        yield service
        await service.audit()


class Wire:
    """A connection for hand-written requests."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def answer(self, timeout=5):
        """Return status, headers by lower-case name, and body of the next response."""
        async with asyncio.timeout(timeout):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = head.rstrip("\r\n").split("\r\n")
            headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
            length = int(headers.get("content-length", 0))
            return int(line.split(" ")[1]), headers, await self.reader.readexactly(length)

    async def end(self, timeout=5):
        """Return all data that arrives until the connection ends."""
        async with asyncio.timeout(timeout):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()


@contextlib.asynccontextmanager
async def connected(service):
    """Connect to the service."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def chat(caller, version="1.1", content="Hello", **members):
    """Return a chat completion as bytes."""
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": MODEL, "messages": messages, **members})
    return (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n"
        f"Authorization: Bearer {caller.key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
    ).encode(), body.encode()


async def malformed(service):
    """Return the number of invalid requests by code."""
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    async with service.http.get("/metrics", headers=headers) as response:
        lines = (await response.text()).splitlines()
    counts = [line for line in lines if line.startswith("rialto_malformed_requests_total{")]
    return {line.split('"')[1]: float(line.split(" ")[-1]) for line in counts}


MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "odd version": b"GET /health HTTP/9\r\nHost: x\r\n\r\n",
    "odd header": b"GET /health HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "odd length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: z\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 500 + b"\r\n",
}
LONG = {
    "url": b"GET /v1/%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 40_000),
    "header": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 40_000),
    "name": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n%b: x\r\n\r\n" % (b"x" * 40_000),
    "a megabyte": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 1_000_000),
}
CASES = [(name, 400, "malformed_request", data) for name, data in MALFORMED.items()]
CASES += [(name, 431, "head_too_large", data) for name, data in LONG.items()]


@pytest.mark.parametrize(
    ("status", "code", "data"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
async def test_an_invalid_request_gets_a_normal_error(service, capsys, status, code, data):
    """An invalid request gets an error in the service's format with an id, is counted, and is not
    logged."""
    before = await malformed(service)
    async with connected(service) as wire:
        wire.writer.write(data)
        got, headers, body = await wire.answer()
        assert await wire.end() == b""

    error = json.loads(body)["error"]
    assert (got, error["code"]) == (status, code)
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"] == error["request_id"]
    assert headers["connection"] == "close"
    after = await malformed(service)
    assert after[code] == before.get(code, 0) + 1
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("is_cut", [True, False])
async def test_an_invalid_request_gets_the_format_of_its_path(service, is_cut):
    """An invalid request with a readable path gets an error in that path's API format, even when
    the head arrives in pieces."""
    head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX: "
    async with connected(service) as wire:
        wire.writer.write(head)
        if is_cut:
            await wire.writer.drain()
            await asyncio.sleep(0.1)
        wire.writer.write(b"x" * 40_000 + b"\r\n\r\n")
        status, headers, body = await wire.answer()

    answer = json.loads(body)
    assert (status, answer["type"]) == (431, "error")
    assert headers["request-id"] == headers["x-request-id"]


@pytest.mark.parametrize("size", [20_000, 32_000])
async def test_heads_as_long_as_an_edge_passes_are_read(service, caller, size):
    """URLs and headers as long as a CDN passes are accepted."""
    url = f"/v1/models?x={'x' * size}"
    async with service.http.get(url, headers=caller.headers) as response:
        assert response.status == 200
    headers = {**caller.headers, "X-Long": "x" * size}
    async with service.http.get("/v1/models", headers=headers) as response:
        assert response.status == 200


async def test_many_headers_that_are_long_together_are_refused(service):
    """Headers that are too long together are refused before the head ends."""
    async with connected(service) as wire:
        wire.writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        for number in range(100):
            wire.writer.write(b"X-%d: %b\r\n" % (number, b"x" * 30_000))
            await asyncio.sleep(0)
        assert (await wire.answer())[0] == 431


async def test_a_body_with_a_broken_frame_is_refused_at_once(service, caller):
    """A body with a broken frame is refused once, and the connection ends."""
    head, _ = chat(caller)
    head = head.replace(b"Content-Length", b"X-Length")
    async with connected(service) as wire:
        wire.writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n")
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert await wire.end() == b""


@pytest.mark.parametrize("start", [b"GET /", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
async def test_a_slow_head_has_a_deadline(service, start):
    """A slow head has a deadline, even while more bytes arrive."""
    async with connected(service) as wire:
        wire.writer.write(start)
        answering = asyncio.create_task(wire.answer())
        began = time.monotonic()
        while not answering.done() and time.monotonic() - began < 5:
            await asyncio.sleep(0.1)
            with contextlib.suppress(ConnectionError):
                wire.writer.write(b"x" if start == b"GET /" else b"X: y\r\n")
        status, _, body = await answering

    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")


async def test_unfinished_heads_are_bounded(service, caller):
    """The number of connections from one address without a request is bounded; those with a request
    or a known key are served."""
    async with contextlib.AsyncExitStack() as stack:
        known = await stack.enter_async_context(connected(service))
        request = (
            f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.key}\r\n\r\n"
        )
        known.writer.write(request.encode())
        assert (await known.answer())[0] == 200
        wires = [await stack.enter_async_context(connected(service)) for _ in range(3 * UNKNOWN)]
        async with service.http.get("/health") as response:
            assert response.status == 200

        assert await wires[0].end() in (b"", None)
        wires[-1].writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wires[-1].answer())[0] == 200
        known.writer.write(request.encode())
        assert (await known.answer())[0] == 200


@pytest.mark.parametrize("members", [{"stream": True}, {"stream": False}])
async def test_answers_of_http_1_0_have_an_end(service, caller, members):
    """A response to HTTP/1.0 without a length ends with the connection, whatever the client asked
    for."""
    head, body = chat(caller, version="1.0", **members)
    async with connected(service) as wire:
        wire.writer.write(head + b"Connection: keep-alive\r\n\r\n" + body)
        answer = await wire.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 ")
        if members["stream"]:
            assert (await wire.end()).endswith(b"data: [DONE]\n\n")
            assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("version", "sent", "received"),
    [
        ("1.1", "", None),
        ("1.1", "Connection: close\r\n", "close"),
        ("1.1", "Expect: 100-continue\r\n", None),
        ("1.0", "", None),
        ("1.0", "Connection: keep-alive\r\n", "keep-alive"),
    ],
)
async def test_a_plain_answer_has_one_head(service, caller, path, version, sent, received):
    """A plain answer has the same headers, each once, however its client keeps the connection."""
    _, body = chat(caller, max_tokens=20)
    head = (
        f"POST {path} HTTP/{version}\r\nHost: x\r\nx-api-key: {caller.key}\r\n"
        f"X-Request-ID: abc-123\r\nContent-Length: {len(body)}\r\n{sent}\r\n"
    )
    async with connected(service) as wire:
        wire.writer.write(head.encode())
        if "Expect" in sent:
            assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.writer.write(body)
        status_line, *lines = (await wire.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        content = json.loads(await wire.reader.readexactly(int(headers["content-length"])))
        is_open = received == "keep-alive" or (version == "1.1" and received is None)
        if not is_open:
            assert await wire.end() == b""

    assert status_line == f"HTTP/{version} 200 OK"
    assert content["model"]
    assert len(headers) == len(lines)
    assert headers.pop("connection", None) == received
    assert abs(time.time() - parsedate_to_datetime(headers.pop("date")).timestamp()) < 10
    assert headers.pop("x-request-id") == "abc-123"
    assert headers.pop("request-id", None) == ("abc-123" if path == "/v1/messages" else None)
    assert set(headers) - OF_VENICE == {
        "cache-control",
        "content-length",
        "content-security-policy",
        "content-type",
        "referrer-policy",
        "x-content-type-options",
        "x-rialto-cost-usd",
        "x-rialto-model",
    }


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("wait_s", [0, 2.5])
async def test_a_client_that_closes_its_side_is_answered(service, caller, upstream, stream, wait_s):
    """A client that closes its sending side gets its response, at once or later, although the
    service probes it."""
    if wait_s:
        upstream.faults.push("/chat/completions", "slow_headers", times=1, seconds=wait_s)
    head, body = chat(caller, stream=stream)
    async with connected(service) as wire:
        wire.writer.write(head + b"\r\n" + body)
        wire.writer.write_eof()
        answer = await wire.end(10)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert (b"data: [DONE]" in answer) == stream
    assert (await wait_for_entry(caller))["outcome"] == "ok"


async def test_several_requests_before_the_end_are_all_answered(service):
    """Several pipelined requests are answered in order."""
    async with connected(service) as wire:
        wire.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        wire.writer.write_eof()
        assert [(await wire.answer())[0] for _ in range(3)] == [200, 200, 200]
        assert await wire.end() == b""


@pytest.mark.parametrize("size", [100, READ_BUFFER_BYTES, 2 * READ_BUFFER_BYTES, 1_000_000])
async def test_a_request_after_a_body_of_any_size_is_answered(service, caller, size):
    """Requests that follow a body on their connection are read too, whether or not the body was
    so large that reading it was paused."""
    head, body = chat(caller, content="x" * size)
    requests = (head + b"\r\n" + body) * 2 + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(service) as wire:
        wire.writer.write(requests)
        assert [(await wire.answer(30))[0] for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("kind", ["hang", "stall"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnected_is_noticed(service, caller, upstream, kind, stream):
    """A disconnected client is noticed at once, even while Venice is silent."""
    upstream.faults.push("/chat/completions", kind, times=1)
    head, body = chat(caller, stream=stream)
    async with connected(service) as wire:
        wire.writer.write(head + b"\r\n" + body)
        if kind == "stall" and stream:
            await wire.reader.readuntil(b"data: ")
        async with asyncio.timeout(5):
            while not upstream.calls.to("/chat/completions"):
                await asyncio.sleep(0.01)

    began = time.monotonic()
    assert (await wait_for_entry(caller))["outcome"] == "client_closed"
    assert time.monotonic() - began < 5
