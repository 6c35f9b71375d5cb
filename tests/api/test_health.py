"""Health: the bodies as the contract gives them, and never a lie."""

import asyncio
import time

import pytest
from support import make_settings, running

from service import api
from service.database.connections import Database


async def read(service, path, method="GET"):
    """Status and raw text."""
    async with service.http.request(method, path) as response:
        return response.status, await response.text()


async def test_health_is_exact(service):
    """The body is the contract's, key for key and in that order."""
    assert await read(service, "/health") == (
        200,
        '{"status":"ok","environment":"development","database":"ok"}',
    )


async def test_full_health_is_exact(service):
    """The full body is the contract's, key for key and in that order."""
    assert await read(service, "/health/full") == (
        200,
        '{"backend":"ok","database":"ok","venice_api":"ok","environment":"development"}',
    )


@pytest.mark.parametrize("path", ["/health", "/health/full"])
async def test_head(service, path):
    """HEAD answers like GET, without a body."""
    assert await read(service, path, "HEAD") == (200, "")


async def test_health_costs_nothing(upstream, service):
    """No health check makes a paid call, and /health asks Venice nothing at all."""
    upstream.calls.clear()
    await read(service, "/health")
    assert len(upstream.calls) == 0

    await read(service, "/health/full")

    assert [call.path for call in upstream.calls] == ["/api_keys/rate_limits"]
    assert upstream.calls.charged_nanos == 0


async def test_a_flood_asks_the_database_once(service, monkeypatch):
    """Nobody needs a key for it, so however many ask they take one connection."""
    under_way, most, ping = 0, 0, Database.ping

    async def counted(*arguments, **named):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await ping(*arguments, **named)
        finally:
            under_way -= 1

    monkeypatch.setattr(Database, "ping", counted)
    answers = await asyncio.gather(*(read(service, "/health") for _ in range(50)))

    assert {status for status, _ in answers} == {200}
    assert most == 1


async def test_full_health_is_asked_once(upstream, service):
    """However many ask, Venice is asked once in five seconds."""
    answers = await asyncio.gather(*(read(service, "/health/full") for _ in range(30)))

    assert {status for status, _ in answers} == {200}
    assert len(upstream.calls.to("/api_keys/rate_limits")) == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("invalid_key", "error: upstream_exhausted (environment: invalid)"),
        ("insufficient_balance", "error: upstream_exhausted (environment: spent)"),
        ("inference_failed", "error: upstream_error"),
        ("disconnect", "error: upstream_cut"),
    ],
)
async def test_full_health_says_what_is_wrong_with_venice(upstream, service, kind, said):
    """A Venice that fails, or refuses the key, makes the full health a 503."""
    upstream.faults.push("/api_keys/rate_limits", kind)

    status, body = await read(service, "/health/full")

    assert status == 503
    assert body == (
        f'{{"backend":"ok","database":"ok","venice_api":"{said}","environment":"development"}}'
    )
    assert (await read(service, "/health"))[0] == 200


async def test_full_health_does_not_wait_for_venice(upstream, service):
    """A Venice that hangs is an error within five seconds and a bit."""
    upstream.faults.push("/api_keys/rate_limits", "hang")
    started = time.monotonic()

    status, body = await read(service, "/health/full")

    assert status == 503
    assert '"venice_api":"error: upstream_timeout"' in body
    assert time.monotonic() - started < 6


async def test_draining_is_said(upstream, service):
    """A process on its way out says so, and asks Venice nothing more."""
    service.app[api.STATUS].is_draining = True
    upstream.calls.clear()

    assert await read(service, "/health") == (
        503,
        '{"status":"draining","environment":"development","database":"ok"}',
    )
    assert await read(service, "/health/full") == (
        503,
        '{"backend":"draining","database":"ok","venice_api":"unknown","environment":"development"}',
    )
    assert upstream.calls.to("/api_keys/rate_limits") == []


@pytest.mark.parametrize("path", ["/health", "/health/full"])
async def test_a_database_that_hangs(proxy, proxied_address, upstream, path):
    """Half-open connections: health is a 503 within its deadline, and well again afterwards."""
    async with running(make_settings(proxied_address, upstream.url)) as service:
        proxy.blackhole()
        started = time.monotonic()
        status, body = await read(service, path)

        assert time.monotonic() - started < 2.1
        assert status == 503
        assert '"database":"error: TimeoutError"' in body
        await proxy.restore()
        async with asyncio.timeout(8):
            while (await read(service, "/health"))[0] != 200:
                await asyncio.sleep(0.1)


async def test_a_database_that_refuses(proxy, proxied_address, upstream):
    """A database that is gone makes health a 503 that names the class and nothing secret."""
    async with running(make_settings(proxied_address, upstream.url)) as service:
        proxy.refuse()
        proxy.reset()
        status, body = await read(service, "/health")

        assert status == 503
        assert body.startswith('{"status":"error","environment":"development","database":"error: ')
        for secret in ("127.0.0.1", "postgres@", proxied_address.database):
            assert secret not in body
        await proxy.restore()
        async with asyncio.timeout(5):
            while (await read(service, "/health"))[0] != 200:
                await asyncio.sleep(0.05)
