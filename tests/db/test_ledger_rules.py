"""Rules of the ledger that the database enforces."""

import uuid
from datetime import UTC, datetime

import asyncpg
import msgspec
import pytest
from books import entry_of
from support import make_settings

from service import ledger
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.ids import uuid7
from service.ledger.writer import SETTLE_AND_ADMIT

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


LIMIT = {
    "scope": "organization",
    "api_key_id": None,
    "end_user": None,
    "template_id": None,
    "unit": "usd",
    "period": "day",
    "ceiling": 1,
    "raised_to": None,
    "raised_until": None,
    "set_by": "operator",
}


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("scope", {"scope": "planet"}),
        ("scope_end_user", {"scope": "end_user"}),
        ("scope_end_user", {"end_user": b"x"}),
        ("scope_api_key", {"scope": "api_key"}),
        ("scope_child", {"template_id": uuid7()}),
        ("unit", {"unit": "eur"}),
        ("period", {"period": "week"}),
        ("period", {"period": None}),
        ("period", {"unit": "concurrency"}),
        ("ceiling", {"ceiling": -1}),
        ("raised", {"raised_to": 5}),
        ("raised", {"raised_until": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("set_by", {"set_by": "nobody"}),
    ],
)
async def test_settings_of_a_limit_are_valid(books, rule, settings):
    """The database rejects a limit whose settings contradict each other, new or changed."""
    insert = (
        f"INSERT INTO limits (organization_id, id, {', '.join(LIMIT)})"
        f" VALUES ($1, $2, {', '.join(f'${number + 3}' for number in range(len(LIMIT)))})"
    )
    values = {**LIMIT, **settings}
    with pytest.raises(asyncpg.CheckViolationError) as error:
        await books.connection.execute(insert, books.organization_id, uuid7(), *values.values())
    assert error.value.constraint_name == f"limits_{rule}"

    await books.connection.execute(insert, books.organization_id, uuid7(), *LIMIT.values())
    change = ", ".join(f"{name} = ${number}" for number, name in enumerate(settings, 1))
    with pytest.raises(asyncpg.CheckViolationError) as error:
        await books.connection.execute(f"UPDATE limits SET {change}", *settings.values())
    assert error.value.constraint_name == f"limits_{rule}"


async def test_nothing_held_is_below_zero(books):
    """The database rejects a counter that holds less than nothing, whoever writes it."""
    await books.limit("usd", "month", 100)
    with pytest.raises(asyncpg.CheckViolationError, match="limits_held"):
        await books.connection.execute("UPDATE limits SET held = -1")


@pytest.mark.parametrize("change", [{"cost_source": "guessed"}, {"outcome": None}])
async def test_a_malformed_entry_is_not_written(books, change):
    """An entry without an outcome, or with an unknown source of its cost, is rejected and its hold
    stays."""
    limit = await books.limit("usd", "month", 100)
    hold = books.hold(10)
    await books.ledger.admit(hold)
    entries = msgspec.json.encode([{**entry_of(hold, 5, 5).row(), **change}]).decode()

    with pytest.raises(asyncpg.CheckViolationError, match="an entry has no outcome"):
        await books.connection.fetch(SETTLE_AND_ADMIT, entries, None, uuid7(), 60, 100)

    assert await books.state(limit) == ("0.00", "0.00000001")
    await books.settle(hold)


@pytest.mark.parametrize("nanos", [-1, 1])
async def test_no_bound_is_below_zero(books, nanos):
    """A call whose bound is below zero would make room, so it is not admitted."""
    calls = msgspec.json.encode([books.hold(nanos, -nanos)]).decode()
    with pytest.raises(asyncpg.CheckViolationError, match="a bound is below zero"):
        await books.connection.fetch(SETTLE_AND_ADMIT, None, calls, uuid7(), 60, 100)


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": "gift"},
        {"kind": "call", "outcome": "ok", "endpoint": "/x", "request_id": "r"},
        {"kind": "correction"},
        {"cost_source": "guessed"},
    ],
)
async def test_the_audit_finds_malformed_entries(books, columns):
    """What no function writes is a fault, however it came into the ledger."""
    columns = {"kind": "credit", "cost_source": "manual", "cost_nanos": 1, **columns}
    names = ", ".join(columns)
    values = ", ".join(f"${number + 3}" for number in range(len(columns)))
    entry_id = uuid7()
    await books.connection.execute(
        f"INSERT INTO ledger_entries (organization_id, id, {names}) VALUES ($1, $2, {values})",
        books.organization_id,
        entry_id,
        *columns.values(),
    )

    faults = (await ledger.prove(books.database, books.organization_id)).faults

    assert (entry_id, f"malformed {columns['kind']}") in [
        (fault.id, fault.what) for fault in faults
    ]
    await books.connection.execute(
        "SET session_replication_role = replica; DELETE FROM ledger_entries"
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
