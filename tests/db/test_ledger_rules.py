"""Rules of the ledger that the database enforces."""

import uuid
from datetime import UTC, datetime

import asyncpg
import pytest
from support import make_settings

from service import ledger
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.ids import uuid7

INSERT = """
    INSERT INTO public.ledger_entries (organization_id, id, kind, cost_source, cost_nanos)
    VALUES ($1, $2, 'credit', 'manual', 1)
"""


@pytest.fixture
async def connection(database_address):
    """A connection of the test's own."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE public.ledger_entries SET cost_nanos = 0",
        "DELETE FROM public.ledger_entries",
        "TRUNCATE public.ledger_entries",
    ],
)
async def test_entries_never_change(connection, change):
    """The ledger rejects updates and deletes, also by its owner."""
    await connection.execute(INSERT, uuid.uuid4(), uuid7())

    with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
        await connection.execute(change)


@pytest.mark.parametrize(
    "change",
    ["UPDATE public.audit_events SET actor = 'x'", "TRUNCATE public.audit_events"],
)
async def test_audit_events_never_change(connection, change):
    """The audit events reject updates and deletes."""
    await connection.execute(
        "INSERT INTO public.audit_events (organization_id, sequence, id, actor, action, target,"
        " created_at, hash) VALUES ($1, 1, $2, 'a', 'b', 'c', now(), $3)",
        uuid.UUID(int=0),
        uuid7(),
        b"x" * 32,
    )

    with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
        await connection.execute(change)


async def test_an_unknown_cost_is_not_zero(connection):
    """An entry of unknown cost has no amount, and every other entry has one."""
    for source, nanos in (("unknown", 0), ("reported", None)):
        with pytest.raises(asyncpg.CheckViolationError, match="cost_known"):
            await connection.execute(
                "INSERT INTO public.ledger_entries (organization_id, id, kind, cost_source,"
                " cost_nanos) VALUES ($1, $2, 'credit', $3, $4)",
                uuid.uuid4(),
                uuid7(),
                source,
                nanos,
            )


async def test_entries_find_their_month(connection):
    """An entry goes to the partition of the month in its id, up to three months ahead."""
    now = datetime.now(UTC)
    for ahead in range(4):
        month = (now.month - 1 + ahead) % 12 + 1
        year = now.year + (now.month - 1 + ahead) // 12
        at = datetime(year, month, 1, 0, 0, 0, 1000, tzinfo=UTC)
        milliseconds = int(at.timestamp() * 1000)
        entry_id = uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62)
        await connection.execute(INSERT, uuid.uuid4(), entry_id)
        partition = await connection.fetchval(
            "SELECT tableoid::regclass::text FROM public.ledger_entries WHERE id = $1", entry_id
        )
        assert partition == f"ledger_partitions.ledger_entries_{year}_{month:02d}"


async def test_making_partitions_again_makes_none(database_address, connection):
    """Partitions are created once, however often and concurrently they are requested."""
    settings = make_settings(database_address, "http://x")
    count = "SELECT count(*) FROM pg_class WHERE relnamespace = 'ledger_partitions'::regnamespace"
    before = await connection.fetchval(count)
    async with open_pool(settings, database_address) as database:
        await ledger.make_partitions(database)

    assert await connection.fetchval(count) == before
