"""Large bodies that the service passes on as they arrive and never holds whole."""

import asyncio

import aiohttp
import psutil
import pytest
from aiohttp import web
from support import make_settings, running

MEBIBYTE = 1024 * 1024
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
END = b"\r\n--b--\r\n"
TYPE = {"Content-Type": "multipart/form-data; boundary=b"}
URL = "/v1/augment/text-parser"


PRICES = {"input": {"usd": 1}, "output": {"usd": 1}}
MODELS = {"data": [{"id": "m", "type": "text", "model_spec": {"pricing": PRICES}}]}


class Slow:
    """A Venice that signals the first bytes of a document and waits before it reads on."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.received = []
        self.headers = None

    async def models(self, request):
        return web.json_response(MODELS)

    async def parse(self, request):
        self.headers = request.headers
        size = len(await request.content.readany())
        self.begun.set()
        await self.go_on.wait()
        async for chunk in request.content.iter_any():
            size += len(chunk)
        self.received.append(size)
        return web.json_response({"text": "a", "tokens": 1})


@pytest.fixture
async def slow(aiohttp_server):
    """A slow Venice and its server."""
    venice = Slow()
    app = web.Application(client_max_size=100 * MEBIBYTE)

    async def parse(request):
        return await venice.parse(request)

    app.router.add_post("/api/v1/augment/text-parser", parse)
    app.router.add_get("/api/v1/models", venice.models)
    venice.server = await aiohttp_server(app)
    return venice


@pytest.fixture
async def service(request, database_address, slow):
    """A service before it, with the test's timeout for bodies."""
    url = str(slow.server.make_url("")).rstrip("/")
    settings = make_settings(database_address, url, body_timeout_s=getattr(request, "param", 60.0))
    async with running(settings) as service:
        yield service
        slow.go_on.set()
        await service.audit()


async def document(size, wait=None):
    """Yield a multipart body in pieces, with a pause before the last."""
    yield HEAD
    for _ in range(size // MEBIBYTE):
        yield b"x" * MEBIBYTE
    if wait is not None:
        await wait.wait()
    yield END


async def test_venice_gets_the_beginning_before_the_end_is_sent(service, caller, slow):
    """Venice gets the caller's stated length and first bytes before the caller has sent the
    rest."""
    rest = asyncio.Event()
    length = len(HEAD) + 20 * MEBIBYTE + len(END)
    headers = {**caller.headers, **TYPE, "Content-Length": str(length)}
    asking = asyncio.create_task(
        service.http.post(URL, data=document(20 * MEBIBYTE, rest), headers=headers).__aenter__()
    )
    async with asyncio.timeout(5):
        await slow.begun.wait()
    slow.go_on.set()
    rest.set()

    response = await asking
    assert (response.status, await response.json()) == (200, {"text": "a", "tokens": 1})
    assert slow.received == [length]
    assert slow.headers["Content-Length"] == str(length)
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_usd"]) == ("ok", "0.01")


async def test_it_is_not_held_in_memory(service, caller, slow):
    """While Venice reads nothing, the service holds only what fits into sockets and their
    buffers."""
    process = psutil.Process()
    before = process.memory_info().rss
    asking = []
    for _ in range(8):
        headers = {**caller.headers, **TYPE}
        body = document(30 * MEBIBYTE)
        asking.append(
            asyncio.create_task(service.http.post(URL, data=body, headers=headers).__aenter__())
        )
    async with asyncio.timeout(5):
        await slow.begun.wait()
    await asyncio.sleep(0.5)

    assert process.memory_info().rss - before < 100 * MEBIBYTE
    slow.go_on.set()
    for response in await asyncio.gather(*asking):
        assert response.status == 200
        response.close()


@pytest.mark.parametrize("has_content_length", [True, False])
async def test_too_large_an_upload_is_refused(service, caller, slow, has_content_length):
    """An upload that is too large is refused at once by its stated length, or when it exceeds the
    limit, and is not charged."""
    slow.go_on.set()
    headers = {**caller.headers, **TYPE}
    if has_content_length:
        headers["Content-Length"] = str(len(HEAD) + 40 * MEBIBYTE + len(END))
    try:
        async with service.http.post(
            URL, data=document(40 * MEBIBYTE), headers=headers
        ) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (
                413,
                "payload_too_large",
            )
    except aiohttp.ClientConnectionError:
        # The refusal arrived while the caller was sending.
        assert has_content_length
    entries = await caller.entries()
    assert [entry["cost_source"] for entry in entries] == (
        [] if has_content_length else ["not_charged"]
    )


@pytest.mark.parametrize("service", [1.0], indirect=True)
async def test_an_endless_upload_ends_at_the_deadline(service, caller, slow):
    """An upload that never ends has the same deadline as a body that the service reads."""
    slow.go_on.set()
    headers = {**caller.headers, **TYPE}
    async with service.http.post(
        URL, data=document(2 * MEBIBYTE, asyncio.Event()), headers=headers
    ) as response:
        assert response.status == 408
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "not_charged")


async def test_a_hang_up_costs_nothing(service, caller, slow):
    """An upload whose caller hangs up before its end is not charged."""
    slow.go_on.set()
    headers = {**caller.headers, **TYPE}
    body = document(2 * MEBIBYTE, asyncio.Event())
    asking = asyncio.create_task(service.http.post(URL, data=body, headers=headers).__aenter__())
    async with asyncio.timeout(5):
        await slow.begun.wait()
        asking.cancel()
        while not (entries := await caller.entries()):
            await asyncio.sleep(0.02)
    assert [(entry["outcome"], entry["cost_source"]) for entry in entries] == [
        ("client_closed", "not_charged")
    ]


async def test_a_key_without_room_is_refused_before_it_is_read(service, slow):
    """An upload of a key without room is refused before any byte goes to Venice."""
    caller = await service.new_caller()
    status, _ = await service.operate(
        "POST",
        f"/admin/v1/organizations/{caller.organization_id}/limits",
        json={"unit": "requests", "period": "day", "ceiling": 0},
    )
    assert status == 201
    headers = {**caller.headers, **TYPE}
    try:
        async with service.http.post(
            URL, data=document(20 * MEBIBYTE), headers=headers
        ) as response:
            assert response.status == 400
    except aiohttp.ClientConnectionError:
        pass
    assert not slow.begun.is_set()


async def test_an_early_answer_is_charged(service, caller, slow):
    """A response before the end of the upload is charged, whatever the caller holds back."""

    async def parse(request):
        await request.content.readany()
        return web.json_response({"text": "a", "tokens": 1})

    slow.parse = parse
    headers = {**caller.headers, **TYPE}
    body = document(2 * MEBIBYTE, asyncio.Event())
    async with service.http.post(URL, data=body, headers=headers) as response:
        assert (response.status, bool(await response.read())) == (200, True)
    async with asyncio.timeout(5):
        while not (entries := await caller.entries()):
            await asyncio.sleep(0.02)
    assert [(entry["outcome"], entry["cost_usd"]) for entry in entries] == [("ok", "0.01")]
