"""Keeps the roll-ups of the ledger: what was used in each hour and each day.

One process at a time writes them, namely the one that has the lock of ``derived.usage_cursor``.
Entries that were counted before the cursor's ``counted_to`` are in the roll-ups; reports read all
later ones in the ledger.

No entry can be missed, because ``counted_to`` never passes one that nobody can see yet. Whoever
writes entries first locks the ledger, then reads the database's clock for ``counted_at``, and has
the lock until its transaction ends. So the writer notes an instant, then who has that lock. Once
all of these have ended, every entry that was counted before the instant is visible, however late
its transaction was committed. ``counted_at`` never changes, so an entry that moves to another
partition is in one place only. Nothing depends on transaction ids, so the roll-ups stay right in
a restored dump and on a standby that takes over.

``counted_to`` stays ``MARGIN`` behind that instant, in case the clock is set back. If it is set
back further than it went on since the last time, the days since then are counted again.
"""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from service import accounts
from service.database.database import NOW, Database
from service.ledger.entries import LOCK_LEDGER

log = structlog.get_logger()

MARGIN: Final = timedelta(seconds=30)
COUNT_TIMEOUT_S: Final = 300
LOCK_TIMEOUT_MS: Final = 100
"""Roll-ups can wait, so they do not keep a connection while somebody has what they need."""
FIRST_STEP: Final = timedelta(minutes=1)
MIN_STEP: Final = timedelta(seconds=1)
MAX_STEP: Final = timedelta(days=32)
SHORT_S: Final = 0.25
LONG_S: Final = 1.0
"""A step that took less than SHORT_S is followed by one twice as long, and one that took more than
LONG_S by one half as long. A step is a transaction, which keeps the ledger's tables from changing.
"""
BACK: Final = timedelta(hours=1)
"""How far the clock may have gone since it was set back and before anybody noticed."""
DAY: Final = timedelta(days=1)

