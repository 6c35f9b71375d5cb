"""Keeps the ledger in order: leases, alerts, counters of end users, the tables of its months."""

import asyncio
from functools import partial
from typing import Final

from service import ledger
from service.audit import Actor
from service.background.repeated import every
from service.database.database import Database
from service.ledger import Ledger

LEASES_EVERY_S: Final = 15.0
ALERTS_EVERY_S: Final = 60.0
ALERTS_PAUSE_S: Final = 1.0
END_USERS_EVERY_S: Final = 600.0
PARTITIONS_EVERY_S: Final = 6 * 3600.0
RETENTION_EVERY_S: Final = 6 * 3600.0
RETRY_S: Final = 60.0
RETENTION: Final = Actor(name="retention")


def keep_leases(books: Ledger, database: Database) -> asyncio.Task[None]:
    """Renew the leases of this process's calls and settle those that have run out."""

    async def work() -> None:
        # Its own first: after an outage they have run out too, but their calls are alive.
        await books.renew_leases()
        await ledger.sweep(database)

    return every(LEASES_EVERY_S, work, "leases")


def keep_alerts(books: Ledger, database: Database) -> asyncio.Task[None]:
    """Announce the thresholds that limits have reached: when a settlement has reached one, and
    now and then, since the process that noted it may be gone."""

    async def work() -> None:
        await ledger.announce(database)
        await books.report_implausible()
        # Thresholds that are reached during the pause are announced together after it.
        await asyncio.sleep(ALERTS_PAUSE_S)

    return every(ALERTS_EVERY_S, work, "alerts", waits_first=True, wake=books.alerts_are_due)


def keep_end_users(database: Database) -> asyncio.Task[None]:
    """Remove counters of end users that count nothing any more."""
    work = partial(ledger.sweep_end_users, database)
    return every(END_USERS_EVERY_S, work, "end users", waits_first=True)


def keep_partitions(database: Database) -> asyncio.Task[None]:
    """Make the ledger's months three ahead, so that there is time to mend a failure. None can be
    made while somebody reads the ledger."""
    work = partial(ledger.make_partitions, database)
    return every(PARTITIONS_EVERY_S, work, "partitions", retry_s=RETRY_S, jitter=0.2)


def keep_retention(database: Database, months: int) -> asyncio.Task[None]:
    """Drop the ledger's months that are older than ``months``."""
    work = partial(ledger.retain, database, RETENTION, months)
    return every(RETENTION_EVERY_S, work, "retention", retry_s=RETRY_S)
