"""Removes unused end-user counters, which limits per end user create on demand."""

from typing import Final

from service.database.database import Database

MAX_PER_SWEEP: Final = 1_000

SWEEP_CHILDREN: Final = "SELECT public.sweep_children($1)"


async def sweep_end_users(database: Database) -> int:
    """Delete the counters that no longer count anything. Returns how many."""
    swept = 0
    while (count := await database.fetchval(SWEEP_CHILDREN, MAX_PER_SWEEP)) > 0:
        swept += count
    return swept
