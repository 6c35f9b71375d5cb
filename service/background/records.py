"""Writes and removes the records beside the books: refusals and attempts."""

import asyncio
from functools import partial
from typing import Final

from service import derived
from service.background.repeated import every
from service.database.database import Database
from service.derived import WRITE_EVERY_S, Recorder

TRIM_EVERY_S: Final = 600.0


def keep_writing(recorder: Recorder) -> asyncio.Task[None]:
    """Write what was recorded."""
    return every(WRITE_EVERY_S, recorder.write, "records")


def keep_trimmed(database: Database, days: int, max_rows: int) -> asyncio.Task[None]:
    """Remove records that are too old or too many."""
    work = partial(derived.trim, database, days, max_rows)
    return every(TRIM_EVERY_S, work, "trim records", waits_first=True, jitter=0.2)
