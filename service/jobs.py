"""Work that no request waits for."""

import asyncio
from typing import Final

import structlog

from service import ledger
from service.db import Database
from service.ledger import Ledger

log = structlog.get_logger()

PARTITIONS_EVERY_S: Final = 6 * 3600.0
RETRY_S: Final = 60.0
LEASES_EVERY_S: Final = 15.0


async def keep_partitions(database: Database) -> None:
    """Make the ledger's months three ahead, for ever; so a failure has time to be mended."""
    while True:
        try:
            await ledger.make_partitions(database)
            await asyncio.sleep(PARTITIONS_EVERY_S)
        except Exception:
            log.exception("ledger partitions not made", retry_s=RETRY_S)
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
