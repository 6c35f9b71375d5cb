"""The three ways to end a call: its settlement, the sweeper, and the undoing of a lost
admission."""

import asyncio

import msgspec
import pytest
from books import Books, entry_of
from support import make_settings

from service import ledger
from service.database.pool import open_pool
from service.errors import RateLimited, Unavailable
from service.ids import uuid7
from service.ledger import CostSource, Ledger
from service.ledger.writer import SETTLE_AND_ADMIT

EXPIRE = "UPDATE holds SET lease_until = now() - interval '1 s'"


async def test_repetitions_change_nothing(books):
    """An admission or settlement that is repeated, as after a lost connection, counts once, and a
    second settlement does not change the first."""
    limit_id = await books.limit("usd", "month", 100)
    hold = books.hold(60)
    await books.ledger.admit(hold)
    await books.ledger.admit(hold)
    assert await books.state(limit_id) == ("0.00", "0.00000006")

    for nanos in (50, 50, 60):
        await books.settle(hold, nanos)
    assert await books.state(limit_id) == ("0.00000005", "0.00")
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


@pytest.mark.parametrize("code", ["53100", "53200", "58030", "25006", "XX000"])
async def test_a_database_in_trouble_loses_no_settlement(books, code):
    """A settlement is retried until it is written, through a full disk, a lack of memory or a
    read-only server."""
    await books.limit("usd", "month", 1000)
    hold = books.hold(100)
    await books.ledger.admit(hold)
    source = await books.connection.fetchval(
        "SELECT pg_get_functiondef('public.settle_and_admit'::regproc)"
    )
    trouble = f"BEGIN\n    RAISE EXCEPTION 'trouble' USING ERRCODE = '{code}';\n"
    await books.connection.execute(source.replace("BEGIN\n", trouble, 1))
    settling = books.ledger.settle(entry_of(hold, 7, 1))
    await asyncio.sleep(0.5)
    assert not settling.done()
    await books.connection.execute(source)
    await asyncio.wait_for(settling, 10)

    costs = await books.connection.fetch("SELECT outcome, cost_nanos FROM ledger_entries")
    assert [tuple(row) for row in costs] == [("ok", 7)]


async def test_one_bad_entry_blocks_no_other(books):
    """An entry that the database rejects is logged, and the others of its batch are written."""
    holds = [books.hold() for _ in range(5)]
    await books.admitted(holds)

    await asyncio.gather(
        *(books.settle(hold, status=10**9 if n == 2 else 200) for n, hold in enumerate(holds))
    )

    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 4
    await books.settle(holds[2])


async def test_an_outage_full_of_refusals_loses_no_settlement(
    books, proxy, proxied_address, monkeypatch
):
    """Refused calls during an outage do not crowd out the settlements of calls admitted before."""
    monkeypatch.setattr(ledger.calls, "MAX_UNDOING", 20)
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.2)
    async with open_pool(settings, proxied_address) as pool:
        away = Ledger(pool, uuid7())
        holds = [books.hold() for _ in range(30)]
        await asyncio.gather(*map(away.admit, holds))
        proxy.refuse()
        proxy.reset()
        settling = [away.settle(entry_of(hold, 1, 1)) for hold in holds]
        for _ in range(3):
            refused = await asyncio.gather(
                *(away.admit(books.hold()) for _ in range(100)), return_exceptions=True
            )
            assert {type(error) for error in refused} == {Unavailable}
        await proxy.restore()
        async with asyncio.timeout(20):
            await asyncio.gather(*settling)
        await away.flush(1)

    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 30
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0


async def test_the_sweeper_settles_at_the_bound_and_a_late_settlement_corrects_it(books):
    """A hold whose lease has expired is settled as interrupted, and a real cost that arrives later
    is one correction."""
    limit_id = await books.limit("usd", "month", 100)
    hold, alive = books.hold(60), books.hold(30)
    await books.ledger.admit(hold)
    await books.ledger.admit(alive)
    await books.connection.execute(EXPIRE + " WHERE id = $1", hold.id)

    assert await ledger.sweep(books.database) == 1
    assert await books.state(limit_id) == ("0.00000006", "0.00000003")
    await books.audit()
    late = entry_of(hold, 45, 1)
    for _ in range(2):
        await books.ledger.settle(late)
        await books.settle(hold, 20)

    assert await books.state(limit_id) == ("0.000000045", "0.00000003")
    rows = await books.connection.fetch(
        "SELECT kind, amends_id, outcome, cost_nanos, cost_source FROM ledger_entries ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("call", None, "interrupted", 60, "bound"),
        ("correction", hold.id, "ok", -15, "reported"),
    ]
    await books.settle(alive, 1)


async def test_a_renewed_lease_is_not_swept(books):
    """A call whose lease was renewed is not swept."""
    hold = books.hold()
    await books.ledger.admit(hold)
    await books.connection.execute(EXPIRE)

    await books.ledger.renew_leases()

    assert await ledger.sweep(books.database) == 0
    await books.settle(hold)
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


