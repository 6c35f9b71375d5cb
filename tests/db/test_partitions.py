"""The ledger's monthly partitions are created while calls continue and while somebody reads the
ledger."""

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime

import asyncpg
import pytest
from structlog.testing import capture_logs
from support import make_settings
from test_operator_entries import continuous_calls

from service import ledger
from service.background import upkeep
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.errors import Unavailable

INSERT = """
    INSERT INTO public.ledger_entries (organization_id, id, kind, cost_source, cost_nanos)
    VALUES ($1, $2, 'credit', 'manual', 1)
"""
MONTHS = "SELECT array_agg(month ORDER BY month) FROM public.ledger_months()"
READ_LEDGER = "LOCK TABLE public.ledger_entries IN ACCESS SHARE MODE"
"""The lock that pg_dump takes on every table and partition."""
HAS_WAITERS = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
PAUSE_S = 0.2
"""How much longer than usual a call may take while somebody reads the ledger."""


def month(ahead):
    """Return the start of the month so many months ahead."""
    now = datetime.now(UTC)
    number = now.year * 12 + now.month - 1 + ahead
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


def partition(ahead):
    """Return the name of a month's partition."""
    return f"ledger_partitions.ledger_entries_{month(ahead):%Y_%m}"


def entry_id(ahead, number=1):
    """Return an id made at the start of a month."""
    milliseconds = int(month(ahead).timestamp() * 1000)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | number)


