"""A hold is replaced by another when an alias moves to its next target, with its own bound and
limits."""

import asyncio
import random

import msgspec
import pytest
from books import EACH_USER, entry_of

from service import ledger, money
from service.errors import LimitExceeded, RateLimited, Unavailable
from service.ledger import CostSource, Ledger, Outcome, Sent
from service.ledger.writer import LEASE_S, SETTLE_AND_ADMIT


def to(hold, model="other", nanos=1, tokens=1):
    """Return the hold for another model."""
    return msgspec.structs.replace(hold, model=model, bound_nanos=nanos, bound_tokens=tokens)


async def counts(books, limit):
    """Return what the limit has used and holds, money in nano-dollars."""
    return tuple(
        money.parse_usd(count) if isinstance(count, str) else count
        for count in await books.state(limit)
    )


@pytest.mark.parametrize(
    ("unit", "period"),
    [
        ("usd", "month"),
        ("usd", "minute"),
        ("tokens", "hour"),
        ("tokens", "day"),
        ("requests", "day"),
    ],
)
async def test_a_hold_is_room_for_its_replacement(books, unit, period):
    """A limit with room for one call lets that call move to another model."""
    limit = await books.limit(unit, period, 1 if unit == "requests" else 100)
    await books.limit("concurrency", None, 1)
    hold = books.hold(nanos=100, tokens=100)
    await books.ledger.admit(hold)

    admission = await books.ledger.move(to(hold, nanos=60, tokens=60))

    assert (admission.bound_nanos, admission.bound_tokens) == (60, 60)
    await books.audit()
    await books.settle(to(hold), nanos=50, tokens=50)
    used = 1 if unit == "requests" else 50
    assert await counts(books, limit) == (used, 0)


async def test_a_move_that_does_not_fit_leaves_the_hold(books):
    """A refused move counts the room that the hold would give up, and leaves the hold unchanged."""
    of_all = await books.limit("usd", "month", 100)
    of_other = await books.limit("tokens", "minute", 10, model="other")
    hold = books.hold(nanos=70, tokens=70)
    await books.ledger.admit(hold)

    with pytest.raises(LimitExceeded) as money:
        await books.ledger.move(to(hold, nanos=101))
    with pytest.raises(RateLimited):
        await books.ledger.move(to(hold, nanos=1, tokens=11))

    assert (money.value.limit["used"], money.value.limit["held"]) == ("0.00", "0.00")
    assert await counts(books, of_all) == (0, 70)
    assert await counts(books, of_other) == (0, 0)
    await books.audit()
    await books.settle(hold, nanos=7, tokens=7)
    assert await counts(books, of_all) == (7, 0)


async def test_limits_of_one_model_change_with_the_move(books):
    """After a move the old model's limits hold nothing of the call, and the new model's do."""
    old = await books.limit("requests", "minute", 1, model="m")
    new = await books.limit("requests", "minute", 1, model="other")
    hold = books.hold()
    await books.ledger.admit(hold)
    await books.ledger.move(to(hold))

    assert await books.admitted([books.hold(), books.hold(model="other")]) == [True, False]
    await books.settle(to(hold))
    assert [(await counts(books, limit))[0] for limit in (old, new)] == [1, 1]


async def test_a_limit_that_was_deleted_meanwhile_is_skipped(books):
    """A limit that was deleted before the move holds nothing of the call, and the move succeeds."""
    limit = await books.limit("usd", "month", 100)
    hold = books.hold(nanos=70)
    await books.ledger.admit(hold)
    await books.connection.execute("UPDATE limits SET deleted_at = now() WHERE id = $1", limit)

    await books.ledger.move(to(hold, nanos=500))

    held = await books.connection.fetchval("SELECT held FROM limits WHERE id = $1", limit)
    assert held == 0
    limit_ids = await books.connection.fetchval("SELECT limit_ids FROM holds")
    assert limit_ids == []
    await books.settle(to(hold))


async def test_an_end_users_counters_move_too(books):
    """A move also replaces an end user's counters, including those of one model's template."""
    await books.limit("requests", "day", 1, model="m", end_user=EACH_USER)
    await books.limit("requests", "day", 1, end_user=EACH_USER)
    hold = books.hold(end_user="alice")
    await books.ledger.admit(hold)
    await books.ledger.move(to(hold))

    await books.audit()
    assert await books.admitted([books.hold(end_user="alice")]) == [False]
    await books.settle(to(hold), outcome=Outcome.UPSTREAM_BUSY)


