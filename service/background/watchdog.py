"""Ends a process that only a new one can replace.

The platform asks for health while it deploys and not after, so a wedged process must go by itself.
Two things count as wedged: an event loop that stands still, and a pool that fails while a fresh
connection succeeds. A database that is down is neither: a process that ended itself for that would
only join the restart cycle.
"""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

import structlog

from service.database.connections import connect_once
from service.database.database import Database
from service.settings.address import DatabaseAddress
from service.telemetry import logs

log = structlog.get_logger()

EX_WEDGED: Final = 70
"""Exit status of a process that ended itself, EX_SOFTWARE of sysexits.h."""
CHECKS: Final = 5
"""The number of checks within the limit of a stall."""
MAX_CHECK_S: Final = 1.0
REPORT_S: Final = 1.0
"""How long the end of the process waits for its reason to be logged."""
CPU_FACTOR: Final = 2
"""A stall also ends the process after this many times its limit in CPU time. Above 1, since threads
that read bodies use CPU time beside the loop, and since the thread that reports goes first."""
PING_TIMEOUT_S: Final = 5.0

End = Callable[[], None]


def end_process() -> None:
    """Leave at once. Nothing that a wedged loop or pool would have to finish can be finished;
    holds in the database are what is left of the calls under way."""
    os._exit(EX_WEDGED)


def flush_and_end_process() -> None:
    """Flush the log for at most REPORT_S, then end the process."""
    logs.flush(REPORT_S)
    end_process()


def _stacks() -> str:
    """Where each thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - it is documented
    )


def _end_on(number: signal.Signals) -> None:
    """Let the signal end the process by the system's own ``_exit``, with the signal's number as the
    status. A handler of Python's would wait for Python's lock, and the first process of a container
    gets no signal that has no handler."""
    system = ctypes.CDLL(None)
    system.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    system.signal.restype = ctypes.c_void_p
    leave = system["_exit"]
    system.signal(number, ctypes.cast(leave, ctypes.c_void_p))


class LoopWatchdog:
    """A thread that ends the process when the event loop has not run for ``stalled_s`` seconds.

    It logs nothing itself: a second thread reports the reason, and has REPORT_S for it. Whatever
    that one waits for, the process ends.

    No thread can run while another one holds Python's lock, as a regular expression does. So each
    tick also arms ITIMER_PROF, whose signal ends the process without a log line. It counts CPU
    time, so a process that was stopped is not ended.
    """

    def __init__(self, stalled_s: float, end: End = end_process) -> None:
        self._stalled_s = stalled_s
        self._check_s = min(MAX_CHECK_S, stalled_s / CHECKS)
        self._end = end
        self._ran_at = time.monotonic()
        self._stop = threading.Event()
        self._has_stalled = threading.Event()
        self._is_reported = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
            threading.Thread(target=self._report, name="watchdog report", daemon=True),
        ]
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """To be called on the loop that is watched."""
        _end_on(signal.SIGPROF)
        self._ticking = asyncio.create_task(self._tick())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No longer end anything."""
        self._stop.set()
        self._has_stalled.set()
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self._ticking is not None:
            self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            self._ran_at = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, self._stalled_s * CPU_FACTOR)
            await asyncio.sleep(self._check_s)

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._stop.wait(self._check_s):
            now = time.monotonic()
            if now - looked_at > self._check_s * 3:
                # The whole process stood still, not its loop: it gets its time anew.
                self._ran_at = now
            looked_at = now
            if now - self._ran_at > self._stalled_s:
                self._has_stalled.set()
                self._is_reported.wait(REPORT_S)
                self._end()
                return

    def _report(self) -> None:
        self._has_stalled.wait()
        if not self._stop.is_set():
            log.critical(
                "event loop stalled, ending the process",
                stalled_s=self._stalled_s,
                stacks=_stacks(),
            )
            logs.flush(REPORT_S)
            self._is_reported.set()


async def watch_pool(
    database: Database, address: DatabaseAddress, failing_s: float, end: End = flush_and_end_process
) -> None:
    """End the process when nothing has gone through the pool for ``failing_s`` seconds although
    connections of its own succeed all that time.

    The time starts anew whenever such a connection fails: a database that has just come back is
    no reason to end, however long it was away.
    """
    wedged_at: float | None = None
    while True:
        await asyncio.sleep(min(10.0, failing_s / 4))
        try:
            await database.ping(min(PING_TIMEOUT_S, failing_s))
            wedged_at = None
            continue
        except Exception as error:  # noqa: BLE001 - any failure is what is watched for
            silent_s = round(time.monotonic() - database.succeeded_at, 1)
            log.warning("pool fails", error=type(error).__name__, silent_s=silent_s)
        try:
            await connect_once(address, min(PING_TIMEOUT_S, failing_s))
        except Exception as error:  # noqa: BLE001 - then the database is down, and we stay
            log.warning("database is down; staying", error=type(error).__name__)
            wedged_at = None
            continue
        now = time.monotonic()
        wedged_at = max(wedged_at or now, database.succeeded_at)
        if now - wedged_at >= failing_s:
            log.critical("pool is wedged, ending the process", silent_s=silent_s)
            end()
            return
