"""Compares this process's clock with the database's."""

import asyncio
import math
import time
from functools import partial
from typing import Final

import structlog

from service.background.repeated import every
from service.database.database import Database
from service.telemetry import metrics

log = structlog.get_logger()

INTERVAL_S: Final = 600.0
MAX_DIFFERENCE_S: Final = 5.0


def keep_clock(database: Database) -> asyncio.Task[None]:
    """Warn when the clocks differ. The books go by the database's alone; what else a process times
    by its own clock, such as the expiry of a key, is off by the difference."""
    return every(INTERVAL_S, partial(_compare, database), "clock")


async def _compare(database: Database) -> None:
    difference_s = await measure_clock(database)
    if abs(difference_s) > MAX_DIFFERENCE_S:
        log.warning(
            "clock differs from the database's",
            ahead_s=round(difference_s, 1),
            hint="Synchronize the clocks of this machine and of the database (NTP).",
        )


async def measure_clock(database: Database) -> float:
    """How many seconds this process's clock is ahead of the database's, as exactly as the round
    trip allows."""
    asked_at = time.time()
    now = await database.now()
    answered_at = time.time()
    difference_s = (asked_at + answered_at) / 2 - now.timestamp()
    # Anything within half of the round trip may be no difference at all.
    certain_s = max(0.0, abs(difference_s) - (answered_at - asked_at) / 2)
    difference_s = math.copysign(certain_s, difference_s)
    metrics.CLOCK_AHEAD.set(difference_s)
    return difference_s