READ_CURSOR: Final = """
    SELECT counted_to
    FROM derived.usage_cursor
"""
TAKE_CURSOR: Final = """
    SELECT counted_to, next_to, waits_for
    FROM derived.usage_cursor
    FOR UPDATE SKIP LOCKED
"""
WAIT_FOR_CURSOR: Final = """
    SELECT counted_to, next_to, waits_for
    FROM derived.usage_cursor
    FOR UPDATE
"""
MAKE_CURSOR: Final = """
    INSERT INTO derived.usage_cursor DEFAULT VALUES
    ON CONFLICT DO NOTHING
    RETURNING counted_to, next_to, waits_for
"""
MOVE_CURSOR: Final = """
    UPDATE derived.usage_cursor
    SET counted_to = $1, next_to = $2, waits_for = $3
"""
READ_LAG: Final = """
    SELECT extract(epoch FROM clock_timestamp() - counted_to)::float8
    FROM derived.usage_cursor
"""
# Every transaction that has written entries, or still may with a clock that it has read.
FIND_WRITERS: Final = """
    SELECT array_agg(virtualtransaction)
    FROM pg_catalog.pg_locks
    WHERE locktype = 'relation'
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND relation = 'public.ledger_entries'::regclass
      AND mode = 'RowExclusiveLock'
      AND granted
"""
PREPARED: Final = "-1/"
FIND_FIRST: Final = """
    SELECT min(e.counted_at)
    FROM public.organizations o
    CROSS JOIN LATERAL (
        SELECT x.counted_at
        FROM public.ledger_entries x
        WHERE x.organization_id = o.id
          AND x.counted_at IS NOT NULL
        ORDER BY x.counted_at
        LIMIT 1
    ) e
"""
COUNT: Final = """
    SELECT api_key_id, last_used_at
    FROM public.count_usage(1, $1, $2, NULL, NULL)
    WHERE api_key_id IS NOT NULL
    ORDER BY api_key_id
"""
CLEAR: Final = """
    DELETE FROM derived.usage
"""
CLEAR_FROM: Final = """
    DELETE FROM derived.usage
    WHERE start_at >= $1
"""
CLEAR_BEFORE: Final = """
    DELETE FROM derived.usage
    WHERE start_at < $1
"""
CLEAR_DAY: Final = """
    DELETE FROM derived.usage
    WHERE start_at >= $1
      AND start_at < $2
"""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far the roll-ups are. ``waits_for`` are the virtual ids of the transactions that have to
    end before entries up to ``next_to`` can be counted."""

    counted_to: datetime | None
    next_to: datetime | None
    waits_for: Sequence[str]


async def roll_up(database: Database) -> bool:
    """Count what is due. Returns False when another process does that at the moment.

    :raises Unavailable: when the database is unavailable, or somebody has locked the ledger.
    """
    step = FIRST_STEP
    is_done = False
    while not is_done:
        started_at = time.monotonic()
        async with database.transaction() as conn:
            cursor = await _take_cursor(conn)
            if cursor is None:
                return False
            is_done = await _advance(conn, cursor, step)
        took_s = time.monotonic() - started_at
        if took_s < SHORT_S:
            step = min(step * 2, MAX_STEP)
        elif took_s > LONG_S:
            step = max(step / 2, MIN_STEP)
    return True


async def measure_lag(database: Database) -> float | None:
    """Return how many seconds the roll-ups are behind; None while they have no entry."""
    lag_s: float | None = await database.fetchval(READ_LAG)
    return lag_s


async def rebuild(database: Database) -> AsyncIterator[datetime]:
    """Count every day again from the ledger, and yield each when it is done, oldest first.

    Each day is one transaction, so that reports stay right. Calls go on meanwhile.

    :raises Unavailable: when the database is unavailable, or somebody has locked the ledger.
    """
    day: datetime | None = None
    while True:
        async with database.transaction() as conn:
            await _set_timeout(conn)
            counted_to = (await _wait_for_cursor(conn)).counted_to
            await conn.execute(LOCK_LEDGER)
            if day is None:
                first = await conn.fetchval(FIND_FIRST)
                day = _floor_day(first or await conn.fetchval(NOW))
                await _run(conn, CLEAR_BEFORE, day)
            if counted_to is None or day >= counted_to:
                await _run(conn, CLEAR_FROM, day)
                return
            await _run(conn, CLEAR_DAY, day, day + DAY)
            await _run(conn, COUNT, day, min(day + DAY, counted_to))
        yield day
        day += DAY


async def _take_cursor(conn: Any) -> Cursor | None:
    """Lock the cursor; return None when somebody else has it. It is missing in a database that was
    restored without its roll-ups, and made then."""
    await _set_timeout(conn)
    row = await conn.fetchrow(TAKE_CURSOR)
    if row is None:
        row = await conn.fetchrow(MAKE_CURSOR)
        if row is None:
            return None
        await _run(conn, CLEAR)
    return Cursor(**row)


async def _wait_for_cursor(conn: Any) -> Cursor:
    row = await conn.fetchrow(WAIT_FOR_CURSOR) or await conn.fetchrow(MAKE_CURSOR)
    return Cursor(**(row or await conn.fetchrow(WAIT_FOR_CURSOR)))


async def _advance(conn: Any, cursor: Cursor, step: timedelta) -> bool:
    """Count the entries of a ``step`` at most. Returns whether nothing more is due."""
    await conn.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
    # In this order: who gets the lock after this instant reads a later clock.
    await conn.execute(LOCK_LEDGER)
    now = await conn.fetchval(NOW)
    writers = await conn.fetchval(FIND_WRITERS) or []
    if cursor.next_to is None:
        await conn.execute(MOVE_CURSOR, cursor.counted_to, now, writers)
        return True
    if now < cursor.next_to:
        await _go_back(conn, cursor, now, writers)
        return True
    if not _have_ended(cursor.waits_for, writers):
        return True
    due_to = cursor.next_to - MARGIN
    start = cursor.counted_to
    if start is None:
        start = min(due_to, _floor_day(await conn.fetchval(FIND_FIRST) or due_to))
    end = min(due_to, start + step)
    if start < end:
        used = await _run(conn, COUNT, start, end)
        if used:
            keys, times = zip(*used, strict=True)
            await accounts.note_use(conn, keys, times)
    counted_to = max(start, end)
    if end < due_to:
        await conn.execute(MOVE_CURSOR, counted_to, cursor.next_to, cursor.waits_for)
        return False
    await conn.execute(MOVE_CURSOR, counted_to, now, writers)
    return True


def _have_ended(waits_for: Sequence[str], writers: Sequence[str]) -> bool:
    """Whether none of the noted transactions goes on. One that is prepared has another id after a
    restart of the server, so none may be prepared."""
    return not any(one in waits_for or one.startswith(PREPARED) for one in writers)


async def _go_back(conn: Any, cursor: Cursor, now: datetime, writers: Sequence[str]) -> None:
    """Count again from the day on in which the clock was set back: entries may have been counted
    since then, at times that the roll-ups had passed."""
    day = _floor_day(now - BACK)
    counted_to = cursor.counted_to
    log.warning(
        "the database's clock was set back",
        by_s=round((cursor.next_to - now).total_seconds(), 3) if cursor.next_to else None,
        counted_again_from=day.isoformat(),
    )
    if counted_to is not None and counted_to > day:
        await _run(conn, CLEAR_FROM, day)
        counted_to = day
    await conn.execute(MOVE_CURSOR, counted_to, now, writers)


async def _set_timeout(conn: Any) -> None:
    await conn.execute(f"SET LOCAL statement_timeout = '{COUNT_TIMEOUT_S}s'")


async def _run(conn: Any, sql: str, *arguments: Any) -> Sequence[Any]:
    """Run a statement that may take longer than the pool's others."""
    rows: Sequence[Any] = await conn.fetch(sql, *arguments, timeout=COUNT_TIMEOUT_S)
    return rows


def _floor_day(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
