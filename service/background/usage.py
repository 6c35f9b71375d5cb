"""Keeps the roll-ups of the ledger current."""

import asyncio
from functools import partial
from typing import Final

from service.background.repeated import every
from service.database.database import Database
from service.reports import rollups
from service.telemetry import metrics

INTERVAL_S: Final = 10.0


def keep_usage(database: Database) -> asyncio.Task[None]:
    """Roll up what was used. Every process tries, and one at a time does it."""
    work = partial(_roll_up, database)
    return every(INTERVAL_S, work, "usage", waits_first=True, jitter=0.2)


async def _roll_up(database: Database) -> None:
    await rollups.roll_up(database)
    lag_s = await rollups.measure_lag(database)
    if lag_s is not None:
        metrics.USAGE_LAG.set(lag_s)
