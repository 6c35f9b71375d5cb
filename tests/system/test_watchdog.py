"""The watchdog: which faults end a process, and which must not."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from process import ROOT
from support import make_settings

from service.background import watchdog
from service.database.pool import open_pool

pytestmark = pytest.mark.slow

STALL = """
import asyncio, re, time
from service.background.watchdog import LoopWatchdog
from service.telemetry import logs

logs.configure("info", "json")

async def main():
    LoopWatchdog(1).start()
    await asyncio.sleep(2.5)
    print("alive", flush=True)
    time.sleep(30)

asyncio.run(main())
"""


def test_a_stalled_loop_ends_the_process():
    """An event loop that stalls for longer than the setting ends the process with 70 and every
    thread's stack."""
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", STALL],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == watchdog.EX_WEDGED
    assert run.stdout.startswith("alive")
    assert "in main" in run.stderr
    assert time.monotonic() - started < 15


def test_a_stall_that_holds_the_gil_ends_the_process():
    """A stall that holds Python's lock, so that no Python thread can run, is ended by the operating
    system."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            STALL.replace("time.sleep(30)", 're.match("(a|a)*$", "a" * 40 + "b")'),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert run.returncode == signal.SIGPROF
    assert run.stdout.startswith("alive")


def test_a_watchdog_that_is_stopped_ends_nothing():
    """A watchdog that was stopped ends nothing, and neither does its timer."""
    stopped = STALL.replace("LoopWatchdog(1).start()", "w = LoopWatchdog(0.5); w.start()").replace(
        "sleep(2.5)", "sleep(0.1); w.stop(); await asyncio.sleep(2.5)"
    )
    run = subprocess.run(
        [sys.executable, "-c", stopped.replace("time.sleep(30)", "sum(range(10**8))")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 0


def test_a_full_log_does_not_keep_a_stalled_process():
    """A stalled process ends although standard error is a full pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    run = subprocess.run(
        [sys.executable, "-c", STALL],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=writing,
        timeout=25,
        check=False,
    )
    os.close(reading)
    os.close(writing)

    assert run.returncode == watchdog.EX_WEDGED


async def test_a_pool_that_fails_alone_ends_the_process(proxied_address):
    """A pool whose connections have all leaked, while a new connection works, ends the process."""
    ended = asyncio.Event()
    settings = make_settings(proxied_address, "http://x")
    async with open_pool(settings, proxied_address) as pool:
        leaked = [await pool._pool.acquire() for _ in range(5)]
        watching = asyncio.create_task(watchdog.watch_pool(pool, proxied_address, 0.5, ended.set))
        async with asyncio.timeout(20):
            await ended.wait()
        watching.cancel()
        for connection in leaked:
            await pool._pool.release(connection)


@pytest.mark.parametrize("outage", ["refuse", "blackhole"])
async def test_a_database_that_is_down_ends_nothing(proxy, proxied_address, outage):
    """When neither the pool nor a new connection works the database is down, and the process
    stays."""
    ended = asyncio.Event()
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.3)
    async with open_pool(settings, proxied_address) as pool:
        getattr(proxy, outage)()
        proxy.reset()
        watching = asyncio.create_task(watchdog.watch_pool(pool, proxied_address, 0.5, ended.set))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                await ended.wait()
        assert not ended.is_set()
        await proxy.restore()
        watching.cancel()


async def test_a_recovered_database_gives_the_pool_time(proxy, proxied_address):
    """A pool that recovers a moment after the database is not blamed for the outage."""
    ended = asyncio.Event()
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.3)
    async with open_pool(settings, proxied_address) as pool:
        leaked = [await pool._pool.acquire() for _ in range(5)]
        proxy.refuse()
        watching = asyncio.create_task(watchdog.watch_pool(pool, proxied_address, 2, ended.set))
        await asyncio.sleep(4)
        await proxy.restore()
        await asyncio.sleep(1.2)
        for connection in leaked:
            await pool._pool.release(connection)
        await asyncio.sleep(1)
        watching.cancel()

    assert not ended.is_set()


async def test_a_pool_that_works_is_left_alone(proxied_address):
    """A process whose pool works is left alone."""
    ended = asyncio.Event()
    settings = make_settings(proxied_address, "http://x")
    async with open_pool(settings, proxied_address) as pool:
        watching = asyncio.create_task(watchdog.watch_pool(pool, proxied_address, 0.2, ended.set))
        await asyncio.sleep(1)
        watching.cancel()

    assert not ended.is_set()
