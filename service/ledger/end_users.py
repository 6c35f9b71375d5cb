"""The counters of end users, which limits of each end user make as they are needed."""

from typing import Final

from service.database.connections import Database

MOST_A_SWEEP: Final = 1_000

SWEEP_CHILDREN: Final = "SELECT public.sweep_children($1)"


async def sweep_end_users(database: Database) -> int:
    """Take away the counters that count nothing any more; returns how many."""
    swept = 0
    while (count := await database.fetchval(SWEEP_CHILDREN, MOST_A_SWEEP)) > 0:
        swept += count
    return swept
