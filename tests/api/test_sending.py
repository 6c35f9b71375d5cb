"""What leaves for Venice and where to: an unsent call is not charged, and no call follows a
redirect."""

import asyncio
import contextlib
import gzip
import random

import msgspec
import pytest
from odd_venice import odd_venice, serving, whole
from paid_bodies import BODIES, payload
from support import make_settings, running

from service.api import GATEWAY, VENICE
from service.errors import UpstreamError
from service.upstream import UpstreamKey

SECRET = "VENICE_INFERENCE_KEY_secret"


@pytest.fixture
async def venice():
    async with odd_venice() as venice:
        yield venice


@pytest.fixture
async def silent_port():
    """A port that accepts connections and sends nothing, not even a TLS handshake."""

    async def wait(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("secret", [f"{SECRET}\n", f"{SECRET}\r\nX-Evil: 1", f"{SECRET}\0"])
async def test_a_key_that_does_not_fit_into_a_header(
    database_address, venice, monkeypatch, secret, stream
):
    """With an upstream key that no header can carry nothing is sent or charged, and the log has no
    part of the key."""
    async with serving(database_address, venice) as service:
        keys = service.app[VENICE].keys
        keys.replace([msgspec.structs.replace(keys.any(), secret=secret)])
        # The service may be about to load the stored keys, which would take this one away.
        monkeypatch.setattr(keys, "replace", lambda _: None)
        caller = await service.new_caller()
        async with caller.chat(model="m", stream=stream) as response:
            body = await response.text()

        assert (response.status, SECRET in body) == (502, False)
        entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_unreachable", "not_charged")
    assert venice.received == []


@pytest.mark.parametrize(
    "url",
    [
        "http://no-such-host.invalid",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
        "http://[::1",
    ],
)
async def test_an_unreachable_venice(database_address, venice, silent_port, url):
    """A call is not charged if Venice's name, certificate, port or address fails."""
    async with odd_venice() as other, serving(database_address, other) as service:
        caller = await service.new_caller()
        service.app[VENICE]._base_url = url.format(port=other.url.rpartition(":")[2]) + "/api/v1"
        async with caller.chat(model="m") as response:
            assert response.status == 502
        entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_unreachable", "not_charged")


async def test_a_caller_that_leaves_before_anything_is_sent(database_address, venice, silent_port):
    """A call whose caller leaves while the connection is made is not charged."""
    async with serving(database_address, venice) as service:
        caller = await service.new_caller()
        service.app[VENICE]._base_url = f"https://127.0.0.1:{silent_port}/api/v1"
        gateway = service.app[GATEWAY]
        for stream in (False, True):
            async with asyncio.timeout(10):
                leaving = asyncio.create_task(caller.chat(model="m", stream=stream).__aenter__())
                while not any(call.route.hold for call in gateway._open_calls):
                    await asyncio.sleep(0.01)
                leaving.cancel()
                while gateway.open_calls:
                    await asyncio.sleep(0.01)
        entries = await caller.entries()
    assert [(entry["outcome"], entry["cost_source"]) for entry in entries] == [
        ("client_closed", "not_charged")
    ] * 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_paid_call_follows_a_redirect(database_address, upstream, status):
    """No endpoint follows a redirect: the prompt goes to Venice only, and no other response comes
    back."""
    async with odd_venice() as elsewhere, odd_venice() as venice:
        elsewhere.answer = whole(b'{"choices":[{"message":{"content":"internal"}}]}')
        moved = whole(b"{}", f"{status} Moved", Location=f"{elsewhere.url}/secret")
        venice.answer = moved
        settings = make_settings(database_address, upstream.url, venice_retry_s=0.0)
        async with running(settings) as service:
            caller = await service.new_caller()
            service.app[VENICE]._base_url = f"{venice.url}/api/v1"
            for path, body in BODIES.items():
                url = f"/v1{path}".format(network="ethereum-mainnet")
                async with service.http.post(
                    url, headers=caller.headers, **payload(body)
                ) as response:
                    text = await response.text()
                assert response.status in (502, 503), path
                assert "secret" not in text + str(response.headers)
                assert "internal" not in text
            async with service.http.get("/api/v1/characters", headers=caller.headers) as response:
                assert response.status in (502, 503)
        assert venice.received
        assert elsewhere.received == []


async def test_no_request_of_the_service_follows_a_redirect(database_address):
    """The service asks only Venice for models, keys, balances, quotes and jobs."""
    async with (
        odd_venice() as elsewhere,
        odd_venice() as venice,
        serving(database_address, venice) as service,
    ):
        venice.answer = whole(b"{}", "307 Moved", Location=f"{elsewhere.url}/x")
        client = service.app[VENICE]
        client._base_url = f"{venice.url}/moved"
        key = client.keys.any()
        assert isinstance(key, UpstreamKey)
        organization_id = (await service.new_caller()).organization_id
        for asked in (
            client.models("/models", "all"),
            client.state(key),
            client.quote("/video/quote", b"{}"),
            client.job_state("/video/retrieve", b"{}", organization_id, None),
            client.forward("GET", "/characters", b"", {}),
        ):
            with pytest.raises(UpstreamError):
                await asked
        assert len(venice.received) == 5
        assert elsewhere.received == []


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_cancellation_loses_no_byte_of_a_response(database_address, venice, coding):
    """When a read of a response is cancelled, the next reader gets all remaining bytes."""
    body = random.Random(1).randbytes(300_000)
    content = gzip.compress(body) if coding == "gzip" else body
    venice.answer = whole(content, Content_Encoding=coding)
    async with serving(database_address, venice) as service:
        answer = await service.app[VENICE].post("/chat/completions", b"{}", {})
        read = b""
        while len(read) < len(body):
            reading = asyncio.create_task(answer.next_chunk())
            await asyncio.sleep(0)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                read += await reading
            # The connection continues whether or not the read was cancelled.
            await asyncio.sleep(0.001)
            if answer.is_complete and not answer.unread and not answer.inflater:
                break
        answer.close()

    assert len(read) == len(body)
    assert read == body
