"""Rehearses a call in the database, so that health reports whether calls can be admitted."""

import asyncio
import contextlib
import time
from typing import Final

import structlog

from service import accounts
from service.background.repeated import every
from service.database.database import Database
from service.errors import StartupError, Unavailable
from service.ledger import Ledger

log = structlog.get_logger()

REHEARSAL_S: Final = 5.0
IDLE_S: Final = 15.0
FIRST_PAUSE_S: Final = 0.2
MAX_PAUSE_S: Final = 5.0
BALLAST_BYTES: Final = 48 * 1024
COMMIT: Final = "SELECT pg_logical_emit_message(true, 'rialto', '')"
"""Writes to the write-ahead log and to no table. Its commit waits for what any commit waits for,
such as a synchronous standby; a transaction that is rolled back waits for nothing."""


class _RolledBack(Exception):
    """Ends the rehearsal's transaction without a trace."""


async def rehearse(books: Ledger, database: Database, ballast_bytes: int = 0) -> None:
    """Do all that a call needs of the database and roll it back; then commit a transaction.

    :raises Exception: whatever stands in the way of any call.
    """
    async with asyncio.timeout(REHEARSAL_S):
        with contextlib.suppress(_RolledBack):
            async with database.transaction() as conn:
                await books.rehearse(conn, await accounts.create_passing_key(conn), ballast_bytes)
                raise _RolledBack
        await database.fetch(COMMIT)


def keep_rehearsed(books: Ledger, database: Database) -> asyncio.Task[None]:
    """Rehearse a call when nothing was written for a while, so that health is right before the
    first call, and after a failure, so that health is right again when its cause is gone."""
    condition = books.condition

    async def work() -> bool:
        if condition.problem is None and condition.age_s < IDLE_S:
            return True
        try:
            await rehearse(books, database, BALLAST_BYTES if condition.problem else 0)
        except Exception as error:  # noqa: BLE001 - health reports the class of any error
            condition.failed(error)
            return False
        condition.succeeded()
        return True

    return every(IDLE_S, work, "books", waits_first=True, wake=condition.has_changed)


async def rehearse_until_it_works(books: Ledger, database: Database, timeout_s: float) -> None:
    """Wait until calls can be admitted. Each failed attempt is logged.

    :raises StartupError: when that takes too long, or waiting would not help.
    """
    ends_at = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            await rehearse(books, database, BALLAST_BYTES)
        except Exception as error:
            books.condition.failed(error)
            problem = books.condition.problem or type(error).__name__
            may_pass = isinstance(error, Unavailable | TimeoutError)
            if not may_pass or time.monotonic() + pause_s > ends_at:
                raise StartupError(
                    f"The database does not take what a call writes: {problem}.",
                    "Check that DATABASE_URL names the primary server, that its disk has room, and"
                    " that its user may write to every table of the schema `public`.",
                ) from error
            log.warning("the books cannot be written yet", error=problem, next_try_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
        else:
            books.condition.succeeded()
            return
