"""A log that nobody reads, or that is closed, changes nothing for callers and the ledger."""

import asyncio
import contextlib
import fcntl
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from process import database_url, variables
from support import Service, configured_logs, make_settings, running

from service import api
from service.background import queued_jobs, upkeep, upstream_keys
from service.telemetry import metrics


@contextlib.asynccontextmanager
async def serving(directory, address, upstream, port, **streams):
    """Run a service process with the given standard streams; yield it and its Service."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        cwd=directory,
        env=variables(
            directory,
            DATABASE_URL=database_url(address),
            VENICE_API_KEY="sandbox",
            VENICE_BASE_URL=f"{upstream.url}/api/v1",
            PORT=str(port),
            LOG_LEVEL="debug",
        ),
        **streams,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with asyncio.timeout(30):
                while not await is_healthy(http):
                    await asyncio.sleep(0.05)
            yield process, Service(None, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def is_healthy(http):
    """Return whether ``/health`` is 200."""
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with http.get("/health") as response:
            return response.status == 200
    return False


@pytest.fixture
def pipe():
    """A pipe of one page, as descriptors for reading and for writing."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


async def test_a_log_that_nobody_reads(tmp_path, database_address, upstream, unused_tcp_port, pipe):
    """With standard output and error on one full pipe calls are answered and recorded, health is
    200, dropped lines are counted, and SIGTERM ends the process with 0."""
    _, writing = pipe
    streams = {"stdout": writing, "stderr": writing}
    async with serving(tmp_path, database_address, upstream, unused_tcp_port, **streams) as (
        process,
        service,
    ):
        caller = await service.new_caller()
        async with asyncio.timeout(60):
            for _ in range(100):
                async with caller.chat() as response:
                    assert response.status == 200
            assert len(await caller.entries()) == 100
            assert await is_healthy(service.http)
            process.terminate()
            assert await process.wait() == 0


async def test_a_closed_log(tmp_path, database_address, upstream, unused_tcp_port, pipe):
    """After the reader closed standard error calls are answered as before, and SIGTERM ends the
    process with 0."""
    reading, writing = pipe
    async with serving(
        tmp_path, database_address, upstream, unused_tcp_port, stdout=writing, stderr=writing
    ) as (process, service):
        os.close(writing)
        os.close(reading)
        caller = await service.new_caller()
        for _ in range(3):
            upstream.faults.push("/chat/completions", "inference_failed")
            async with caller.chat() as response:
                assert response.status >= 500
                assert (await response.json())["error"]["request_id"]
        assert await is_healthy(service.http)
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0


async def test_wrong_settings_end_a_process_with_a_full_log(tmp_path, pipe):
    """The exit status reports wrong settings although nobody reads the messages."""
    reading, writing = pipe
    os.write(writing, b"x" * 4096)
    for _ in ("full", "closed"):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service",
            cwd=tmp_path,
            env=variables(tmp_path, PORT="none"),
            stderr=writing,
        )
        async with asyncio.timeout(30):
            assert await process.wait() == 78
        with contextlib.suppress(OSError):
            os.close(reading)


async def test_no_standard_streams_at_all(tmp_path, database_address, upstream, unused_tcp_port):
    """With its standard streams closed the service works, and none of its connections gets the
    number of one of them."""
    shell = f"exec {sys.executable} -m service <&- >&- 2>&-"
    process = await asyncio.create_subprocess_shell(
        shell,
        cwd=tmp_path,
        env=variables(
            tmp_path,
            DATABASE_URL=database_url(database_address),
            VENICE_API_KEY="sandbox",
            VENICE_BASE_URL=f"{upstream.url}/api/v1",
            PORT=str(unused_tcp_port),
        ),
    )
    async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as http:
        async with asyncio.timeout(30):
            while not await is_healthy(http):
                await asyncio.sleep(0.05)
    for descriptor in range(3):
        assert Path(f"/proc/{process.pid}/fd/{descriptor}").readlink() == Path(os.devnull)
    process.terminate()
    async with asyncio.timeout(20):
        assert await process.wait() == 0


def dropped():
    """Return how many lines this process has dropped, according to /metrics."""
    metrics.flush_noted()
    return metrics.REGISTRY.get_sample_value("rialto_log_lines_dropped_total")


@pytest.fixture
def closed_log(pipe):
    """The log of this process is a pipe that nobody can read any more."""
    reading, writing = pipe
    os.close(reading)
    with os.fdopen(os.dup(writing), "w") as stream, configured_logs("debug", "json", stream):
        yield


@pytest.mark.usefixtures("closed_log")
async def test_background_work_survives_a_closed_log(proxy, proxied_address, upstream, monkeypatch):
    """After a database outage during which nothing could be logged, each background task still
    runs, and the lease of a call in flight is renewed."""
    monkeypatch.setattr(upkeep, "LEASES_EVERY_S", 0.05)
    monkeypatch.setattr(upstream_keys, "INTERVAL_S", 0.05)
    monkeypatch.setattr(queued_jobs, "INTERVAL_S", 0.05)
    settings = make_settings(proxied_address, upstream.url, database_acquire_timeout_s=0.3)
    async with running(settings) as service:
        caller = await service.new_caller()
        upstream.faults.push("/chat/completions", "hang")
        call = asyncio.create_task(caller.chat().__aenter__())
        lease = "SELECT max(lease_until) FROM public.holds"
        database = service.app[api.DATABASE]
        async with asyncio.timeout(20):
            while await database.fetchval(lease) is None:
                await asyncio.sleep(0.02)
            proxy.refuse()
            proxy.reset()
            enough = dropped() + 10
            while dropped() < enough:
                await asyncio.sleep(0.05)
            await proxy.restore()
            before = None
            while before is None:
                with contextlib.suppress(Exception):
                    before = await database.fetchval(lease)
            while await database.fetchval(lease) <= before:
                await asyncio.sleep(0.05)
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert {"listen", "upstream keys", "leases", "generations", "alerts"} <= names
        call.cancel()
