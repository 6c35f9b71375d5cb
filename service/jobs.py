"""Work that no request waits for."""

import asyncio
import contextlib
from typing import Final

import structlog

from service import ledger
from service.audit import Actor
from service.db import Database
from service.ledger import Ledger

log = structlog.get_logger()

PARTITIONS_EVERY_S: Final = 6 * 3600.0
RETENTION_EVERY_S: Final = 6 * 3600.0
RETENTION: Final = Actor(name="retention")
RETRY_S: Final = 60.0
LEASES_EVERY_S: Final = 15.0
ALERTS_EVERY_S: Final = 60.0
ALERTS_PAUSE_S: Final = 1.0
END_USERS_EVERY_S: Final = 600.0


async def keep_partitions(database: Database) -> None:
    """Make the ledger's months three ahead, for ever; so a failure has time to be mended."""
    while True:
        try:
            await ledger.make_partitions(database)
            await asyncio.sleep(PARTITIONS_EVERY_S)
        except Exception:
            log.exception("ledger partitions not made", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)


async def keep_alerts(books: Ledger, database: Database) -> None:
    """Announce the thresholds that limits have reached, for ever: when a settlement has brought one
    there, and now and then, since the process that knew of it may be gone."""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(books.alerts_are_due.wait(), ALERTS_EVERY_S)
        books.alerts_are_due.clear()
        try:
            await ledger.announce(database)
        except Exception:
            log.exception("alerts not announced", retry_s=ALERTS_EVERY_S)
        # What is reached in the meantime goes with the next time.
        await asyncio.sleep(ALERTS_PAUSE_S)


async def keep_end_users(database: Database) -> None:
    """Take away counters of end users that count nothing any more, for ever."""
    while True:
        await asyncio.sleep(END_USERS_EVERY_S)
        try:
            await ledger.sweep_end_users(database)
        except Exception:
            log.exception("end users not swept", retry_s=END_USERS_EVERY_S)


async def keep_retention(database: Database, months: int) -> None:
    """Drop the ledger's months that are older than so many, for ever."""
    while True:
        try:
            await ledger.retain(database, RETENTION, months)
            await asyncio.sleep(RETENTION_EVERY_S)
        except Exception:
            log.exception("ledger months not dropped", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)


async def keep_leases(books: Ledger, database: Database) -> None:
    """Renew the leases of this process's calls and settle those that have run out, for ever."""
    while True:
        try:
            # Its own first: after an outage they have run out too, but their calls are alive.
            await books.renew_leases()
            await ledger.sweep(database)
        except Exception:
            log.exception("leases not kept", retry_s=LEASES_EVERY_S)
        await asyncio.sleep(LEASES_EVERY_S)
