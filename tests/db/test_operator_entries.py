"""What an operator does to the books: credits, the repair of counters, months that are dropped."""

import asyncio
import contextlib
from datetime import UTC, datetime

import asyncpg
import pytest
from support import make_settings
from test_admission import UNITS, Books

from service import audit, ledger
from service.audit import Actor
from service.db import connect_arguments, open_pool, uuid7
from service.errors import ClientError, Conflict, NotFound
from service.ledger import CostSource, NewCredit

OPERATOR = Actor(name="operator")
MONTHS = 3


@pytest.fixture
async def books(database_address):
    """Books on a database of the test's own, audited at the end."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    settings = make_settings(database_address, "http://x")
    try:
        async with open_pool(settings, database_address) as pool:
            books = Books(pool, connection)
            await books.prepare()
            yield books
            await books.audit()
            assert await audit.first_break(pool, books.organization_id) is None
            await books.ledger.flush(1)
    finally:
        await connection.close()


async def settled(books, nanos=50, tokens=5, bound=60):
    """A call that is settled at a cost; its hold."""
    hold = books.hold(bound, tokens)
    await books.ledger.admit(hold)
    await books.settle(hold, nanos, tokens)
    return hold


async def credit(books, call_id, nanos, note="the answer was cut", **more):
    """Give nano-dollars of a call back; the entry's id."""
    new = NewCredit(usd=f"{nanos / 10**9:.9f}", note=note, **more)
    async with books.database.transaction() as conn:
        return await ledger.credit(conn, OPERATOR, books.organization_id, call_id, new)


async def events(books, action):
    """The organization's audit events of one action."""
    return await books.connection.fetch(
        "SELECT target, detail::text FROM audit_events WHERE organization_id = $1 AND action = $2"
        " ORDER BY sequence",
        books.organization_id,
        action,
    )


async def used(books, limit_id):
    """What stands as used on a limit, in nano-dollars or a count."""
    return await books.connection.fetchval(
        "SELECT used FROM limits_as_of(ARRAY[$1::uuid], clock_timestamp())", limit_id
    )


async def faults(books):
    """What does not agree now."""
    return (await ledger.prove(books.database, books.organization_id)).faults


