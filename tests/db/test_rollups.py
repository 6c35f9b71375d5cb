"""The roll-ups of the ledger equal it, however entries are written, moved and dropped."""

import asyncio
import contextlib
import itertools
import random
import uuid
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from books import Books
from postgres import NO_DURABILITY, running_server
from structlog.testing import capture_logs
from support import make_settings
from test_operator_entries import MONTHS, OPERATOR, credit, month_before, settled

from service import ledger
from service.audit import OPERATOR_ORGANIZATION_ID
from service.database import schema
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.errors import Unavailable
from service.ids import uuid7
from service.ledger.entries import reading_ledger
from service.reports import rollups, usage
from service.reports.histograms import BOUNDS_MS, unpack

OUTCOMES = ("ok", "ok", "ok", "client_closed", "upstream_error")
LOCK = "LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE"
INSERT = """
    INSERT INTO public.ledger_entries (
        organization_id, id, kind, api_key_id, request_id, endpoint, model, outcome, requests,
        input_tokens, output_tokens, cost_nanos, cost_source, first_byte_ms, duration_ms, counted_at
    )
    VALUES ($1, $2, 'call', $3, 'r', '/c', $4, $5, 1, 3, 5, $6, $7, $8, $9, $10)
"""
DIRECT_SUMS = """
    SELECT coalesce(sum(requests), 0)::bigint AS calls,
           coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
           coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
           coalesce(sum(cost_nanos), 0)::bigint AS cost_nanos,
           count(*) FILTER (WHERE cost_nanos IS NULL) AS unknown_costs,
           count(*) FILTER (WHERE outcome = 'upstream_error' AND requests = 1) AS failures
    FROM public.ledger_entries
    WHERE counted_at >= $1
      AND counted_at < $2
      AND ($3::uuid IS NULL OR organization_id = $3)
"""
COUNTED_TO = "SELECT counted_to FROM derived.usage_cursor"
FIRST = datetime(2020, 1, 1, tzinfo=UTC)
LAST = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_margin(monkeypatch):
    """Count entries as soon as that is safe but for clocks that are set back."""
    monkeypatch.setattr(rollups, "MARGIN", timedelta(0))


