"""The operator's changes to the ledger: credits, the repair of counters, dropped months."""

import asyncio
import contextlib
import hashlib
from datetime import UTC, datetime, timedelta

import asyncpg
import psycopg
import pytest
from books import Books
from support import make_settings
from test_admission import UNITS

from service import audit, ledger
from service.audit import Actor
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.errors import ClientError, Conflict, NotFound, Unavailable
from service.ids import uuid7
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
    """Settle a call at a cost; return its hold."""
    hold = books.hold(bound, tokens)
    await books.ledger.admit(hold)
    await books.settle(hold, nanos, tokens)
    return hold


async def credit(books, call_id, nanos, note="the answer was cut", **more):
    """Give nano-dollars of a call back; return the entry's id."""
    new = NewCredit(usd=f"{nanos / 10**9:.9f}", note=note, **more)
    async with books.database.transaction() as conn:
        return await ledger.credit(conn, OPERATOR, books.organization_id, call_id, new)


async def events(books, action):
    """Return the organization's audit events of one action."""
    return await books.connection.fetch(
        "SELECT target, detail::text FROM audit_events WHERE organization_id = $1 AND action = $2"
        " ORDER BY sequence",
        books.organization_id,
        action,
    )


async def used(books, limit_id):
    """Return what a limit has used, in nano-dollars or as a count."""
    return await books.connection.fetchval(
        "SELECT used FROM limits_as_of(ARRAY[$1::uuid], clock_timestamp())", limit_id
    )


async def faults(books):
    """Return the faults that the audit finds now."""
    return (await ledger.prove(books.database, books.organization_id)).faults


@contextlib.asynccontextmanager
async def continuous_calls(books, clients=8):
    """Admit and settle calls continuously; yield the list of their durations in seconds."""
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
    """A credit reduces every limit of money of the call in the current window; requests and tokens
    stay."""
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


async def test_a_credit_counts_in_the_current_window(books):
    """A credit for yesterday's call can be spent today, so today's use may be below zero."""
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