async def test_a_lease_that_is_renewed_before_the_sweepers_lock_is_not_swept(books):
    """A lease that is renewed between the sweeper's lookup and its lock is not swept."""
    hold = books.hold()
    await books.ledger.admit(hold)
    await books.connection.execute(EXPIRE)
    async with books.connection.transaction():
        await books.connection.execute("UPDATE holds SET lease_until = now() + interval '60 s'")
        sweeping = asyncio.create_task(ledger.sweep(books.database))
        await books.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")

    assert await sweeping == 0
    await books.settle(hold)


async def test_an_entry_settles_a_call_of_its_own_organization_only(books):
    """An entry with the id of another organization's call does not settle that call, even beside an
    entry of that organization."""
    other = Books(books.database, books.connection)
    await other.prepare()
    holds = [other.hold(), other.hold()]
    await other.admitted(holds)
    stray, right = (entry_of(hold, 1, 1).row() for hold in holds)
    entries = [{**stray, "organization_id": books.organization_id}, right]

    rows = await books.connection.fetch(
        SETTLE_AND_ADMIT, msgspec.json.encode(entries).decode(), None, uuid7(), 60, 100
    )

    assert [row["id"] for row in rows] == [holds[1].id]
    assert await books.connection.fetchval("SELECT id FROM holds") == holds[0].id
    await asyncio.gather(*(other.settle(hold) for hold in holds))
    await other.audit()


async def test_a_hold_that_cannot_be_settled_blocks_no_other(books):
    """The sweeper continues past a hold that it cannot settle."""
    await books.limit("usd", "month", 1000)
    holds = [books.hold() for _ in range(5)]
    await books.admitted(holds)
    bad = holds[1]
    await books.connection.execute(
        f"ALTER TABLE ledger_entries ADD CONSTRAINT bad CHECK (id <> '{bad.id}');" + EXPIRE
    )

    assert await ledger.sweep(books.database) == 4
    assert await books.connection.fetchval("SELECT id FROM holds") == bad.id

    await books.connection.execute("ALTER TABLE ledger_entries DROP CONSTRAINT bad")
    assert await ledger.sweep(books.database) == 1


async def test_a_cancelled_admission_holds_nothing(books):
    """An admission whose caller was cancelled is undone, whether or not it was made."""
    limit_id = await books.limit("usd", "month", 100)
    for pause_ms in (0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5):
        hold = books.hold()
        admitting = asyncio.create_task(books.ledger.admit(hold))
        await asyncio.sleep(pause_ms / 1000)
        if not admitting.cancel():
            await books.settle(hold, 0)
        await asyncio.wait({admitting})
    # This is long before the second attempt to undo it.
    await asyncio.sleep(1)

    assert await books.state(limit_id) == ("0.00", "0.00")


async def test_an_admission_in_flight_is_undone_after_its_decision(books):
    """When the caller leaves while the database decides, the undoing waits for the decision."""
    await books.slow_down()
    limit_id = await books.limit("usd", "month", 100)

    admitting = asyncio.create_task(books.ledger.admit(books.hold()))
    await asyncio.sleep(0.1)
    assert admitting.cancel()
    await books.wait_for("SELECT count(*) > 0 FROM ledger_entries")

    assert await books.state(limit_id) == ("0.00", "0.00")
    entry = await books.connection.fetchrow("SELECT outcome, cost_nanos FROM ledger_entries")
    assert tuple(entry) == ("not_sent", 0)


async def test_a_shutdown_undoes_an_admission_in_flight(books):
    """When the process ends while the database decides for a caller that left, no hold stays to be
    settled at its bound."""
    await books.slow_down()
    limit_id = await books.limit("usd", "month", 100)
    admitting = asyncio.create_task(books.ledger.admit(books.hold()))
    await asyncio.sleep(0.1)
    admitting.cancel()

    assert await books.ledger.flush(5) == 0

    assert await books.state(limit_id) == ("0.00", "0.00")
    assert await books.connection.fetchval("SELECT outcome FROM ledger_entries") == "not_sent"


async def admit_late(books, hold):
    """Run an admission on another connection, as the server may do long after the service gave
    up."""
    calls = msgspec.json.encode([hold]).decode()
    await books.connection.fetch(SETTLE_AND_ADMIT, None, calls, uuid7(), 60, 100)


@pytest.mark.parametrize("limits", [[], ["usd", "requests"]])
async def test_a_late_admission_holds_nothing(books, limits):
    """An admission that the server runs after its call was settled takes no hold."""
    ids = [await books.limit(unit, "month", 1000) for unit in limits]
    hold = books.hold(60)
    await books.ledger.admit(hold)
    await books.settle(hold, 50)
    before = [await books.state(limit_id) for limit_id in ids]

    await admit_late(books, hold)

    assert [await books.state(limit_id) for limit_id in ids] == before
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0


