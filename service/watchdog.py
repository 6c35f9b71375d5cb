"""Ends a process that only a new one can replace.

The platform asks for health while it deploys and not after, so a wedged process must go by itself.
Two things count as wedged: an event loop that stands still, and a pool that fails while a fresh
connection succeeds. A database that is down is neither: a process that ended itself for that would
only join the restart cycle.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from service.address import DatabaseAddress
from service.db import Database, connect_once

log = structlog.get_logger()

EX_WEDGED: Final = 70
"""Exit status of a process that ended itself, EX_SOFTWARE of sysexits.h."""
CHECKS: Final = 5
"""How often within its time a stall is looked for."""
MOST_CHECK_S: Final = 1.0
PING_TIMEOUT_S: Final = 5.0

End = Callable[[], None]


def end_process() -> None:
    """Leave at once. Nothing that a wedged loop or pool would have to finish can be finished;
    holds in the database are what is left of the calls under way."""
    os._exit(EX_WEDGED)


class LoopWatchdog:
    """A thread that ends the process when the event loop has not run for ``stalled_s`` seconds."""

    def __init__(self, stalled_s: float, end: End = end_process) -> None:
        self._stalled_s = stalled_s
        self._check_s = min(MOST_CHECK_S, stalled_s / CHECKS)
        self._end = end
        self._ran_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """To be called on the loop that is watched."""
        self._ticking = asyncio.create_task(self._tick())
        self._thread.start()

    def stop(self) -> None:
        """No longer end anything."""
        self._stop.set()
        if self._ticking is not None:
            self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            self._ran_at = time.monotonic()
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
                log.critical("event loop stalled, ending the process", stalled_s=self._stalled_s)
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                self._end()
                return


async def watch_pool(
    database: Database, address: DatabaseAddress, failing_s: float, end: End = end_process
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
