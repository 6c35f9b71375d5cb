"""When many calls wait for the books, each group of organizations has batches of its own."""

import asyncio

import pytest
from books import Books, entry_of
from support import make_settings

from service.database.pool import open_pool
from service.ids import uuid7
from service.ledger import Ledger, batches

ORGANIZATIONS = 40
BATCHES = """
    SELECT array_agg(DISTINCT organization_id) AS organizations
    FROM holds
    GROUP BY xmin::text
"""


def group_of(organization_id):
    return hash(organization_id) % batches.GROUPS


@pytest.fixture
async def tenants(books):
    """Organizations of all groups, each with its own limit, that share a ledger."""
    tenants = [Books(books.database, books.connection) for _ in range(ORGANIZATIONS)]
    for tenant in tenants:
        tenant.ledger = books.ledger
        await tenant.prepare()
        await tenant.limit("concurrency", None, 3)
    assert {group_of(tenant.organization_id) for tenant in tenants} == set(range(batches.GROUPS))
    yield tenants
    for tenant in tenants:
        await tenant.audit()


async def admitted(books, tenants, count=3):
    """Admit so many calls of each organization at once."""
    holds = [tenant.hold() for _ in range(count) for tenant in tenants]
    await asyncio.gather(*map(books.ledger.admit, holds))
    return holds


async def organizations_of_batches(books):
    return [row["organizations"] for row in await books.connection.fetch(BATCHES)]


async def test_few_calls_share_a_batch(books, tenants, monkeypatch):
    """Few calls go together, whatever groups their organizations are in, on one connection."""
    monkeypatch.setattr(batches, "LINGER_S", 60)
    await admitted(books, tenants[: batches.MIN_BATCH], 1)

    assert len(await organizations_of_batches(books)) == 1
    assert books.database.connections == (5, 4)


async def test_many_calls_have_batches_of_one_group(books, tenants):
    """Many calls that wait are written in batches of one group each, which have no organization in
    common."""
    assert 3 * ORGANIZATIONS > batches.MIN_APART

    await admitted(books, tenants)

    written = await organizations_of_batches(books)
    groups = [{group_of(organization) for organization in batch} for batch in written]
    assert [len(group) for group in groups] == [1] * len(written)
    assert set.union(*groups) == set(range(batches.GROUPS))


@pytest.mark.parametrize("count", [1, 3])
async def test_a_batch_has_few_organizations(books, tenants, monkeypatch, count):
    """However many organizations call at once, a batch has at most MAX_ORGANIZATIONS of them, and
    no call is left out."""
    monkeypatch.setattr(batches, "MAX_ORGANIZATIONS", 5)

    await admitted(books, tenants, count)

    written = await organizations_of_batches(books)
    assert max(map(len, written)) == 5
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == ORGANIZATIONS * count


async def test_the_calls_of_an_organization_stay_in_order(books, tenants):
    """What a settlement frees is room for an admission of its organization that is requested after
    it, while all groups are written at once."""
    for _ in range(3):
        old = await admitted(books, tenants)

        settling = [books.ledger.settle(entry_of(hold, 1, 1)) for hold in old]
        new = await admitted(books, tenants)

        assert all(future.done() for future in settling)
        await asyncio.gather(*(books.ledger.settle(entry_of(hold, 1, 1)) for hold in new))


async def test_a_group_that_waits_delays_no_other(books, tenants):
    """While somebody keeps the limit of one organization locked, the other groups go on, and the
    pool has connections for others."""
    locked = tenants[0].organization_id
    slow, fast = [], []
    async with books.connection.transaction():
        await books.connection.execute(
            "SELECT FROM limits WHERE organization_id = $1 FOR UPDATE", locked
        )
        for tenant in tenants * 3:
            is_slow = group_of(tenant.organization_id) == group_of(locked)
            admitting = asyncio.create_task(books.ledger.admit(tenant.hold()))
            (slow if is_slow else fast).append(admitting)
        async with asyncio.timeout(1):
            await asyncio.gather(*fast)
        assert not any(admitting.done() for admitting in slow)
        assert books.database.in_use < 4
        await books.database.ping(0.5)
    await asyncio.gather(*slow)


@pytest.mark.parametrize("size", [2, 3, 4])
async def test_a_small_pool_has_a_connection_for_others(books, tenants, database_address, size):
    """Of a small pool the ledger takes so few connections that others still get one while its
    batches wait for locks."""
    settings = make_settings(
        database_address, "http://x", database_pool_min_size=size, database_pool_max_size=size
    )
    async with open_pool(settings, database_address) as pool:
        small = Ledger(pool, uuid7())
        async with books.connection.transaction():
            await books.connection.execute("SELECT FROM limits FOR UPDATE")
            calls = [asyncio.create_task(small.admit(tenant.hold())) for tenant in tenants * 3]
            await books.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            for _ in range(3):
                await pool.ping(0.5)
        await asyncio.gather(*calls)
        await small.flush(1)


async def test_a_lost_connection_of_a_group_loses_no_call(books, tenants):
    """When the connection of one group is terminated, the other groups go on, and its own calls are
    admitted once, on another connection."""
    locked = tenants[0].organization_id
    async with books.connection.transaction():
        await books.connection.execute(
            "SELECT FROM limits WHERE organization_id = $1 FOR UPDATE", locked
        )
        calls = [asyncio.create_task(books.ledger.admit(t.hold())) for t in tenants * 3]
        find = "SELECT array_agg(pid) FROM pg_locks WHERE NOT granted"
        await books.wait_for(find.replace("array_agg(pid)", "count(*) > 0"))
        (lost,) = await books.connection.fetchval(find)
        await books.connection.execute("SELECT pg_terminate_backend($1)", lost)
    async with asyncio.timeout(5):
        await asyncio.gather(*calls)

    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 3 * ORGANIZATIONS


async def test_a_group_that_fills_each_batch_delays_no_other(
    books, tenants, database_address, monkeypatch
):
    """Where one connection writes all batches, an organization that could fill each of them leaves
    room for those of other groups."""
    monkeypatch.setattr(batches, "MAX_BATCH", 4)
    monkeypatch.setattr(batches, "MIN_BATCH", 4)
    settings = make_settings(
        database_address, "http://x", database_pool_min_size=3, database_pool_max_size=3
    )
    busy = tenants[0]
    others = [t for t in tenants if group_of(t.organization_id) != group_of(busy.organization_id)]
    async with open_pool(settings, database_address) as pool:
        small = Ledger(pool, uuid7())
        await books.connection.execute("UPDATE limits SET ceiling = 100")

        async def keep_calling():
            while True:
                hold = busy.hold()
                await small.admit(hold)
                await small.settle(entry_of(hold, 1, 1))

        calling = [asyncio.create_task(keep_calling()) for _ in range(24)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(3):
            for other in others[:4]:
                hold = other.hold()
                await small.admit(hold)
                await small.settle(entry_of(hold, 1, 1))
        for call in calling:
            call.cancel()
        await asyncio.wait(calling)
        assert await small.flush(5) == 0


async def test_a_settlement_that_nobody_waits_for_is_written(books, tenants):
    """A settlement whose future is cancelled is written, and its call is not left open."""
    (hold,) = await admitted(books, tenants[:1], 1)

    books.ledger.settle(entry_of(hold, 1, 1)).cancel()

    await books.wait_for("SELECT count(*) > 0 FROM ledger_entries")
    async with asyncio.timeout(1):
        assert await books.ledger.flush(5) == 0
