"""A database outage never ends a serving process, and calls fail closed."""

import asyncio
import time

import pytest
from process import client_of, database_url, started

pytestmark = pytest.mark.slow


def environment(address, upstream):
    """Return the environment of a process whose watchdog counts seconds instead of minutes."""
    return {
        "DATABASE_URL": database_url(address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "WATCHDOG_POOL_SECONDS": "1",
        "DATABASE_ACQUIRE_TIMEOUT_SECONDS": "1",
        "KEY_CACHE_SECONDS": "60",
    }


async def test_an_outage_ends_no_process(tmp_path, proxy, proxied_address, upstream):
    """During an outage ten times as long as the watchdog's timeout, first refusing and then
    hanging, the process stays, new calls are a 503 and a running stream continues; afterwards
    everything is recorded."""
    async with (
        started(tmp_path, **environment(proxied_address, upstream)) as process,
        client_of(process) as service,
    ):
        caller = await service.new_caller()
        async with caller.chat("[tokens=60][delay=0.05]", stream=True) as stream:
            await stream.content.readline()
            for outage in (proxy.refuse, proxy.blackhole):
                outage()
                proxy.reset() if outage == proxy.refuse else None
                ends_at = time.monotonic() + 5
                while time.monotonic() < ends_at:
                    asked_at = time.monotonic()
                    async with caller.chat() as response:
                        assert response.status == 503
                        assert (await response.json())["error"]["code"] == "unavailable"
                        assert int(response.headers["Retry-After"]) > 0
                    assert time.monotonic() - asked_at < 4
                    async with service.http.get("/health") as response:
                        assert response.status == 503
                assert process.is_running
            text = (await stream.read()).decode()
            assert text.endswith("data: [DONE]\n\n")
            await proxy.restore()
            proxy.reset()
        async with asyncio.timeout(15):
            while True:
                async with caller.chat() as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.1)
            while len(entries := await caller.entries()) < 2:
                await asyncio.sleep(0.1)
        process.send()
        assert await process.ended() == 0

    assert {entry["outcome"] for entry in entries} == {"ok"}
    assert process.lines_with("database is down; staying")
    assert not process.lines_with("pool is wedged, ending the process")
