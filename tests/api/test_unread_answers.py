"""Callers that do not read their responses, and callers with many concurrent requests."""

import asyncio
import contextlib
import json

import pytest
from odd_venice import MODEL, head, odd_venice, serving, whole
from support import set_limit, wait_for_entry

EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 8000)
TIMEOUT_S = 0.8


@pytest.fixture
async def venice():
    """A Venice that streams endlessly, and records whether the service reads, or sends a large
    response."""
    async with odd_venice() as venice:
        venice.listeners = 0

        async def answer(request, writer):
            if not request.json().get("stream"):
                writer.write(whole(b'{"id": "c", "choices": []}' + b" " * 8_000_000))
                await writer.drain()
                return
            writer.write(head("200 OK", "text/event-stream", Connection="close"))
            venice.listeners += 1
            try:
                while True:
                    writer.write(EVENT)
                    await writer.drain()
                    await asyncio.sleep(0.001)
            finally:
                venice.listeners -= 1

        venice.answer = answer
        yield venice


@pytest.fixture
async def service(request, database_address, venice):
    """A service with a short write timeout and few open requests."""
    changes = {"write_timeout_s": TIMEOUT_S, "open_requests": 30}
    async with serving(database_address, venice, **changes) as service:
        yield service


async def send_unread(caller, *, stream=True):
    """Open a connection and send a call without reading its response."""
    host, port = caller.service.url.removeprefix("http://").split(":")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    content = json.dumps(body)
    # Use the smallest receive buffer.
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
    )
    writer.write(request.encode())
    return reader, writer


async def until(is_true):
    """Wait until the condition is true."""
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.01)


async def test_an_unread_stream_is_ended(service, venice):
    """A stream that nobody reads is ended as if the caller had hung up: Venice is cancelled, and
    the call is recorded."""
    caller = await service.new_caller()
    _, writer = await send_unread(caller)
    await until(lambda: venice.listeners == 1)

    await until(lambda: venice.listeners == 0)
    assert (await wait_for_entry(caller))["outcome"] == "client_closed"
    writer.close()


async def test_an_unread_plain_response_is_ended(service):
    """A plain response that nobody reads is ended, and the call is recorded at its known cost."""
    caller = await service.new_caller()
    reader, writer = await send_unread(caller, stream=False)
    assert (await wait_for_entry(caller))["outcome"] == "ok"
    await asyncio.sleep(2 * TIMEOUT_S)

    size = 0
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            size += len(chunk)
    assert size < 8_000_000
    writer.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_slow_reader_is_waited_for(service, stream):
    """A caller that reads slowly keeps its response."""
    caller = await service.new_caller()
    reader, writer = await send_unread(caller, stream=stream)
    for _ in range(12):
        # Enough for the caller's system to acknowledge some bytes to ours.
        await reader.readexactly(150_000)
        await asyncio.sleep(TIMEOUT_S / 4)

    assert await reader.read(1)
    writer.close()
    await wait_for_entry(caller)


async def test_one_key_cannot_take_all_places(service, venice):
    """A key beyond its share of open requests is refused before anything is sent, and others are
    answered."""
    greedy, other = await service.new_caller("greedy"), await service.new_caller("other")
    # Only the number of calls matters here, so no unread response may time out.
    connections = [await send_unread(greedy) for _ in range(10)]
    await until(lambda: venice.listeners == 10)

    async with greedy.chat(model=MODEL) as refusal:
        assert (refusal.status, refusal.headers["Retry-After"]) == (429, "1")
        assert (await refusal.json())["error"]["code"] == "rate_limited"
    async with service.http.get("/v1/limits", headers=greedy.headers) as refusal:
        assert refusal.status == 429
    async with other.chat(model=MODEL) as answer:
        assert answer.status == 200
        await answer.read()
    assert len(venice.received) == 11

    for _, writer in connections:
        writer.close()
    await until(lambda: venice.listeners == 0)
    async with asyncio.timeout(10):
        while len(await greedy.entries()) < 10:
            await asyncio.sleep(0.02)
    async with greedy.chat(model=MODEL) as answer:
        assert answer.status == 200
        await answer.read()


async def test_an_organization_cannot_take_all_places(service, venice):
    """An organization cannot exceed its share by using many keys."""
    callers = [await service.new_caller("greedy")]
    path = f"/admin/v1/organizations/{callers[0].organization_id}/keys"
    for number in range(3):
        _, made = await service.operate("POST", path, json={"name": str(number)})
        callers.append(type(callers[0])(service, callers[0].organization_id, made))
    connections = [await send_unread(caller) for caller in callers for _ in range(10)]
    await until(lambda: len(venice.received) == 15)
    other = await service.new_caller("other")

    await set_limit(other, unit="requests", period="day", ceiling=100)
    async with other.chat(model=MODEL) as answer:
        assert answer.status == 200
        await answer.read()
    assert venice.listeners <= 15
    for _, writer in connections:
        writer.close()
    await until(lambda: venice.listeners == 0)