async def test_a_credit_never_exceeds_the_calls_cost(books):
    """Credits of a call together never exceed its cost, also concurrently and without a limit that
    locks."""
    hold = await settled(books, 50)

    outcomes = await asyncio.gather(
        *(credit(books, hold.id, 20) for _ in range(4)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert len(refused) == 2
    assert {error.param for error in refused} == {"usd"}
    with pytest.raises(
        Conflict, match=r"usd: must not be above 0\.00000001, the call's remaining cost"
    ):
        await credit(books, hold.id, 11)
    await credit(books, hold.id, 10)
    assert len(await events(books, "ledger_entry.credit")) == 3
    assert await books.connection.fetchval("SELECT sum(cost_nanos) FROM ledger_entries") == 0


@pytest.mark.parametrize("is_credit_first", [True, False])
async def test_a_credit_and_a_late_correction(books, is_credit_first):
    """A correction of a swept call and a credit work in either order."""
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


async def test_a_call_whose_limits_were_deleted(books):
    """A credit counts on a deleted limit, which can still be audited."""
    limit_id = await books.limit("usd", "month", 100)
    hold = await settled(books, 50)
    await books.connection.execute("UPDATE limits SET deleted_at = now()")

    await credit(books, hold.id, 50)

    assert await used(books, limit_id) == 0


async def test_a_credit_is_repeated_safely(books):
    """A credit that is repeated with the operator's id is one entry and one event; another credit
    under the id is refused."""
    limit_id = await books.limit("usd", "month", 100)
    hold = await settled(books, 50)
    credit_id = uuid7()

    made = await asyncio.gather(*(credit(books, hold.id, 20, id=credit_id) for _ in range(3)))

    assert made == [credit_id] * 3
    assert await used(books, limit_id) == 30
    assert len(await events(books, "ledger_entry.credit")) == 1
    for changed in ({"nanos": 21}, {"nanos": 20, "note": "another"}):
        with pytest.raises(Conflict, match="id: another entry already has this id"):
            await credit(books, hold.id, id=credit_id, **changed)
    with pytest.raises(Conflict, match="id: another entry already has this id"):
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
    """An invalid credit names the field and writes nothing."""
    hold = await settled(books)
    new = NewCredit(**{"usd": "0.00000001", "note": "why", **changes})

    with pytest.raises(ClientError, match=f"{field}: must be") as refused:
        async with books.database.transaction() as conn:
            await ledger.credit(conn, OPERATOR, books.organization_id, hold.id, new)

    assert refused.value.param == field
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


async def test_only_calls_of_known_cost_are_credited(books):
    """Entries that are no call, are not there, or have no known cost cannot be credited."""
    hold = await settled(books)
    credit_id = await credit(books, hold.id, 1)

    with pytest.raises(ClientError, match="entry_id: must be an entry of kind call"):
        await credit(books, credit_id, 1)
    with pytest.raises(NotFound):
        await credit(books, uuid7(), 1)
    unpriced = books.hold(None)
    await books.ledger.admit(unpriced)
    await books.settle(unpriced, None, cost_source=CostSource.UNKNOWN)
    with pytest.raises(Conflict, match=r"must not be above 0\.00,"):
        await credit(books, unpriced.id, 1)


async def test_an_entry_is_found_in_its_month(books):
    """Finding an entry by its id reads the index of one partition for each organization."""
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


# The repair


HARMS = [
    "UPDATE limits SET used = used + 1 WHERE unit = 'usd'",
    "UPDATE limits SET used = used - 100, held = held + 7 WHERE period IN ('month', 'lifetime')",
    "UPDATE limits SET held = held + 1 WHERE unit = 'concurrency'",
    "UPDATE limits SET window_start = window_start - interval '9 d' WHERE period = 'day'",
    "UPDATE limits SET buckets[1] = buckets[1] + 1 WHERE unit = 'requests' AND period = 'hour'",
    "UPDATE limits SET buckets[9] = buckets[9] - 1, buckets[10] = buckets[10] + 1"
    " WHERE unit = 'tokens' AND period = 'hour'",
    "UPDATE limits SET buckets = NULL",
    "DELETE FROM holds",
    # Entries of a settled call, with all of its limits.
    "INSERT INTO holds (organization_id, id, api_key_id, request_id, endpoint, model, is_stream,"
    " process_id, lease_until, bound_nanos, bound_tokens, limit_ids, limit_windows)"
    " SELECT organization_id, id, api_key_id, 'r', 'e', 'm', false, id, now(), 5, 7, limit_ids,"
    " limit_windows FROM ledger_entries",
    # An entry of a call that was never admitted.
    "INSERT INTO holds (organization_id, id, api_key_id, request_id, endpoint, model, is_stream,"
    " process_id, lease_until, bound_nanos, bound_tokens, limit_ids, limit_windows)"
    " SELECT organization_id, gen_random_uuid(), api_key_id, 'r', 'e', 'm', false, id,"
    " now() + interval '1 h', 5, 7, limit_ids, limit_windows FROM ledger_entries",
]


def manipulate(address, statement):
    """Change the ledger directly in the database."""
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, dbname=address.database
    ) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement)


async def repair(books):
    """Repair the organization's limits; return what was wrong."""
    async with books.database.transaction() as conn:
        return await ledger.repair(conn, OPERATOR, books.organization_id)


@pytest.mark.parametrize("statement", HARMS)
async def test_the_repair_sets_the_proven_values(books, database_address, statement):
    """A repair makes limits agree again, leaves entries unchanged, and records old and proven
    values as an event of each limit."""
    for unit, period in UNITS:
        await books.limit(unit, period, 1000)
    await settled(books, 2, 6)
    open_one = books.hold(3, 4)
    await books.ledger.admit(open_one)
    entries = await books.connection.fetch("SELECT * FROM ledger_entries")
    manipulate(database_address, statement)
    found = await faults(books)
    assert found

    repaired = await repair(books)

    assert sorted(map(str, repaired)) == sorted(map(str, found))
    assert await faults(books) == []
    assert await books.connection.fetch("SELECT * FROM ledger_entries") == entries
    reported = {target for target, _ in await events(books, "limit.repair")}
    reported |= {target for target, _ in await events(books, "hold.remove")}
    assert reported == {str(fault.id) for fault in found}
    assert await repair(books) == []


async def test_a_total_that_agrees_hides_no_bucket(books, database_address):
    """Use that was moved from one bucket to another is two faults, each with its bucket."""
    limit_id = await books.limit("tokens", "hour", 1000)
    await settled(books, tokens=6)
    slot = int(datetime.now(UTC).timestamp()) // 60 % 61 + 1
    other = (slot + 29) % 61 + 1
    manipulate(
        database_address,
        f"UPDATE limits SET buckets[{slot}] = buckets[{slot}] - 2,"
        f" buckets[{other}] = buckets[{other}] + 2",
    )

    found = sorted(await faults(books), key=lambda fault: fault.recorded)

    assert [(fault.id, fault.recorded, fault.expected) for fault in found] == [
        (limit_id, 2, 0),
        (limit_id, 4, 6),
    ]
    await repair(books)


