"""Requests that no client sends on purpose are refused; each once caused a 500 or worse."""

import asyncio

import pytest
import yarl
from support import MODEL, ORGANIZATIONS

from service import app as application
from service import audit

MANY_DIGITS = "9" * 5_000
"""More digits than Python converts to an integer."""

pytestmark = pytest.mark.shares_service


async def refused(service, method, path, **arguments):
    """Send the operator's request; return the status and the error."""
    status, body = await service.operate(method, path, **arguments)
    return status, body["error"]["code"], body["error"]["param"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{ORGANIZATIONS}?limit={{}}", "limit"),
        (
            f"{ORGANIZATIONS}/00000000-0000-0000-0000-000000000000/audit-events?before={{}}",
            "before",
        ),
    ],
)
@pytest.mark.parametrize("number", [MANY_DIGITS, "\u0663", "0", "-1", "1.5", " 1", ""])
async def test_numbers_are_few_ascii_digits(service, path, name, number):
    """A numeric parameter that is not a number, of any length, is refused."""
    assert await refused(service, "GET", path.format(number)) == (400, "invalid_request", name)


@pytest.mark.parametrize(
    ("path", "name"),
    [("limits?model=a%00b", "model"), ("usage?model=a%00b", "model"), ("usage?tag=a=%00", "tag")],
)
async def test_nul_in_a_query_is_refused(service, caller, path, name):
    """A query with a NUL is refused before it reaches the database, which stores no NUL."""
    async with service.http.get(f"/v1/{path}", headers=caller.headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == name


async def test_a_body_that_contradicts_its_content_encoding_is_refused(service, caller):
    """A body that does not match its Content-Encoding is the caller's 400."""
    headers = {**caller.headers, "Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with service.http.post(
        "/v1/chat/completions", data=b'{"model": "no gzip"}', headers=headers
    ) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "invalid_request"


async def first_bytes(service, head, body=b""):
    """Send a hand-written request; return the first bytes of the response."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + b"\r\n\r\n")
    first = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    if body:
        writer.write(body)
        first += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    writer.close()
    await writer.wait_closed()
    return first


async def test_an_unknown_expectation_is_ignored(service):
    """An unknown Expect header is ignored, and the route answers."""
    head = "GET /health HTTP/1.1\r\nHost: x\r\nExpect: nonsense"

    assert (await first_bytes(service, head)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_expect_continue_gets_100_continue(service, caller):
    """A client that waits before it sends a large body gets 100 Continue."""
    body = b'{"model": "%s", "messages": [{"role": "user", "content": "x"}]}' % MODEL.encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        f"Authorization: Bearer {caller.key}\r\nContent-Length: {len(body)}"
    )
    answer = await first_bytes(service, head, body)

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "value", ["1e20", "-0.0", "1e-7", "0.10", "123456789012345678901234567890"]
)
async def test_the_audit_is_whole_whatever_numbers_a_change_has(service, caller, value):
    """The audit chain stays valid for every spelling of numbers, which PostgreSQL normalizes."""
    settings = f'{{"settings": {{"venice_parameters": {{"x": {value}}}}}}}'
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    status, _ = await service.operate("PATCH", path, data=settings)

    database = service.app[application.api.DATABASE]
    assert status == 200
    assert await audit.first_break(database, caller.organization_id) is None


@pytest.mark.parametrize("queue_id", ["a\0b", "", "a b", "x" * 257, "\u00e9", "a\n"])
@pytest.mark.parametrize("path", ["/video/retrieve", "/audio/complete"])
async def test_an_id_of_a_job_is_printable(service, caller, upstream, path, queue_id):
    """An unprintable job id is refused without asking the database or Venice."""
    body = {"model": "wan", "queue_id": queue_id}
    async with service.http.post(f"/v1{path}", json=body, headers=caller.headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "queue_id"
    assert not upstream.calls.to(path)


async def quoted(caller, path):
    """Request a quote; return its status and the path of the call."""
    url = yarl.URL(f"{caller.service.url}/v1/quote{path}", encoded=True)
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"}
    async with caller.service.http.post(url, json=body, headers=caller.headers) as response:
        return response.status, (await response.json()).get("model")


async def test_a_path_with_a_name_in_it_is_quoted(caller):
    """A path with a name in it is quoted under the path of the call; literal braces are not a
    name."""
    assert await quoted(caller, "/crypto/rpc/base-mainnet") == (200, "crypto/rpc/base-mainnet")
    for path in ("{network}", "%7Bnetwork%7D", "{x}", "a/b", "", ".."):
        assert (await quoted(caller, f"/crypto/rpc/{path}"))[0] == 404