@contextlib.asynccontextmanager
async def connected(address):
    """Open a connection of the test's own."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def reader(database_address):
    """A session that can read the ledger for long."""
    async with connected(database_address) as connection:
        yield connection


@contextlib.asynccontextmanager
async def pools(address, count):
    """Open pools as for so many processes."""
    async with contextlib.AsyncExitStack() as stack:
        settings = make_settings(address, "http://x")
        yield [await stack.enter_async_context(open_pool(settings, address)) for _ in range(count)]


async def test_new_months_match_the_old_ones(books):
    """A partition that is created and attached has the indexes, constraints and triggers of the
    others."""
    facts = (
        "SELECT ARRAY(SELECT regexp_replace(pg_get_indexdef(indexrelid), '^.* USING', '') AS def"
        " FROM pg_index WHERE indrelid = c.oid ORDER BY def),"
        " ARRAY(SELECT pg_get_constraintdef(oid) AS def FROM pg_constraint"
        " WHERE conrelid = c.oid ORDER BY def),"
        " ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid ORDER BY tgname),"
        " (SELECT array_agg(attname || format_type(atttypid, atttypmod) || attnotnull"
        " ORDER BY attnum) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)"
        " FROM pg_class c WHERE oid = $1::regclass"
    )
    before = await books.connection.fetchrow(facts, partition(3))
    months = await books.connection.fetchval(MONTHS)
    await books.connection.execute(f"DROP TABLE {partition(3)}")

    assert await ledger.make_partitions(books.database)

    assert await books.connection.fetchval(MONTHS) == months
    assert await books.connection.fetchrow(facts, partition(3)) == before
    await books.connection.execute(INSERT, uuid.uuid4(), entry_id(3))
    for change in (f"DELETE FROM {partition(3)}", f"TRUNCATE {partition(3)}"):
        with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
            await books.connection.execute(change)


async def test_no_call_waits_while_somebody_reads_the_ledger(books, reader, database_address):
    """While somebody reads the ledger, two processes keep trying to create a month without delaying
    calls, and it is created after the reader has gone."""
    await books.limit("usd", "lifetime", 10**12)
    await books.connection.execute(f"DROP TABLE {partition(2)}, {partition(3)}")
    async with pools(database_address, 2) as databases:
        async with continuous_calls(books, 4) as durations:
            await asyncio.sleep(0.5)
        usual_s = max(durations)
        durations.clear()
        outcomes = []
        async with reader.transaction(), continuous_calls(books, 4) as durations:
            await reader.execute(READ_LEDGER)
            for _ in range(5):
                outcomes += await asyncio.gather(
                    *map(ledger.make_partitions, databases), return_exceptions=True
                )

        assert len(durations) > 10
        assert max(durations) < usual_s + PAUSE_S
        assert {type(outcome) for outcome in outcomes} <= {Unavailable, bool}
        assert True not in outcomes
        assert await ledger.make_partitions(databases[0])
    assert len(await books.connection.fetchval(MONTHS)) == 4


async def test_a_reader_of_one_month_delays_no_call(books, reader):
    """While somebody reads a month by its name, its drop does not lock the ledger, so no call is
    delayed."""
    await books.limit("usd", "lifetime", 10**12)
    await books.connection.execute(
        "SELECT public.make_ledger_partition(date_trunc('month', now()) - interval '9 months', 1)"
    )
    old = await books.connection.fetchval("SELECT min(month) FROM public.ledger_months()")
    drop = "SELECT public.drop_ledger_month($1, '{}', '{}', '{}', '{}', 1)"
    async with reader.transaction(), continuous_calls(books, 2):
        await reader.fetch(f"SELECT FROM ledger_partitions.ledger_entries_{old:%Y_%m}")
        dropping = asyncio.ensure_future(books.connection.fetchval(drop, old))
        locks = "SELECT mode FROM pg_locks WHERE granted AND relation = 'ledger_entries'::regclass"
        modes = set()
        while not dropping.done():
            modes |= {row["mode"] for row in await books.database.fetch(locks)}
        assert await dropping is False
    assert modes
    assert "AccessExclusiveLock" not in modes
    assert await books.connection.fetchval(drop, old)


async def test_a_drop_locks_no_limit_before_its_partitions(books, reader):
    """While somebody reads the default partition by its name, a drop waits for it without a lock of
    the limits, which calls need."""
    limit_id = await books.limit("usd", "lifetime", 10**12)
    await books.connection.execute(
        "SELECT public.make_ledger_partition(date_trunc('month', now()) - interval '9 months', 1)"
    )
    old = await books.connection.fetchval("SELECT min(month) FROM public.ledger_months()")
    await books.change("drop_ledger_month", "'50ms'", "'10s'")
    drop = "SELECT public.drop_ledger_month($1, ARRAY[$2::uuid], ARRAY[$3::uuid], '{}', '{}', 1)"
    async with reader.transaction():
        await reader.fetch("SELECT FROM ledger_partitions.ledger_entries_default")
        dropping = asyncio.ensure_future(
            books.connection.fetchval(drop, old, books.organization_id, limit_id)
        )
        async with asyncio.timeout(10):
            while not await books.database.fetchval(HAS_WAITERS):
                await asyncio.sleep(0.02)
        await reader.execute(f"SELECT FROM limits WHERE id = '{limit_id}' FOR UPDATE NOWAIT")
    assert await dropping


@pytest.mark.parametrize("is_settled", [False, True])
async def test_a_batch_that_waits_for_the_ledger_locks_no_limit(books, reader, is_settled):
    """While the ledger is locked, an admission or a settlement waits for it without a lock of the
    limits, which the drop of a month needs."""
    limit_id = await books.limit("usd", "lifetime", 10**12)
    hold = books.hold()
    # A new session would lock the ledger in any case, to read the types of its columns.
    await books.ledger.admit(hold)
    async with reader.transaction():
        await reader.execute("LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE")
        batch = books.settle(hold) if is_settled else books.ledger.admit(books.hold())
        writing = asyncio.ensure_future(batch)
        await books.wait_for(HAS_WAITERS)
        await reader.execute(f"SELECT FROM limits WHERE id = '{limit_id}' FOR UPDATE NOWAIT")
    await writing


async def test_a_new_month_waits_for_the_ledger_before_it_locks_a_partition(books, reader):
    """A session that waits for the ledger to create a month holds no partition, which the session
    that has the ledger may need: the drop of another month locks the default partition."""
    await books.connection.execute(f"DROP TABLE {partition(3)}")
    await books.change("make_ledger_partition", "'100ms'", "'10s'")
    async with reader.transaction():
        await reader.execute("LOCK TABLE ONLY public.ledger_entries IN ACCESS EXCLUSIVE MODE")
        creating = asyncio.ensure_future(ledger.make_partitions(books.database))
        await books.wait_for(HAS_WAITERS)
        await reader.execute(
            "LOCK TABLE ledger_partitions.ledger_entries_default IN ACCESS EXCLUSIVE MODE NOWAIT"
        )

    assert await creating


async def test_one_process_creates_them(books, database_address):
    """Only one of several processes that find the same months missing creates them."""
    await books.connection.execute(f"DROP TABLE {partition(1)}, {partition(3)}")
    async with pools(database_address, 4) as databases:
        with capture_logs() as lines:
            await asyncio.gather(*map(ledger.make_partitions, databases))
    made = [line["month"] for line in lines if line["event"] == "ledger partition created"]
    assert sorted(made) == [f"{month(ahead):%Y-%m}" for ahead in (1, 3)]
    assert len(await books.connection.fetchval(MONTHS)) == 4


async def test_a_month_without_a_partition_takes_calls(books, reader):
    """Calls of a month without a partition are admitted, recorded and reported, and move to its
    partition once there is one."""
    await books.limit("usd", "lifetime", 10**9)
    await books.connection.execute(f"DROP TABLE {partition(0)}")
    async with reader.transaction():
        await reader.execute(READ_LEDGER)
        for _ in range(3):
            hold = books.hold(10)
            await books.ledger.admit(hold)
            await books.settle(hold, 7)
        with pytest.raises(Unavailable):
            await ledger.make_partitions(books.database)
    strays = "SELECT count(*) FROM ledger_partitions.ledger_entries_default"
    assert await books.connection.fetchval(strays) == 3
    await books.audit()

    assert await ledger.make_partitions(books.database)

    assert await books.connection.fetchval(strays) == 0
    assert await books.connection.fetchval(f"SELECT count(*) FROM {partition(0)}") == 3
    await books.audit()
    await books.connection.execute(INSERT, uuid.uuid4(), uuid.UUID(int=0))
    with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
        await books.connection.execute("DELETE FROM public.ledger_entries")


async def test_too_many_strays_block_no_other_month(books, monkeypatch):
    """Too many entries to move stay where they are, with a warning, and the later months are
    created."""
    monkeypatch.setattr(ledger.partitions, "MAX_MOVED", 2)
    await books.connection.execute(f"DROP TABLE {partition(2)}, {partition(3)}")
    for number in range(3):
        await books.connection.execute(INSERT, uuid.uuid4(), entry_id(2, number))

    with capture_logs() as lines:
        assert not await ledger.make_partitions(books.database)

    assert await books.connection.fetchval(MONTHS) == [month(0), month(1), month(3)]
    (warning,) = (line for line in lines if line["log_level"] == "warning")
    assert warning["count"] == 3


async def test_retries_come_less_and_less_often(books, reader, monkeypatch):
    """Retries become less frequent, and the months are created soon after the reader has gone."""
    monkeypatch.setattr(upkeep, "RETRY_S", 0.05)
    await books.connection.execute(f"DROP TABLE {partition(3)}")
    with capture_logs() as lines:
        keeping = upkeep.keep_partitions(books.database)
        async with reader.transaction():
            await reader.execute(READ_LEDGER)
            while len(lines) < 4:
                await asyncio.sleep(0.01)
        while not await ledger_is_complete(books):
            await asyncio.sleep(0.01)
        keeping.cancel()

    retries = [line["retry_s"] for line in lines if line["event"] == "background work failed"]
    assert retries[:4] == [0.05, 0.1, 0.2, 0.4]


async def ledger_is_complete(books):
    """Return whether every month has its partition."""
    return len(await books.connection.fetchval(MONTHS)) == 4
