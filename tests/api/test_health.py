"""The health routes: exact bodies, and no false reports."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs
from support import make_settings, running

from service import api
from service.database.database import Database


async def read(service, path, method="GET"):
    """Request a path; return the status and the raw text."""
    async with service.http.request(method, path) as response:
        return response.status, await response.text()


async def test_health_is_exact(service):
    """The body has the contract's keys and values in the contract's order."""
    assert await read(service, "/health") == (
        200,
        '{"status":"ok","environment":"development","database":"ok"}',
    )


async def test_full_health_is_exact(service):
    """The full body has the contract's keys and values in the contract's order."""
    assert await read(service, "/health/full") == (
        200,
        '{"backend":"ok","database":"ok","venice_api":"ok","environment":"development"}',
    )


@pytest.mark.parametrize("path", ["/health", "/health/full"])
async def test_head(service, path):
    """HEAD returns the status of GET without a body."""
    assert await read(service, path, "HEAD") == (200, "")


async def test_health_costs_nothing(upstream, service):
    """No health check makes a paid call, and /health does not ask Venice at all."""
    upstream.calls.clear()
    await read(service, "/health")
    assert len(upstream.calls) == 0

    await read(service, "/health/full")

    assert [call.path for call in upstream.calls] == ["/api_keys/rate_limits"]
    assert upstream.calls.charged_nanos == 0


async def test_a_flood_asks_the_database_once(service, monkeypatch):
    """Any number of concurrent health checks, which need no key, use one connection to the
    database."""
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
    """Any number of full health checks ask Venice once in five seconds."""
    # The service checks its key at its start, too.
    async with asyncio.timeout(20):
        while not service.app[api.VENICE].keys.findings:
            await asyncio.sleep(0.02)
    earlier = len(upstream.calls.to("/api_keys/rate_limits"))
    answers = await asyncio.gather(*(read(service, "/health/full") for _ in range(30)))

    assert {status for status, _ in answers} == {200}
    assert len(upstream.calls.to("/api_keys/rate_limits")) == earlier + 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("invalid_key", "error: upstream_exhausted (environment: invalid)"),
        ("insufficient_balance", "error: upstream_exhausted (environment: spent)"),
        ("inference_failed", "error: upstream_error"),
        ("disconnect", "error: upstream_cut"),
    ],
)
async def test_full_health_reports_venices_problem(upstream, service, kind, expected):
    """The full health is a 503 when Venice fails or refuses the key."""
    upstream.faults.push("/api_keys/rate_limits", kind)

    status, body = await read(service, "/health/full")

    assert status == 503
    assert body == (
        f'{{"backend":"ok","database":"ok","venice_api":"{expected}","environment":"development"}}'
    )
    assert (await read(service, "/health"))[0] == 200


async def test_full_health_does_not_wait_for_venice(upstream, service):
    """The full health reports a hanging Venice after about five seconds."""
    upstream.faults.push("/api_keys/rate_limits", "hang")
    started = time.monotonic()

    status, body = await read(service, "/health/full")

    assert status == 503
    assert '"venice_api":"error: upstream_timeout"' in body
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("path", ["/health", "/health?x=1", "/health/full"])
async def test_a_good_report_is_logged_for_debugging_only(service, path):
    """A 200 is logged at debug level, any other status at info level, as for other requests."""
    with capture_logs() as lines:
        await read(service, path)
        service.app[api.STATUS].is_draining = True
        await read(service, path)

    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["status"], line["log_level"]) for line in requests] == [
        (200, "debug"),
        (503, "info"),
    ]


async def test_draining_is_reported(upstream, service):
    """A draining process reports that, and asks Venice nothing more."""
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
    """With half-open database connections health is a 503 within its deadline, and recovers
    afterwards."""
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
    """With the database down health is a 503 that names the class of the error and nothing
    secret."""
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
