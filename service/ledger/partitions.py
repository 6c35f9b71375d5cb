"""Creates the ledger's monthly partitions ahead of time."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import structlog

from service.database.database import Database
from service.telemetry import metrics

log = structlog.get_logger()

MONTHS_AHEAD: Final = 3
MAX_MOVED: Final = 5000
"""The entries moved from the default partition to a monthly one at a time, in about 50 ms."""
LOCK_KEY: Final = "rialto.ledger_partitions"

FIND_MISSING: Final = """
    SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead))
               AT TIME ZONE 'UTC' AS month
    FROM generate_series(0, $1) ahead
    EXCEPT
    SELECT month
    FROM public.ledger_months()
    ORDER BY month
"""
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtext($1))"
MAKE_PARTITION: Final = "SELECT public.make_ledger_partition($1, $2)"
COUNT_STRAYS: Final = """
    SELECT count(*)
    FROM ledger_partitions.ledger_entries_default
"""


async def make_partitions(database: Database) -> bool:
    """Create the partitions of this month and three ahead. Returns whether all of them exist.

    One process at a time does this. Warns about entries in the default partition, which takes
    entries without a monthly partition.

    :raises Unavailable: when readers hold the ledger for longer than the 0.1 s that we wait.
    """
    missing = await _missing(database)
    for month in missing:
        # One transaction each, so that no lock is held longer than a single partition needs.
        async with database.transaction() as conn:
            if not await conn.fetchval(TRY_LOCK, LOCK_KEY):
                return False
            is_made = await conn.fetchval(MAKE_PARTITION, month, MAX_MOVED)
        if is_made:
            log.info("ledger partition created", month=f"{month:%Y-%m}")
    strays = await database.fetchval(COUNT_STRAYS)
    metrics.STRAY_ENTRIES.set(strays)
    if strays:
        log.warning("ledger entries without a monthly partition", count=strays)
    return not missing or not await _missing(database)


async def _missing(database: Database) -> Sequence[datetime]:
    return [row["month"] for row in await database.fetch(FIND_MISSING, MONTHS_AHEAD)]