@pytest.mark.parametrize(
    ("source", "booked"),
    [(CostSource.ESTIMATED, "0.00000001"), (CostSource.REPORTED, "0.00000002")],
)
async def test_no_estimate_is_above_the_bound(books, source, booked):
    """An estimated cost is booked at most at the bound of its call; a stated one in full."""
    limit_id = await books.limit("usd", "month", 10)
    hold = books.hold(10)
    await books.ledger.admit(hold)

    await books.settle(hold, 20, cost_source=source)

    assert await books.state(limit_id) == (booked, "0.00")


async def test_a_call_that_is_twice_in_a_batch_holds_once(books):
    """The second of two admissions of one call takes no more room than the first."""
    limit_id = await books.limit("concurrency", None, 2)
    hold = books.hold()
    calls = msgspec.json.encode([hold, hold]).decode()

    await books.connection.fetch(SETTLE_AND_ADMIT, None, calls, uuid7(), 60, 100)

    assert await books.state(limit_id) == (0, 1)
    await books.settle(hold)
    assert await books.state(limit_id) == (0, 0)


@pytest.mark.parametrize(("limits", "later"), [([], []), (["concurrency"], []), ([], ["usd"])])
async def test_an_admission_that_is_repeated_while_its_first_statement_runs_is_one(
    books, proxy, proxied_address, limits, later
):
    """When the connection breaks while the server decides, and the repeated statement comes before
    the first has ended, the call is admitted once and holds once. On limits that are set later than
    the first began it holds nothing."""
    ids = [await books.limit(unit, None, 1) for unit in limits]
    await books.slow_down()
    async with open_pool(make_settings(proxied_address, "http://x"), proxied_address) as pool:
        away = Ledger(pool, uuid7())
        hold = books.hold(7)
        admitting = asyncio.create_task(away.admit(hold))
        await books.wait_for(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        )
        later_ids = [await books.limit(unit, "month", 7) for unit in later]
        proxy.reset()

        assert (await admitting).bound_nanos == 7

        assert await books.connection.fetchval("SELECT count(*) FROM holds") == 1
        assert [await books.state(limit_id) for limit_id in ids] == [(0, 1)] * len(ids)
        unused = [("0.00", "0.00")] * len(later)
        assert [await books.state(limit_id) for limit_id in later_ids] == unused
        await away.settle(entry_of(hold, 1, 1))
        assert await away.flush(1) == 0


async def test_a_hold_of_a_settled_call_is_released(books):
    """When a late admission just missed the settlement, the sweeper releases its hold without
    counting the call again."""
    limits = [
        await books.limit(unit, period, 1000)
        for unit, period in (("usd", "month"), ("tokens", "minute"), ("concurrency", None))
    ]
    hold = books.hold(60, 7)
    await books.ledger.admit(hold)
    await books.settle(hold, 50, 6)
    before = [await books.state(limit_id) for limit_id in limits]
    source = await books.connection.fetchval(
        "SELECT pg_get_functiondef('public.write_holds'::regproc)"
    )
    blind = source.replace("x.id BETWEEN h.id AND h.id", "false")
    assert blind != source
    await books.connection.execute(blind)
    await admit_late(books, hold)
    assert [await books.state(limit_id) for limit_id in limits] != before

    await books.connection.execute(EXPIRE)
    await ledger.sweep(books.database)

    assert [await books.state(limit_id) for limit_id in limits] == before
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


async def test_a_refusal_overtaken_by_a_late_statement_is_undone(
    books, proxy, proxied_address, monkeypatch
):
    """A hold is undone that the server takes late, after its repeated statement was refused."""
    monkeypatch.setattr(ledger.calls, "UNDO_AGAIN_S", 1.0)
    limit_id = await books.limit("concurrency", None, 1)
    first, second = books.hold(), books.hold()
    await books.ledger.admit(first)
    async with open_pool(make_settings(proxied_address, "http://x"), proxied_address) as pool:
        away = Ledger(pool, uuid7())
        async with books.connection.transaction():
            await books.connection.execute("SELECT FROM limits FOR UPDATE")
            admitting = asyncio.create_task(away.admit(second))
            await books.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            proxy.reset()
            async with asyncio.timeout(5):
                while not pool.losses:
                    await asyncio.sleep(0.01)
        with pytest.raises(RateLimited):
            await admitting
        await books.settle(first)
        await admit_late(books, second)
        assert await books.state(limit_id) == (0, 1)

        await books.wait_for("SELECT count(*) = 0 FROM holds")
        assert await away.flush(1) == 0

    assert await books.state(limit_id) == (0, 0)
    find = "SELECT outcome, cost_nanos FROM ledger_entries WHERE id = $1"
    assert tuple(await books.connection.fetchrow(find, second.id)) == ("not_sent", 0)
