"""Runs the application: starts, listens, drains and stops.

aiohttp closes the listener first and drops request bodies that are still arriving, so we drain
ourselves. The service keeps listening for a moment while ``/health`` returns 503, lets open
requests finish, ends the others with a proper error, and only then closes.
"""

import asyncio
import contextlib
import dataclasses
import gc
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog
import uvloop
from aiohttp import web

from service import api
from service.app import ADDRESS, SANDBOX_URL, create_app
from service.background.watchdog import LoopWatchdog, watch_pool
from service.process import lifecycle
from service.settings import Settings

log = structlog.get_logger()

FINAL_DRAIN_S: Final = 4.0
"""The time for ended calls to send their last response bytes."""
POLL_S: Final = 0.05
THREAD_SWITCH_S: Final = 0.0005
"""How long a thread that parses a large body may hold Python's lock while the event loop waits.

Python's default of 5 ms, at each of the many points where a call waits, adds up to 80 ms per call.
"""
GARBAGE_THRESHOLDS: Final = (20_000, 20, 50)
"""The number of new objects after which Python collects its youngest generation, and how often
older generations are collected with it.

A call creates a thousand objects and hardly any cycles. Python's default thresholds would collect
twice per call.
"""
OnListening = Callable[[web.Application, int], Awaitable[None]]
"""Called once with the application and the port."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What a process gets from its parent. ``channel`` reaches its end when the parent exits."""

    channel: socket.socket
    sockets: Sequence[socket.socket]
    metrics_directory: Path
    sandbox_url: str | None


def run(
    settings: Settings, on_listening: OnListening | None = None, parent: Parent | None = None
) -> int:
    """Serve on a new event loop until asked to stop. Returns the exit status."""
    return uvloop.run(serve(settings, on_listening, parent))


async def serve(
    settings: Settings, on_listening: OnListening | None = None, parent: Parent | None = None
) -> int:
    """Serve until asked to stop. Returns the exit status."""
    # Install handlers before anything slow. As process 1 of a container, Python would otherwise
    # ignore SIGTERM.
    signals = lifecycle.StopSignals()
    app = create_app(settings)
    if parent is not None:
        app[api.METRICS_DIRECTORY] = parent.metrics_directory
        if parent.sandbox_url is not None:
            app[SANDBOX_URL] = parent.sandbox_url
        _stop_with_parent(parent, signals)
    runner = api.make_runner(app)
    sockets: Sequence[socket.socket] = ()
    try:
        # A port that is in use is found before anything is opened. Nothing connects before a site
        # listens.
        sockets = await lifecycle.bind(settings) if parent is None else parent.sockets
        sites = await _start(runner, settings, signals, sockets)
        if not sites:
            return 0
        _tune_python()
        with _watched(app, settings):
            if parent is not None:
                # A parent that has exited is noticed through its channel.
                with contextlib.suppress(OSError):
                    parent.channel.send(lifecycle.READY)
            if on_listening is not None:
                await on_listening(app, runner.addresses[0][1])
            await signals.stop.wait()
            await _drain(app, sites, settings, signals)
    except Exception as error:  # noqa: BLE001 - logged with its traceback
        lifecycle.log_failed_start(error)
        return lifecycle.EX_FAILED
    finally:
        await runner.cleanup()
        for one in sockets:
            one.close()
    log.info("stopped")
    return 0


def _tune_python() -> None:
    """Collect garbage rarely and never among startup objects, and shorten thread switches.

    The garbage of a start stays, some 0.3 MB. Collecting it would take a tenth of the start.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(THREAD_SWITCH_S)


def _stop_with_parent(parent: Parent, signals: lifecycle.StopSignals) -> None:
    """Stop when the parent process exits, for whatever reason."""
    loop = asyncio.get_running_loop()

    def on_parent_exit() -> None:
        loop.remove_reader(parent.channel)
        log.error("parent process exited")
        signals.stop.set()

    # The parent never sends anything, so a readable channel means that it has exited.
    loop.add_reader(parent.channel, on_parent_exit)


async def _start(
    runner: web.AppRunner,
    settings: Settings,
    signals: lifecycle.StopSignals,
    sockets: Sequence[socket.socket],
) -> list[web.SockSite]:
    """Start what listens on the sockets. Empty if a stop came first."""
    starting = asyncio.create_task(runner.setup())
    stopping = asyncio.create_task(signals.stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if signals.stop.is_set():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return []
    await starting
    sites = [web.SockSite(runner, one) for one in sockets]
    try:
        for site in sites:
            await site.start()
    except OSError as error:
        raise lifecycle.not_listening(settings, error) from None
    log.info("listening", host=settings.host or "*", port=runner.addresses[0][1])
    return sites


@contextlib.contextmanager
def _watched(app: web.Application, settings: Settings) -> Iterator[None]:
    loop_watchdog = LoopWatchdog(settings.watchdog_loop_s)
    loop_watchdog.start()
    watching = asyncio.create_task(
        watch_pool(app[api.DATABASE], app[ADDRESS], settings.watchdog_pool_s)
    )
    try:
        yield
    finally:
        watching.cancel()
        loop_watchdog.stop()


async def _drain(
    app: web.Application,
    sites: Sequence[web.BaseSite],
    settings: Settings,
    signals: lifecycle.StopSignals,
) -> None:
    status, gateway = app[api.STATUS], app[api.GATEWAY]

    def is_empty() -> bool:
        return status.open_requests == 0 and gateway.open_calls == 0

    status.is_draining = True
    log.info("draining", open_requests=status.open_requests, open_calls=gateway.open_calls)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.shutdown_listen_s):
            await signals.hurry.wait()
    for site in sites:
        await site.stop()
    log.info("no longer listening", open_requests=status.open_requests)
    await _until(is_empty, settings.shutdown_timeout_s, signals.hurry)
    if not is_empty():
        ended = gateway.end_open_calls()
        log.warning(
            "shutdown timeout reached", calls_ended=ended, open_requests=status.open_requests
        )
        await _until(is_empty, FINAL_DRAIN_S)
    log.info("drained", open_requests=status.open_requests, open_calls=gateway.open_calls)


async def _until(
    is_true: Callable[[], bool], timeout: float, hurry: asyncio.Event | None = None
) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            # Polling is cheaper: an event for each change of the two counters would cost every
            # request.
            while not is_true() and not (hurry is not None and hurry.is_set()):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
