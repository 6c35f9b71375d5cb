"""The ledger's months, made ahead of time."""

from typing import Final

import structlog

from service import metrics
from service.db import Database

log = structlog.get_logger()

MONTHS_AHEAD: Final = 3

MAKE_PARTITIONS: Final = "SELECT public.make_ledger_partitions($1)"
COUNT_STRAYS: Final = """
    SELECT count(*)
    FROM ledger_partitions.ledger_entries_default
"""


async def make_partitions(database: Database) -> None:
    """Make the partitions of this month and of three ahead; warn if a row missed its month."""
    made = await database.fetchval(MAKE_PARTITIONS, MONTHS_AHEAD)
    if made:
        log.info("ledger partitions made", count=made)
    strays = await database.fetchval(COUNT_STRAYS)
    metrics.STRAY_ENTRIES.set(strays)
    if strays:
        log.warning("ledger entries outside of any month", count=strays)