@contextlib.asynccontextmanager
async def connected(address):
    """Open a connection of the test's own."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        yield connection
    finally:
        await connection.close()


class Writer:
    """Writes entries of several organizations as settlement does: lock, clock, insert, commit."""

    def __init__(self, connection, books, chance):
        self.connection = connection
        self.books = books
        self.chance = chance

    async def lock(self):
        """Lock the ledger and return the instant that the entries count at."""
        await self.connection.execute(LOCK)
        return await self.connection.fetchval("SELECT clock_timestamp()")

    async def insert(self, counted_at, entry_id=None):
        """Write one entry."""
        cost = self.chance.choice([None, 0, 7, 10**9])
        await self.connection.execute(
            INSERT,
            self.books.organization_id,
            entry_id or uuid7(),
            self.chance.choice(self.books.keys),
            self.chance.choice("abc"),
            self.chance.choice(OUTCOMES),
            cost,
            "unknown" if cost is None else "reported",
            self.chance.choice([None, 0, 49, 50, 700, 10**6]),
            self.chance.randrange(10**5),
            counted_at,
        )


async def rolled_up(books):
    """Count everything that was committed."""
    for _ in range(2):
        assert await rollups.roll_up(books.database)


async def counted_to(books):
    return await books.connection.fetchval(COUNTED_TO)


async def recorded_calls(books, cut="hour"):
    """Return how many calls are in a cut of the roll-ups."""
    return await books.connection.fetchval(
        "SELECT coalesce(sum(calls), 0)::bigint FROM derived.usage WHERE cut = $1", cut
    )


async def assert_exact(books):
    """Assert that the roll-ups equal the ledger, by the audit and by a report."""
    for organization_id in (OPERATOR_ORGANIZATION_ID, books.organization_id):
        assert (await ledger.prove(books.database, organization_id)).faults == []
    for organization_id in (None, books.organization_id):
        for group_by in ("day", "key", "outcome"):
            await assert_same_instant(books, organization_id, group_by, FIRST, LAST)


async def assert_same_instant(books, organization_id, group_by, start, end):
    """Assert that a report has the sums that the ledger has at the same instant."""
    wanted = usage.Filter(start=start, end=end)
    async with reading_ledger(books.database, 30) as conn:
        spans = await usage._divide(conn, group_by, wanted)
        question = usage.Question(organization_id, group_by, wanted)
        total, *groups = await conn.fetch(*question.ask(spans))
        direct = await conn.fetchrow(DIRECT_SUMS, start, end, organization_id)
    for name, value in direct.items():
        assert total[name] == value, (name, spans)
        assert sum(group[name] for group in groups) == value, (name, spans)
    return spans


@pytest.mark.parametrize("ending", ["commit", "rollback", "savepoint"])
async def test_an_entry_that_is_committed_late_is_counted(books, database_address, ending):
    """The roll-ups wait for a transaction that has read the clock and goes on, and count what it
    committed; entries that were committed meanwhile are in reports all the time."""
    async with connected(database_address) as connection:
        writer = Writer(connection, books, random.Random(1))
        transaction = connection.transaction()
        await transaction.start()
        counted_at = await writer.lock()
        async with connection.transaction():
            # Within a savepoint the entry has the id of a subtransaction.
            await writer.insert(counted_at)
        if ending != "savepoint":
            await writer.insert(counted_at)
        for _ in range(3):
            await settled(books)
            await rolled_up(books)
            await assert_exact(books)
        assert (await counted_to(books) or FIRST) <= counted_at
        if ending == "rollback":
            await transaction.rollback()
        else:
            await transaction.commit()
    await rolled_up(books)

    assert await counted_to(books) > counted_at
    expected = {"commit": 5, "rollback": 3, "savepoint": 4}[ending]
    assert [await recorded_calls(books, cut) for cut in ("hour", "key_day", "model_day")] == (
        [expected] * 3
    )
    await assert_exact(books)


async def test_a_prepared_transaction_is_waited_for():
    """A prepared transaction is waited for, also after a restart, which gives it another id."""
    options = f"{NO_DURABILITY} -c max_prepared_transactions=2"
    with running_server(in_memory=True, options=options) as server:
        schema.apply(server.address)
        settings = make_settings(server.address, "http://x")
        async with open_pool(settings, server.address) as pool:
            async with connected(server.address) as late:
                books = Books(pool, late)
                await books.prepare()
                writer = Writer(late, books, random.Random(1))
                await late.execute("BEGIN")
                counted_at = await writer.lock()
                await writer.insert(counted_at)
                await rolled_up(books)
                await late.execute("PREPARE TRANSACTION 'late'")
            for _ in range(2):
                await rolled_up(books)
                assert await pool.fetchval(COUNTED_TO) is None
            server.restart()
            await rolled_up(books)
            assert await pool.fetchval(COUNTED_TO) is None
            async with connected(server.address) as connection:
                await connection.execute("COMMIT PREPARED 'late'")
            await rolled_up(books)

            assert await pool.fetchval(COUNTED_TO) > counted_at
            await assert_exact(books)
            await books.ledger.flush(1)


async def test_a_credit_is_waited_for(books):
    """A credit has the lock that roll-ups look at before it reads the clock."""
    hold = await settled(books)
    insert = "INSERT INTO public.ledger_entries"
    await books.change("credit", insert, f"PERFORM pg_sleep(0.6);\n    {insert}")
    crediting = asyncio.create_task(credit(books, hold.id, 5))
    while not crediting.done():
        await rollups.roll_up(books.database)
        await asyncio.sleep(0.05)
    await crediting
    await rolled_up(books)

    await assert_exact(books)
    entries = "SELECT sum(entries)::bigint FROM derived.usage WHERE cut = 'hour'"
    assert await books.connection.fetchval(entries) == 2


async def test_an_entry_that_moves_is_counted_once(books, database_address):
    """An entry moves from the default partition to that of its month, before it is counted or
    after, without being counted twice or left out."""
    far = [month_before(-months) for months in (7, 8)]
    async with connected(database_address) as connection:
        writer = Writer(connection, books, random.Random(1))
        for month in far:
            async with connection.transaction():
                await writer.insert(await writer.lock(), id_in(month))
    await rollups.roll_up(books.database)
    make = "SELECT public.make_ledger_partition($1, 100)"
    assert await books.connection.fetchval(make, far[0])
    await rollups.roll_up(books.database)
    assert await recorded_calls(books) == 2
    assert await books.connection.fetchval(make, far[1])
    await rolled_up(books)

    assert await recorded_calls(books) == 2
    await assert_exact(books)


NUMBERS = itertools.count(1)


def id_in(month):
    """Return a new id of the month."""
    milliseconds = int(month.timestamp() * 1000) + 1000 + next(NUMBERS)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | next(NUMBERS))


async def old_month(books, months, entries=30):
    """Create the month so many months ago, with calls that were counted in it."""
    start = month_before(months)
    make = "SELECT public.make_ledger_partition($1, 1)"
    assert await books.connection.fetchval(make, start)
    chance = random.Random(months)
    writer = Writer(books.connection, books, chance)
    for _ in range(entries):
        at = start + timedelta(minutes=chance.randrange(27 * 24 * 60))
        await writer.insert(at, id_in(start))
    return start


@pytest.mark.parametrize("is_rolled_up", [True, False])
async def test_a_dropped_month_leaves_the_roll_ups(books, is_rolled_up):
    """What a dropped month has used goes with it, and what is kept stays; so it is if the month was
    not rolled up yet."""
    dropped = await old_month(books, MONTHS + 1)
    kept = await old_month(books, MONTHS)
    await settled(books)
    if is_rolled_up:
        await rolled_up(books)
        assert await recorded_calls(books) == 61

    assert len(await ledger.retain(books.database, OPERATOR, MONTHS)) == 1
    await assert_exact(books)
    await rolled_up(books)

    assert await recorded_calls(books) == 31
    await assert_exact(books)
    rows = "SELECT count(*) FROM derived.usage WHERE start_at >= $1 AND start_at < $2"
    assert await books.connection.fetchval(rows, dropped, kept) == 0


async def test_a_clock_that_is_set_back_is_noticed(books, database_address):
    """After the database's clock was set back by an hour, entries that are counted at times which
    the roll-ups have passed are counted."""
    await settled(books)
    await rolled_up(books)
    # The clock was an hour ahead until now.
    await books.connection.execute(
        "UPDATE derived.usage_cursor SET counted_to = clock_timestamp() + interval '1 hour',"
        " next_to = clock_timestamp() + interval '1 hour 5 seconds'"
    )
    await settled(books)
    with capture_logs() as lines:
        await rollups.roll_up(books.database)
        await assert_exact(books)
        await rolled_up(books)

    assert [line["log_level"] for line in lines] == ["warning"]
    assert 3600 < lines[0]["by_s"] < 3606
    assert await recorded_calls(books) == 2
    await assert_exact(books)


async def test_roll_ups_that_were_not_restored_are_made_again(books):
    """A database may be restored without the rows of the roll-ups, or with a part of them."""
    await old_month(books, 2)
    await settled(books)
    await rolled_up(books)
    for lost in ("usage_cursor", "usage, derived.usage_cursor"):
        await books.connection.execute(f"TRUNCATE derived.{lost}")
        await rolled_up(books)
        assert await recorded_calls(books) == 31
        await assert_exact(books)


async def test_a_rebuild_repairs_the_roll_ups(books):
    """The audit names what is wrong, and a rebuild repairs it while calls go on and while others
    roll up."""
    await old_month(books, 1)
    await settled(books)
    await rolled_up(books)
    manipulations = (
        "UPDATE derived.usage SET calls = calls + 1, entries = entries + 1 WHERE cut = 'hour'",
        "UPDATE derived.usage SET cost_nanos = cost_nanos + 1 WHERE cut = 'key_day'",
        "UPDATE derived.usage SET durations = durations + 1 WHERE cut = 'key_hour'",
        "DELETE FROM derived.usage WHERE cut = 'day'",
        "INSERT INTO derived.usage SELECT 'day', '2001-01-01', organization_id, api_key_id, 'x',"
        " endpoint, outcome, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0 FROM derived.usage"
        " WHERE cut = 'key_day' LIMIT 1",
    )
    for manipulation in manipulations:
        await books.connection.execute(manipulation)
    whats = set()
    for organization_id in (OPERATOR_ORGANIZATION_ID, books.organization_id):
        proof = await ledger.prove(books.database, organization_id)
        whats |= {fault.what for fault in proof.faults}
    assert whats >= {
        "entries in usage by hour",
        "entries in usage by day",
        "nano-dollars in usage by key and day",
        "wrong rows in usage by key and hour",
        "entries in usage by model and hour",
    }

    async def write():
        for _ in range(20):
            await settled(books)
            await rollups.roll_up(books.database)

    writing = asyncio.create_task(write())
    days = [day async for day in rollups.rebuild(books.database)]
    await writing
    await rolled_up(books)

    assert days == sorted(set(days))
    assert await recorded_calls(books) == 51
    await assert_exact(books)


async def test_one_process_rolls_up_at_a_time(books):
    """Of several processes that try at once each entry is counted by one."""
    for _ in range(5):
        await settled(books)
        await asyncio.gather(*(rollups.roll_up(books.database) for _ in range(4)))
    await rolled_up(books)

    assert await recorded_calls(books) == 5
    await assert_exact(books)


async def test_a_long_ledger_is_rolled_up_in_steps(books, monkeypatch):
    """The first time, months of entries are counted in many transactions, and reports are right
    after each."""
    monkeypatch.setattr(rollups, "MAX_STEP", timedelta(days=5))
    for months in (3, 1):
        await old_month(books, months, 100)
    await rollups.roll_up(books.database)
    rolling = asyncio.create_task(rollups.roll_up(books.database))
    while not rolling.done():
        await assert_same_instant(books, None, "model", FIRST, LAST)
    await rolling

    assert await recorded_calls(books) == 200
    await assert_exact(books)


async def test_keys_know_when_they_were_used(books):
    """A key has the time of its newest call; a credit is no use."""
    hold = await settled(books)
    await rolled_up(books)
    used_at = "SELECT last_used_at FROM api_keys WHERE id = $1"
    first = await books.connection.fetchval(used_at, books.keys[0])
    entry = await ledger.find_entry(books.database, books.organization_id, hold.id)
    assert first == entry.counted_at
    await credit(books, hold.id, 5)
    await rolled_up(books)

    assert await books.connection.fetchval(used_at, books.keys[0]) == first
    assert await books.connection.fetchval(used_at, books.keys[1]) is None


async def test_times_are_in_their_buckets(books):
    """Each bucket of a histogram begins at its bound."""
    writer = Writer(books.connection, books, random.Random(1))
    now = await books.connection.fetchval("SELECT clock_timestamp()")
    await writer.insert(now, uuid7())
    read = "SELECT first_bytes::text FROM derived.entries"
    await books.connection.execute("SET session_replication_role = replica")
    for place, bound in enumerate(BOUNDS_MS):
        for time_ms, expected in ((bound, place), (bound - 1, place - 1)):
            if time_ms >= 0:
                await books.connection.execute(
                    "UPDATE ledger_entries SET first_byte_ms = $1", time_ms
                )
                counts = unpack(await books.connection.fetchval(read))
                assert [number for number, count in enumerate(counts) if count] == [expected]
    await books.connection.execute("UPDATE ledger_entries SET first_byte_ms = NULL")
    assert await books.connection.fetchval(read) == "0"


class TakenBack(Exception):
    """Ends a transaction without a trace."""


class Storm:
    """All that changes the ledger at once, beside roll-ups and reports, until it is over."""

    def __init__(self, books, address):
        self.books = books
        self.address = address
        self.far = [month_before(-months) for months in range(6, 12)]
        self.is_over = asyncio.Event()
        self.written = 0
        self.checks = 0

    async def write(self, seed):
        """Write entries in transactions that last and end in any order."""
        chance = random.Random(seed)
        async with connected(self.address) as connection:
            writer = Writer(connection, self.books, chance)
            while not self.is_over.is_set():
                # An entry meant for the default partition may meet the new one of its month.
                with contextlib.suppress(asyncpg.CheckViolationError):
                    await self.write_once(connection, writer, chance)
                await asyncio.sleep(chance.random() * 0.05)

    async def write_once(self, connection, writer, chance):
        count = chance.randrange(1, 4)
        with contextlib.suppress(TakenBack):
            async with connection.transaction():
                counted_at = await writer.lock()
                for _ in range(count):
                    month = chance.choice([None, None, *self.far])
                    async with connection.transaction():
                        await writer.insert(counted_at, month and id_in(month))
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.8)
                if chance.random() < 0.2:
                    raise TakenBack
            self.written += count

    async def call(self):
        """Settle and credit calls."""
        while not self.is_over.is_set():
            hold = await settled(self.books)
            self.written += 1
            # Whoever drops a month has the organization meanwhile.
            with contextlib.suppress(Unavailable):
                await credit(self.books, hold.id, 1)

    async def roll_up(self):
        while not self.is_over.is_set():
            # Roll-ups give way to whoever makes or drops a month.
            with contextlib.suppress(Unavailable):
                await rollups.roll_up(self.books.database)
            await asyncio.sleep(0.02)

    async def move(self):
        """Move entries from the default partition to one month after the other."""
        make = "SELECT public.make_ledger_partition($1, 5000)"
        async with connected(self.address) as connection:
            for month in self.far:
                is_made = False
                while not is_made:
                    with contextlib.suppress(asyncpg.LockNotAvailableError):
                        is_made = await connection.fetchval(make, month)
                    await asyncio.sleep(0.2)

    async def drop(self):
        await asyncio.sleep(1)
        return await ledger.retain(self.books.database, OPERATOR, MONTHS)

    async def check(self):
        """Compare reports of all kinds with the ledger."""
        chance = random.Random(9)
        while not self.is_over.is_set():
            now = await self.books.database.now()
            start = now - timedelta(seconds=chance.choice([1, 60, 5000, 10**6, 10**8]))
            end = chance.choice([now, now + timedelta(days=1), LAST])
            group_by = chance.choice(["day", "hour", "model", "key", "organization"])
            whose = chance.choice([None, self.books.organization_id])
            await assert_same_instant(self.books, whose, group_by, start, end)
            self.checks += 1


async def test_the_roll_ups_equal_the_ledger_at_every_moment(books, database_address):
    """Beside writers whose transactions last and end in any order, entries that move and months
    that are dropped, every report has the ledger's sums of its instant."""
    for months in range(MONTHS - 1, MONTHS + 3):
        await old_month(books, months)
    storm = Storm(books, database_address)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(storm.write(seed))
        for work in (storm.call, storm.roll_up, storm.roll_up, storm.check):
            group.create_task(work())
        moving, dropping = group.create_task(storm.move()), group.create_task(storm.drop())
        await asyncio.sleep(8)
        await asyncio.gather(moving, dropping)
        storm.is_over.set()
    for _ in range(2):
        await rolled_up(books)

    assert storm.checks > 20
    assert len(dropping.result()) == 2
    assert await recorded_calls(books) == storm.written + 60
    assert await counted_to(books) > await books.database.now() - timedelta(minutes=1)
    await assert_exact(books)