async def test_an_expired_hold_does_not_move(books):
    """A hold that the sweeper has settled does not move, so nothing may be sent under it."""
    await books.limit("usd", "month", 100)
    hold = books.hold()
    await books.ledger.admit(hold)
    await books.connection.execute("UPDATE holds SET lease_until = now() - interval '1 second'")
    await ledger.sweep(books.database)

    with pytest.raises(Unavailable):
        await books.ledger.move(to(hold))

    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0


async def test_a_repeated_move_counts_once(books):
    """A move that is repeated after a broken connection counts once."""
    limit = await books.limit("tokens", "minute", 100)
    hold = books.hold(tokens=10)
    await books.ledger.admit(hold)
    for _ in range(3):
        await books.ledger.move(to(hold, tokens=60))
    assert await counts(books, limit) == (60, 0)
    await books.settle(to(hold), tokens=60)


async def test_opposite_moves_do_not_deadlock(books):
    """Moves in opposite directions lock limits in one order, so they do not deadlock, and the sums
    are right."""
    for model in ("m", "other"):
        await books.limit("usd", "month", 10**6, model=model)
        await books.limit("concurrency", None, 10**6, model=model, end_user=EACH_USER)
    ledgers = [books.ledger, *(Ledger(books.database, books.keys[0]) for _ in range(2))]

    async def wander(number):
        mine = ledgers[number % len(ledgers)]
        hold = books.hold(nanos=3, model=random.choice(("m", "other")), end_user=str(number % 5))
        await mine.admit(hold)
        for _ in range(4):
            hold = to(hold, model="other" if hold.model == "m" else "m", nanos=3)
            await mine.move(hold)
        await mine.settle(entry_of(hold, 3, 1))

    await asyncio.gather(*(wander(number) for number in range(60)))

    total = await books.connection.fetchval("SELECT sum(used) FROM limits WHERE unit = 'usd'")
    assert total == 180


async def test_venices_request_id_is_stored_with_the_hold(books):
    """A hold stores Venice's request id and the requested name, so a dead process's call can be
    found in Venice's bill."""
    hold = msgspec.structs.replace(books.hold(), requested_model="fast", price_version=3)
    sent = Sent()
    await books.ledger.admit(hold, sent)
    sent.upstream_key_id, sent.upstream_request_id = books.keys[1], "chatcmpl-1"
    await books.ledger.renew_leases()
    await books.connection.execute("UPDATE holds SET lease_until = now() - interval '1 second'")
    await ledger.sweep(books.database)

    row = await books.connection.fetchrow(
        "SELECT upstream_key_id, upstream_request_id, requested_model, model, price_version"
        " FROM ledger_entries"
    )
    assert tuple(row) == (books.keys[1], "chatcmpl-1", "fast", "m", 3)


async def test_the_upstream_key_is_in_the_entry(books):
    """The entry has the upstream key that is known when the call is settled."""
    hold = books.hold()
    await books.ledger.admit(hold)
    await books.settle(hold, upstream_key_id=books.keys[1], cost_source=CostSource.REPORTED)
    assert (
        await books.connection.fetchval("SELECT upstream_key_id FROM ledger_entries")
        == (books.keys[1])
    )


@pytest.mark.parametrize("is_met", [True, False])
async def test_a_settlement_beside_a_move_settles_the_new_hold(books, is_met):
    """A settlement in the same batch as a move, as when the caller leaves, writes the entry and
    leaves nothing held, whatever limits the models share."""
    old = [await books.limit("concurrency", None, 5, model="m")] if is_met else []
    hold = books.hold()
    await books.ledger.admit(hold)
    new = await books.limit("concurrency", None, 5, model="other")
    moved = msgspec.structs.replace(to(hold), is_moved=True)
    calls = msgspec.json.encode([moved]).decode()
    async with books.database.transaction() as conn:
        await conn.fetchrow(SETTLE_AND_ADMIT, None, calls, books.keys[0], LEASE_S, 100)
        settling = books.ledger.settle(entry_of(hold, 1, 1))
        await books.wait_for(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
    await settling

    assert [await counts(books, limit) for limit in (*old, new)] == [(0, 0)] * (len(old) + 1)
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 1


async def test_a_settlement_waits_for_an_abandoned_move(books):
    """The settlement of a call waits for the batch with its move, although nobody waits for the
    move."""
    await books.slow_down()
    hold = books.hold()
    await books.ledger.admit(hold)
    moving = asyncio.create_task(books.ledger.move(to(hold)))
    await books.wait_for(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        " AND datname = current_database()"
    )
    moving.cancel()

    await books.ledger.settle(entry_of(hold, 1, 1))

    requested = await books.connection.fetchval("SELECT requested_model FROM ledger_entries")
    assert requested == "other"
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 0
