"""The process around the application: start, listen, drain, leave.

aiohttp's own way to stop closes the listener first and drops body bytes that are still arriving, so
the drain is ours: go on listening for a moment while ``/health`` says 503, let what is inside
finish, end what is left with a proper error, and only then close.
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

GOODBYE_S: Final = 4.0
"""How long calls get to say goodbye when their time is over."""
POLL_S: Final = 0.05
THREAD_SWITCH_S: Final = 0.0005
"""How long a thread that reads a large body keeps Python's lock while the event loop waits for it.
Python's own 5 ms, at each of the many points where a call waits, add up to 80 ms a call."""
GARBAGE_THRESHOLDS: Final = (20_000, 20, 50)
"""How many objects come to be before Python looks for cycles among the youngest, and how often
older ones are looked at with them. A call makes a thousand objects and hardly a cycle: by Python's
own thresholds it is looked for twice a call."""
OnListening = Callable[[web.Application, int], Awaitable[None]]
"""Called once with the application and the port."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What one of several processes has from the one that started it. ``line`` leads there: it
    ends when that process does."""

    line: socket.socket
    sockets: Sequence[socket.socket]
    metrics_directory: Path
    sandbox_url: str | None


def run(
    settings: Settings, on_listening: OnListening | None = None, parent: Parent | None = None
) -> int:
    """Serve on an event loop of its own until told to stop; the exit status."""
    return uvloop.run(serve(settings, on_listening, parent))


async def serve(
    settings: Settings, on_listening: OnListening | None = None, parent: Parent | None = None
) -> int:
    """Run until told to stop; returns the exit status."""
    # Before anything can take long: as the first process of a container, Python would otherwise
    # ignore SIGTERM.
    signals = lifecycle.StopSignals()
    app = create_app(settings)
    if parent is not None:
        app[api.METRICS_DIRECTORY] = parent.metrics_directory
        if parent.sandbox_url is not None:
            app[SANDBOX_URL] = parent.sandbox_url
        _stop_with(parent, signals)
    runner = api.make_runner(app)
    try:
        sites = await _start(runner, settings, signals, parent)
        if not sites:
            return 0
        _tune_python()
        with _watched(app, settings):
            if parent is not None:
                # One that has ended is heard of by another way.
                with contextlib.suppress(OSError):
                    parent.line.send(lifecycle.LISTENS)
            if on_listening is not None:
                await on_listening(app, runner.addresses[0][1])
            await signals.stop.wait()
            await _drain(app, sites, settings, signals)
    except Exception as error:  # noqa: BLE001 - logged with its traceback
        lifecycle.say_why(error)
        return lifecycle.EX_FAILED
    finally:
        await runner.cleanup()
    log.info("stopped")
    return 0


def _tune_python() -> None:
    """Collect garbage seldom, never among what was there at the start, and let the event loop have
    Python's lock soon."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    sys.setswitchinterval(THREAD_SWITCH_S)


def _stop_with(parent: Parent, signals: lifecycle.StopSignals) -> None:
    """Stop when the process that started this one has ended, however it did."""
    loop = asyncio.get_running_loop()

    def has_ended() -> None:
        loop.remove_reader(parent.line)
        log.error("the process that started this one has ended")
        signals.stop.set()

    # It never says anything, so whatever there is to be read is the end.
    loop.add_reader(parent.line, has_ended)


async def _start(
    runner: web.AppRunner, settings: Settings, signals: lifecycle.StopSignals, parent: Parent | None
) -> list[web.SockSite]:
    """The sites that listen; none when the stop came first."""
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
    sockets = await lifecycle.bind(settings) if parent is None else parent.sockets
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
        log.warning("time is over", calls_ended=ended, open_requests=status.open_requests)
        await _until(is_empty, GOODBYE_S)
    log.info("drained", open_requests=status.open_requests, open_calls=gateway.open_calls)


async def _until(
    is_true: Callable[[], bool], timeout: float, hurry: asyncio.Event | None = None
) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            # Two counters are watched; an event for each of their changes would cost every request.
            while not is_true() and not (hurry is not None and hurry.is_set()):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