@pytest.mark.parametrize("repairs", [1, 3])
async def test_the_repair_is_right_while_calls_continue(books, database_address, repairs):
    """Concurrent repairs with a slow proof lose nothing that is settled between the proof and the
    repair."""
    for unit, period in UNITS:
        await books.limit(unit, period, 10**9)
    source = await books.connection.fetchval(
        "SELECT pg_get_functiondef("
        "'public.repair_limits(uuid, uuid[], text[], timestamptz[], bigint[])'::regprocedure)"
    )
    slow = source.replace("BEGIN\n", "BEGIN\n    PERFORM pg_sleep(0.2);\n", 1)
    assert slow != source
    await books.connection.execute(slow)
    await settled(books)

    async with asyncio.timeout(60), continuous_calls(books) as durations:
        for round_number in range(5):
            manipulate(
                database_address,
                "UPDATE limits SET used = used + 1000, held = held + 1000, buckets[7] = 99",
            )
            before = len(durations)
            await asyncio.gather(*(repair(books) for _ in range(repairs)))
            assert len(durations) > before, "no call went on meanwhile"
            assert await faults(books) == [], round_number


async def test_a_ring_holds_nothing(books, database_address):
    """A held amount in the row of a ring, which no call writes, is not counted: neither by a call
    nor by a repair."""
    ids = [await books.limit(unit, "minute", 1000) for unit in ("requests", "tokens")]
    await settled(books)
    manipulate(database_address, "UPDATE limits SET held = 990")

    assert await repair(books) == []
    assert await books.admitted([books.hold(1, 30)]) == [True]

    assert [await books.state(limit_id) for limit_id in ids] == [(2, 0), (35, 0)]
    assert await faults(books) == []


async def test_expired_use_needs_no_repair(books):
    """A window that ended and a bucket that slid out since the proof are not repaired."""
    ids = [await books.limit("usd", "day", 1000), await books.limit("requests", "minute", 1000)]
    await settled(books)
    windows = await books.connection.fetchval("SELECT limit_windows FROM ledger_entries")
    gone_by = [windows[0] - timedelta(days=1), windows[1] - timedelta(seconds=61)]

    async def set_by(counted):
        return await books.connection.fetch(
            "SELECT * FROM repair_limits($1, $2, '{used,used}', $3, '{5,0}')",
            books.organization_id,
            ids,
            counted,
        )

    assert await set_by(gone_by) == []
    await books.audit()
    assert len(await set_by(windows)) == 2
    assert [(fault.id, fault.recorded) for fault in await faults(books)] == [(ids[0], 45)]
    await repair(books)


async def test_contradictory_entries_stay(books, database_address):
    """A second correction, or one without a call, is reported and not repaired."""
    hold = await settled(books)
    correct = (
        "INSERT INTO ledger_entries (organization_id, id, kind, amends_id, cost_nanos, cost_source)"
        f" VALUES ('{books.organization_id}', '%s', 'correction', '%s', 1, 'manual')"
    )
    for amended in (hold.id, hold.id, uuid7()):
        manipulate(database_address, correct % (uuid7(), amended))

    assert await repair(books) == []

    whats = sorted(fault.what for fault in await faults(books))
    assert whats == ["duplicate corrections", "orphaned correction"]
    assert await events(books, "limit.repair") == []
    manipulate(database_address, "DELETE FROM ledger_entries WHERE kind = 'correction'")


# Dropped months

DIGEST_COLUMNS = (
    "id, kind, amends_id, api_key_id, request_id, endpoint, model, outcome, requests, tokens,"
    " input_tokens, cached_input_tokens, output_tokens, cost_nanos, cost_source, note"
)


def month_before(months):
    """Return the start of the month so many months ago."""
    now = datetime.now(UTC)
    number = now.year * 12 + now.month - 1 - months
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


