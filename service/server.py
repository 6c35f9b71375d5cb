"""The process around the application: start, listen, drain, leave.

aiohttp's own way to stop closes the listener first and drops body bytes that are still arriving, so
the drain is ours: go on listening for a moment while ``/health`` says 503, let what is inside
finish, end what is left with a proper error, and only then close.
"""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from service import api
from service.app import ADDRESS, SANDBOX_URL, create_app
from service.errors import StartupError
from service.settings import Settings
from service.watchdog import LoopWatchdog, watch_pool

log = structlog.get_logger()

EX_FAILED: Final = 1
KEEPALIVE_S: Final = 75.0
"""Longer than the edge's 60 s, so that the edge is the one that closes idle connections."""
GOODBYE_S: Final = 4.0
"""How long calls get to say goodbye when their time is over."""
HANDLER_END_S: Final = 1.0
POLL_S: Final = 0.05
GARBAGE_THRESHOLDS: Final = (20_000, 20, 50)
"""How many objects come to be before Python looks for cycles among the youngest, and how often
older ones are looked at with them. A call makes a thousand objects and hardly a cycle: by Python's
own thresholds it is looked for twice a call."""
LISTENS: Final = b"+"
"""What a process tells the one that started it, once."""

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


class StopSignals:
    """SIGTERM and SIGINT: the first asks to stop, a second one to hurry. ``also`` is called with
    the number of each."""

    def __init__(self, also: Callable[[int], None] = lambda _: None) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._also = also
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()
        log.info("signal received", signal=number.name, hurry=self.hurry.is_set())
        self._also(number)


async def serve(
    settings: Settings, on_listening: OnListening | None = None, parent: Parent | None = None
) -> int:
    """Run until told to stop; returns the exit status."""
    # Before anything can take long: as the first process of a container, Python would otherwise
    # ignore SIGTERM.
    signals = StopSignals()
    app = create_app(settings)
    if parent is not None:
        app[api.METRICS_DIRECTORY] = parent.metrics_directory
        if parent.sandbox_url is not None:
            app[SANDBOX_URL] = parent.sandbox_url
        _stop_with(parent, signals)
    # A hang-up must reach the handler at once, not at its next write.
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=HANDLER_END_S,
    )
    try:
        sites = await _start(runner, settings, signals, parent)
        if not sites:
            return 0
        _collect_garbage_seldom()
        with _watched(app, settings):
            if parent is not None:
                # One that has ended is heard of by another way.
                with contextlib.suppress(OSError):
                    parent.line.send(LISTENS)
            if on_listening is not None:
                await on_listening(app, runner.addresses[0][1])
            await signals.stop.wait()
            await _drain(app, sites, settings, signals)
    except Exception as error:  # noqa: BLE001 - logged with its traceback
        say_why(error)
        return EX_FAILED
    finally:
        await runner.cleanup()
    log.info("stopped")
    return 0


def _collect_garbage_seldom() -> None:
    """What is there once the service has started stays: no search goes through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _stop_with(parent: Parent, signals: StopSignals) -> None:
    """Stop when the process that started this one has ended, however it did."""
    loop = asyncio.get_running_loop()

    def has_ended() -> None:
        loop.remove_reader(parent.line)
        log.error("the process that started this one has ended")
        signals.stop.set()

    # It never says anything, so whatever there is to be read is the end.
    loop.add_reader(parent.line, has_ended)


def say_why(error: Exception) -> None:
    """The traceback, unless the failure is told in full by its own words; then what to do, last."""
    known = isinstance(error, StartupError)
    if not known or error.__cause__ is not None:
        log.error("traceback of the failed start", exc_info=error)
    what = str(error) if known else f"{type(error).__name__}, which is not a known way to fail."
    hint = (
        error.hint if isinstance(error, StartupError) else "The traceback says where it happened."
    )
    log.error("start failed", error=what, hint=hint)


async def _start(
    runner: web.AppRunner, settings: Settings, signals: StopSignals, parent: Parent | None
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
    sockets = await bind(settings) if parent is None else parent.sockets
    sites = [web.SockSite(runner, one) for one in sockets]
    try:
        for site in sites:
            await site.start()
    except OSError as error:
        raise _not_listening(settings, error) from None
    log.info("listening", host=settings.host or "*", port=runner.addresses[0][1])
    return sites


async def bind(settings: Settings) -> list[socket.socket]:
    """A socket for each address of HOST at PORT. They do not listen yet.

    :raises StartupError: when the port is taken, or the host is none of this machine.
    """
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            asyncio.Protocol, settings.host or None, settings.port, start_serving=False
        )
    except (OSError, UnicodeError) as error:
        raise _not_listening(settings, error) from None
    sockets = [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
    server.close()
    return sockets


def _not_listening(settings: Settings, error: OSError | UnicodeError) -> StartupError:
    hint = "Set HOST to an address of this machine, or to nothing for every interface."
    reason = "not a host name"
    if isinstance(error, socket.gaierror):
        reason = error.strerror or reason
    elif isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            hint = "Set PORT to a free port, or stop what listens there."
        elif error.errno == errno.EACCES:
            hint = "Set PORT to 1024 or above: the ports below belong to root."
        elif error.errno != errno.EADDRNOTAVAIL:
            hint = "Check HOST and PORT."
    return StartupError(f"Cannot listen on {settings.host or '*'}:{settings.port}: {reason}.", hint)


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
    signals: StopSignals,
) -> None:
    status, gateway = app[api.STATUS], app[api.GATEWAY]

    def is_empty() -> bool:
        return status.open_requests == 0 and gateway.open_calls == 0

    status.is_draining = True
    log.info("draining", open_requests=status.open_requests, open_calls=gateway.open_calls)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(signals.hurry.wait(), settings.shutdown_listen_s)
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
