"""Bodies in memory share one budget, of which no key can take everything."""

import asyncio
from uuid import UUID

import pytest
from support import make_settings, running

from service import api

CHAT = "/v1/chat/completions"
MAX_BYTES = 100_000
BUDGET_BYTES = 900_000


@pytest.fixture
async def service(database_address, upstream):
    """A service with a small body budget."""
    settings = make_settings(
        database_address, upstream.url, body_max_bytes=MAX_BYTES, body_budget_bytes=BUDGET_BYTES
    )
    async with running(settings) as service:
        yield service
        await service.audit()


class Held:
    """Uploads that have begun and stay unfinished."""

    def __init__(self, service):
        self.service = service
        self.writers = []

    async def begin(self, caller, size, *, chunked=False):
        """Begin an upload; return the status if it is refused at once, else None."""
        host, port = self.service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.writers.append(writer)
        frame = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.key}\r\n"
            f"Content-Type: application/json\r\n{frame}\r\n\r\n"
        )
        writer.write(head.encode())
        sent = size if chunked else 10
        writer.write((f"{sent:x}\r\n" if chunked else "").encode() + b"{" * sent)
        try:
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.3)
        except TimeoutError:
            return None
        if answer.startswith(b"HTTP/1.1 503 "):
            assert b"\r\nRetry-After: 1\r\n" in answer
        return int(answer.split(b" ")[1])

    def end(self):
        """Close all connections."""
        for writer in self.writers:
            writer.close()


@pytest.fixture
async def held(service):
    """Uploads, none of which has begun yet."""
    held = Held(service)
    yield held
    held.end()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_key_has_a_third_of_the_room(service, held, chunked):
    """A key gets a third of the budget, by stated length or by what has arrived, and others still
    have room."""
    greedy, other = await service.new_caller("greedy"), await service.new_caller("other")
    statuses = [await held.begin(greedy, 90_000, chunked=chunked) for _ in range(5)]
    assert statuses == [None, None, None, 503, 503]

    async with other.chat("x" * 80_000) as answer:
        assert answer.status == 200
    held.end()
    async with asyncio.timeout(5):
        while True:
            async with greedy.chat("x" * 80_000) as answer:
                if answer.status == 200:
                    return


async def test_a_body_returns_its_room(service, upstream):
    """A request returns its room, however it ends."""
    caller = await service.new_caller()
    for _ in range(5):
        async with caller.chat("x" * 90_000) as answer:
            assert answer.status == 200
        async with caller.chat("x" * 90_000, model="nobody's") as answer:
            assert answer.status == 404
        async with service.http.post(CHAT, data="{" * 90_000, headers=caller.headers) as answer:
            assert answer.status == 400
    assert service.app[api.INTAKE]._bytes.held(UUID(caller.organization_id)) == 0


async def test_one_body_of_the_largest_size_fits_any_budget(database_address, upstream):
    """One body of the largest allowed size always fits, even if the budget is set too small."""
    settings = make_settings(
        database_address, upstream.url, body_max_bytes=MAX_BYTES, body_budget_bytes=1024
    )
    async with running(settings) as service:
        caller = await service.new_caller()
        async with caller.chat("x" * (MAX_BYTES - 200)) as answer:
            assert answer.status == 200
