"""Compressed bodies are decompressed, within bounds, only for callers with a key."""

import asyncio
import functools
import gzip
import io
import json
import time
import zlib

import aiohttp
import pytest
from support import MODEL

from service import api

pytestmark = pytest.mark.shares_service

packed = functools.partial(gzip.compress, mtime=0)
MEBIBYTE = 1024 * 1024
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}).encode()
CHAT = "/v1/chat/completions"
UPLOAD = "/v1/augment/text-parser"
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def bomb():
    """300 KB that inflate to 300 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"\0" * MEBIBYTE
    return b"".join([*(packer.compress(zeros) for _ in range(300)), packer.flush()])


async def posted(service, path, body, headers):
    """Post a body; return the status and the decoded response."""
    async with service.http.post(path, data=body, headers=headers) as response:
        return response.status, await response.json(), response.headers


def encoded(caller, coding, content_type="application/json"):
    """Return the headers of a caller's body with this encoding."""
    return {**caller.headers, "Content-Type": content_type, "Content-Encoding": coding}


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", packed), ("X-GZip", packed), ("deflate", zlib.compress)],
)
async def test_a_compressed_body_is_read(service, caller, upstream, coding, compress):
    """Venice gets a compressed body decompressed."""
    status, _, _ = await posted(service, CHAT, compress(BODY), encoded(caller, coding))

    assert status == 200
    (call,) = upstream.calls.to("/chat/completions")
    assert "Content-Encoding" not in call.headers


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", UPLOAD, "/v1/quote", "/api/v1/unknown"])
async def test_other_codings_are_refused(service, caller, coding, path):
    """Other encodings are refused in the caller's API format, whatever is installed; the response
    lists the accepted ones."""
    body = io.BytesIO(b"x" * (2 * MEBIBYTE if path == UPLOAD else 10))
    content_type = FORM if path == UPLOAD else "application/json"
    status, answer, headers = await posted(
        service, path, body, encoded(caller, coding, content_type)
    )

    assert (status, answer["error"]["type"]) == (415, "invalid_request_error")
    assert headers["Accept-Encoding"] == "gzip, deflate"
    if path != "/v1/messages":
        assert answer["error"]["code"] == "unsupported_encoding"
        assert answer["error"]["param"] == "Content-Encoding"


async def flooded(service, path, bomb, headers, count=20):
    """Send so many bombs at once; return the statuses and the processor time that they took."""

    async def send():
        async with service.http.post(path, data=bomb, headers=headers) as response:
            await response.read()
            return response.status

    began = time.process_time()
    statuses = await asyncio.gather(*(send() for _ in range(count)))
    return set(statuses), time.process_time() - began


@pytest.mark.parametrize(
    ("path", "status"), [(CHAT, 401), ("/health", 405), ("/nothing", 404), (UPLOAD, 401)]
)
async def test_nothing_is_unpacked_without_a_key(service, bomb, path, status):
    """Without a key nothing is decompressed: 20 bombs of 300 MB would take more than ten
    seconds."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}

    statuses, took_s = await flooded(service, path, bomb, headers)
    assert statuses == {status}
    assert took_s < 2


@pytest.mark.shares_service(False)
async def test_nothing_is_unpacked_on_a_route_without_a_body(service, caller, bomb):
    """A body with a key is not decompressed on a route that reads no body."""
    headers = encoded(caller, "gzip")
    began = time.process_time()
    for _ in range(10):
        async with service.http.request("GET", "/v1/usage", data=bomb, headers=headers) as response:
            assert response.status == 200
    assert time.process_time() - began < 2
    assert not service.app[api.INTAKE]._workers._threads


@pytest.mark.shares_service(False)
@pytest.mark.parametrize(("path", "content_type"), [(CHAT, "application/json"), (UPLOAD, FORM)])
async def test_a_bomb_with_a_key_is_given_up(service, caller, upstream, bomb, path, content_type):
    """A bomb is refused before its decompressed size exceeds the limit for bodies."""
    statuses, _ = await flooded(service, path, bomb, encoded(caller, "gzip", content_type), 4)

    assert statuses == {413}


@pytest.mark.parametrize("body", [b"{}", packed(BODY)[:-1], packed(BODY) + b"x"])
async def test_a_body_that_does_not_match_its_encoding_is_refused(service, caller, body):
    """A body that is not, or not only, a complete body of its stated encoding is a 400."""
    status, answer, _ = await posted(service, CHAT, body, encoded(caller, "gzip"))

    assert (status, answer["error"]["code"]) == (400, "invalid_request")


async def test_a_client_in_the_middle_of_its_body_sees_the_refusal(service):
    """A client that reads after it has sent its whole body sees the refusal and may reuse the
    connection."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = 20 * MEBIBYTE
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    async with asyncio.timeout(10):
        for _ in range(2):
            writer.write(head.encode())
            for _ in range(20):
                writer.write(b"x" * MEBIBYTE)
                await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401 ")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            assert json.loads(await reader.readexactly(length))["error"]["code"]
    writer.close()


@pytest.mark.parametrize(
    ("with_key", "length", "status"), [(False, 10, 401), (True, 50 * MEBIBYTE, 413)]
)
async def test_a_refusal_replaces_100_continue(service, caller, with_key, length, status):
    """A refused request with Expect gets the refusal in place of 100 Continue, and the connection
    closes because the body may or may not follow."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n"
    )
    head += f"Authorization: Bearer {caller.key}\r\n" if with_key else ""
    writer.write(f"{head}\r\n".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in answer


async def test_a_large_body_is_refused_by_its_head(service, caller):
    """A body whose stated length is too large is refused before it arrives."""
    headers = {**caller.headers, "Content-Length": str(50 * MEBIBYTE)}

    async def never():
        yield b"x"
        await asyncio.Event().wait()

    async with (
        asyncio.timeout(5),
        aiohttp.ClientSession() as http,
        http.post(service.url + CHAT, data=never(), headers=headers) as response,
    ):
        assert response.status == 413