async def old_month(books, months, entries=100, nanos=7, limit_ids=(), windows=()):
    """Create the month so many months ago, with calls that counted on limits."""
    start = month_before(months)
    await books.connection.execute(
        f"CREATE TABLE ledger_partitions.ledger_entries_{start:%Y_%m}"
        " PARTITION OF ledger_entries FOR VALUES"
        f" FROM ('{floor(start)}') TO ('{floor(month_before(months - 1))}')"
    )
    await books.connection.execute(
        "INSERT INTO ledger_entries (organization_id, id, kind, api_key_id, request_id, endpoint,"
        " outcome, requests, tokens, cost_nanos, cost_source, limit_ids, limit_windows)"
        " SELECT $1, (left(uuid7_floor($3)::text, 13) || '-7' || lpad(to_hex(i), 3, '0') || '-8'"
        " || substr(md5(i::text), 1, 3) || '-' || substr(md5(i::text), 4, 12))::uuid, 'call', $2,"
        " 'r', '/c', 'ok', 1, 10, $4, 'reported', $6, $7 FROM generate_series(1, $5) i",
        books.organization_id,
        books.keys[0],
        start + timedelta(days=3),
        nanos,
        entries,
        list(limit_ids),
        list(windows),
    )
    await books.connection.execute(
        "UPDATE limits SET used = used + CASE unit WHEN 'usd' THEN $2 WHEN 'tokens' THEN 10"
        " ELSE 1 END * $3::bigint, window_start = 'epoch' WHERE id = ANY ($1)"
        " AND period = 'lifetime'",
        list(limit_ids),
        nanos,
        entries,
    )
    return start


def floor(instant):
    """Return the smallest UUIDv7 of an instant."""
    return ledger.credits.UUID(int=int(instant.timestamp() * 1000) << 80)


async def test_a_month_is_dropped(books):
    """Dropping a month carries what it counts on lifetime limits, and records its totals and digest
    as an event."""
    units = [("usd", "lifetime"), ("tokens", "lifetime"), ("requests", "lifetime"), ("usd", "day")]
    ids = [await books.limit(unit, period, 10**9) for unit, period in units]
    epoch, then = datetime(1970, 1, 1, tzinfo=UTC), month_before(MONTHS + 1)
    start = await old_month(books, MONTHS + 1, 100, 7, ids, [epoch] * 3 + [then])
    kept = await old_month(books, MONTHS, 10, 7, ids[:3], [epoch] * 3)
    await settled(books, 50, 5)
    await books.connection.execute("UPDATE limits SET deleted_at = now() WHERE id = $1", ids[1])
    await books.audit()
    # An operator creates the index with psql beforehand.
    exported = b""

    async def read(part):
        nonlocal exported
        exported += part

    await books.connection.copy_from_query(
        f"SELECT {DIGEST_COLUMNS} FROM ledger_partitions.ledger_entries_{start:%Y_%m} ORDER BY id",
        output=read,
        format="csv",
    )
    assert exported.count(b"\n") == 100

    (found,) = await ledger.expired(books.database, MONTHS)
    (dropped,) = await ledger.retain(books.database, OPERATOR, MONTHS)

    assert dropped.month == f"{then:%Y-%m}"
    assert (dropped.entries, dropped.tokens, dropped.cost_usd) == (100, 1000, "0.0000007")
    assert (found.is_dropped, dropped.is_dropped) == (False, True)
    assert [await used(books, limit_id) for limit_id in ids] == [820, 1105, 111, 50]
    carried = await books.connection.fetch("SELECT carried FROM limits ORDER BY id")
    assert [row["carried"] for row in carried] == [700, 1000, 100, 0]
    ((target, detail),) = await events(books, "ledger.drop")
    assert target == f"{then:%Y-%m}"
    assert f'"sha256": "{hashlib.sha256(exported).hexdigest()}"' in detail
    assert '"entries": 100' in detail
    names = await books.connection.fetch("SELECT month FROM ledger_months() ORDER BY month LIMIT 2")
    assert names[0]["month"] == kept
    assert await ledger.retain(books.database, OPERATOR, MONTHS) == []


@pytest.mark.parametrize("is_kept", [True, False])
async def test_an_entry_settled_later_keeps_its_month(books, is_kept):
    """An entry with an old id keeps its month in reports until its settlement is as old."""
    start = await old_month(books, MONTHS + 2)
    await old_month(books, MONTHS + 1)
    settled_at = month_before(MONTHS) - timedelta(seconds=not is_kept)
    await books.connection.execute("SET session_replication_role = replica")
    await books.connection.execute(
        "UPDATE ledger_entries SET counted_at = $1 WHERE id = (SELECT id FROM ledger_entries"
        " WHERE id < public.uuid7_floor($2) LIMIT 1)",
        settled_at,
        month_before(MONTHS + 1),
    )
    wanted = [f"{start:%Y-%m}", f"{month_before(MONTHS + 1):%Y-%m}"][is_kept:]

    assert [month.month for month in await ledger.expired(books.database, MONTHS)] == wanted
    dropped = await ledger.retain(books.database, OPERATOR, MONTHS)
    assert [month.month for month in dropped] == wanted