@contextlib.asynccontextmanager
async def calls_going_on(books, clients=8):
    """Calls are admitted and settled all the time; yields the durations of each in seconds."""
    durations = []
    is_over = False

    async def client():
        while not is_over:
            hold = books.hold(3, 3)
            started = asyncio.get_running_loop().time()
            await books.ledger.admit(hold)
            await books.settle(hold, 2, 1)
            durations.append(asyncio.get_running_loop().time() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        try:
            yield durations
        finally:
            is_over = True


# Credits


async def test_a_credit_gives_money_back(books):
    """On every money limit of the call, in the window that runs; requests and tokens stay."""
    ids = [await books.limit(unit, period, 1000) for unit, period in UNITS]
    before = await settled(books, 50)
    await books.connection.execute("UPDATE api_keys SET revoked_at = now()")

    credit_id = await credit(books, before.id, 20)

    for limit_id, (unit, _) in zip(ids, UNITS, strict=True):
        assert await used(books, limit_id) == {"usd": 30, "tokens": 5, "requests": 1}.get(unit, 0)
    entry = await ledger.find_entry(books.database, books.organization_id, credit_id)
    assert (entry.kind, entry.amends_id, entry.cost_usd) == ("credit", before.id, "-0.00000002")
    assert (entry.api_key_id, entry.model, entry.note) == (books.keys[0], "m", "the answer was cut")
    ((target, detail),) = await events(books, "ledger_entry.credit")
    assert target == str(credit_id)
    assert '"usd": "0.00000002"' in detail


async def test_a_credit_counts_in_the_window_that_runs(books):
    """Money of yesterday that is given back can be spent today, so today's use is below zero."""
    day, lifetime = await books.limit("usd", "day", 100), await books.limit("usd", "lifetime", 100)
    hold = await settled(books, 50)
    await books.connection.execute(
        "SET session_replication_role = replica;"
        "UPDATE limits SET window_start = window_start - interval '1 d' WHERE period = 'day';"
        "UPDATE ledger_entries SET limit_windows = ARRAY("
        "  SELECT CASE WHEN w = 'epoch' THEN w ELSE w - interval '1 d' END"
        "  FROM unnest(limit_windows) w);"
        "RESET session_replication_role"
    )

    await credit(books, hold.id, 50)

    assert (await used(books, day), await used(books, lifetime)) == (-50, 0)
    assert await books.state(day) == ("-0.00000005", "0.00")
    await books.audit()
    await books.connection.execute("UPDATE limits SET ceiling = 149 WHERE period = 'lifetime'")
    assert await books.admitted([books.hold(100), books.hold(50), books.hold(49)]) == [
        True,
        False,
        True,
    ]


async def test_a_credit_is_never_more_than_the_call_costs(books):
    """With what was credited before, also at the same time, and without any limit that locks."""
    hold = await settled(books, 50)

    outcomes = await asyncio.gather(
        *(credit(books, hold.id, 20) for _ in range(4)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert len(refused) == 2
    assert {error.param for error in refused} == {"usd"}
    with pytest.raises(Conflict, match=r"usd: must not be above 0\.00000001, what the call costs"):
        await credit(books, hold.id, 11)
    await credit(books, hold.id, 10)
    assert len(await events(books, "ledger_entry.credit")) == 3
    assert await books.connection.fetchval("SELECT sum(cost_nanos) FROM ledger_entries") == 0


@pytest.mark.parametrize("is_credit_first", [True, False])
async def test_credits_and_late_news_go_together(books, is_credit_first):
    """A correction of the sweeper's settlement and a credit, in either order."""
    limit_id = await books.limit("usd", "month", 100)
    hold = books.hold(60)
    await books.ledger.admit(hold)
    await books.connection.execute("UPDATE holds SET lease_until = now() - interval '1 s'")
    await ledger.sweep(books.database)

    steps = [lambda: credit(books, hold.id, 30), lambda: books.settle(hold, 45)]
    for step in steps if is_credit_first else reversed(steps):
        await step()

    assert await used(books, limit_id) == 15
    with pytest.raises(Conflict, match=r"must not be above 0\.000000015,"):
        await credit(books, hold.id, 16)


async def test_a_call_whose_limits_are_gone(books):
    """A limit that is out of force still counts, for it can still be proven."""
    limit_id = await books.limit("usd", "month", 100)
    hold = await settled(books, 50)
    await books.connection.execute("UPDATE limits SET deleted_at = now()")

    await credit(books, hold.id, 50)

    assert await used(books, limit_id) == 0


async def test_a_credit_is_repeated_safely(books):
    """With an id of the operator's the same credit is one entry and one event; another is none."""
    limit_id = await books.limit("usd", "month", 100)
    hold = await settled(books, 50)
    credit_id = uuid7()

    made = await asyncio.gather(*(credit(books, hold.id, 20, id=credit_id) for _ in range(3)))

    assert made == [credit_id] * 3
    assert await used(books, limit_id) == 30
    assert len(await events(books, "ledger_entry.credit")) == 1
    for changed in ({"nanos": 21}, {"nanos": 20, "note": "another"}):
        with pytest.raises(Conflict, match="id: another entry has it"):
            await credit(books, hold.id, id=credit_id, **changed)
    with pytest.raises(Conflict, match="id: another entry has it"):
        await credit(books, hold.id, 20, id=hold.id)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"usd": "0"}, "usd"),
        ({"usd": "-1"}, "usd"),
        ({"usd": "NaN"}, "usd"),
        ({"usd": "a lot"}, "usd"),
        ({"note": " "}, "note"),
        ({"note": "a\0b"}, "note"),
        ({"note": "x" * 501}, "note"),
        ({"id": ledger.credits.UUID(int=7)}, "id"),
        ({"id": ledger.credits.UUID(int=1_600_000_000_000 << 80 | 7 << 76 | 2 << 62)}, "id"),
    ],
)
async def test_a_bad_credit_names_the_field(books, changes, field):
    """And nothing is written."""
    hold = await settled(books)
    new = NewCredit(**{"usd": "0.00000001", "note": "why", **changes})

    with pytest.raises(ClientError, match=f"{field}: must be") as refused:
        async with books.database.transaction() as conn:
            await ledger.credit(conn, OPERATOR, books.organization_id, hold.id, new)

    assert refused.value.param == field
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


async def test_only_calls_of_known_cost_are_credited(books):
    """Not what is no call, not what is not there, not what has no price."""
    hold = await settled(books)
    credit_id = await credit(books, hold.id, 1)

    with pytest.raises(ClientError, match="entry_id: must be of kind call"):
        await credit(books, credit_id, 1)
    with pytest.raises(NotFound):
        await credit(books, uuid7(), 1)
    unpriced = books.hold(None)
    await books.ledger.admit(unpriced)
    await books.settle(unpriced, None, cost_source=CostSource.UNKNOWN)
    with pytest.raises(Conflict, match=r"must not be above 0\.00,"):
        await credit(books, unpriced.id, 1)


async def test_an_entry_is_found_in_its_month(books):
    """By its id alone, with one look into the index of one partition for each organization."""
    hold = await settled(books)
    assert await ledger.find_owner(books.database, hold.id) == books.organization_id
    with pytest.raises(NotFound):
        await ledger.find_owner(books.database, uuid7())

    await books.connection.execute(
        "SET plan_cache_mode = force_generic_plan;"
        f"PREPARE find (uuid) AS {ledger.entries.FIND_OWNER}"
    )
    rows = await books.connection.fetch(f"EXPLAIN (ANALYZE) EXECUTE find ('{hold.id}')")
    plan = "\n".join(row[0] for row in rows)
    assert plan.count("ledger_entries_") == 2, plan
    assert datetime.now(UTC).strftime("on ledger_entries_%Y_%m") in plan
    assert "Index Cond: ((organization_id = o.id) AND (id = $1))" in plan