async def test_amendments_of_a_dropped_call_are_no_fault(books, database_address):
    """A correction and a credit outlive the call that they amend, and no new one can be written."""
    limit_id = await books.limit("usd", "lifetime", 10**9)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    await old_month(books, MONTHS + 1, 3, 7, [limit_id], [epoch])
    calls = [row["id"] for row in await books.connection.fetch("SELECT id FROM ledger_entries")]
    await credit(books, calls[0], 5)
    correct = (
        "INSERT INTO ledger_entries (organization_id, id, kind, amends_id, cost_nanos, cost_source,"
        " limit_ids, limit_windows) VALUES ($1, $2, 'correction', $3, 0, 'reported', '{}', '{}')"
    )
    await books.connection.execute(correct, books.organization_id, uuid7(), calls[1])

    await ledger.retain(books.database, OPERATOR, MONTHS)

    assert await faults(books) == []
    assert await used(books, limit_id) == 16
    with pytest.raises(NotFound):
        await credit(books, calls[0], 1)
    with pytest.raises(NotFound):
        await ledger.find_owner(books.database, calls[0])
    await books.connection.execute(correct, books.organization_id, uuid7(), uuid7())
    assert [fault.what for fault in await faults(books)] == ["orphaned correction"]
    manipulate(database_address, "DELETE FROM ledger_entries WHERE kind = 'correction'")


async def test_the_ledger_stays_insert_only(books):
    """Entries can be neither changed nor deleted one by one, before and after a month was
    dropped."""
    start = await old_month(books, MONTHS + 1)
    await settled(books)
    for table in (f"ledger_partitions.ledger_entries_{start:%Y_%m}", "public.ledger_entries"):
        with pytest.raises(asyncpg.RestrictViolationError, match="insert-only"):
            await books.connection.execute(f"DELETE FROM {table}")
        await ledger.retain(books.database, OPERATOR, MONTHS)


async def test_a_month_is_dropped_while_calls_continue(books):
    """While a month is dropped the audit finds no faults, and no call waits long."""
    limit_id = await books.limit("usd", "lifetime", 10**12)
    await books.limit("requests", "minute", 10**12)
    for months in range(MONTHS + 1, MONTHS + 5):
        await old_month(books, months, 500, 7, [limit_id], [datetime(1970, 1, 1, tzinfo=UTC)])

    async with asyncio.timeout(60), continuous_calls(books) as durations:
        retaining = asyncio.create_task(ledger.retain(books.database, OPERATOR, MONTHS))
        while not retaining.done():
            assert await faults(books) == []
        dropped = await retaining

    assert len(dropped) == 4
    assert len(await events(books, "ledger.drop")) == 4
    assert durations
    assert max(durations) < 2


async def test_replicas_drop_a_month_once(books):
    """The second replica to drop a month leaves it to the first, and nothing is carried twice."""
    limit_id = await books.limit("usd", "lifetime", 10**12)
    await old_month(books, MONTHS + 1, 50, 7, [limit_id], [datetime(1970, 1, 1, tzinfo=UTC)])

    dropped = await asyncio.gather(
        *(ledger.retain(books.database, OPERATOR, MONTHS) for _ in range(4))
    )

    assert sorted(map(len, dropped)) == [0, 0, 0, 1]


async def test_a_drop_gives_up_behind_a_reader(books, monkeypatch):
    """While the ledger is read, the drop retries without delaying calls, and at last gives up
    without changes."""
    monkeypatch.setattr(ledger.retention, "DROP_ATTEMPTS", 3)
    limit_id = await books.limit("usd", "lifetime", 10**12)
    await old_month(books, MONTHS + 1, 50, 7, [limit_id], [datetime(1970, 1, 1, tzinfo=UTC)])
    reading = books.connection.transaction()
    await reading.start()
    await books.connection.fetchval("SELECT count(*) FROM ledger_entries")

    async with continuous_calls(books) as durations:
        with pytest.raises(Unavailable, match="The ledger is being read"):
            await ledger.retain(books.database, OPERATOR, MONTHS)

    assert durations
    assert max(durations) < 1
    await reading.rollback()
    assert await events(books, "ledger.drop") == []
    assert len(await ledger.retain(books.database, OPERATOR, MONTHS)) == 1
