"""Limits near their end are those whose share is high now."""

from datetime import timedelta

import pytest

from service.reports import standings

REVOKE = "UPDATE public.api_keys SET revoked_at = now() WHERE id = $1"
RAISE = "UPDATE public.limits SET raised_to = $2, raised_until = now() + $3 WHERE id = $1"


async def near(books, share=0.8):
    """Return the share of each limit that is near its end, by its id."""
    found = await standings.near(books.database, None, share, 100)
    return {one.id: one.share for one in found}


async def use(books, calls=1, **hold):
    """Make and settle calls."""
    for _ in range(calls):
        call = books.hold(**hold)
        assert await books.admitted([call]) == [True]
        await books.settle(call, hold.get("nanos", 1), hold.get("tokens", 1))


@pytest.mark.parametrize(
    ("unit", "period"),
    [
        ("usd", "month"),
        ("usd", "lifetime"),
        ("requests", "day"),
        ("requests", "minute"),
        ("tokens", "hour"),
        ("tokens", "month"),
    ],
)
async def test_every_kind_of_limit(books, unit, period):
    """A limit of any unit and period is near its end from the share on, and not before."""
    limit_id = await books.limit(unit, period, 10)
    await use(books, 7)
    assert await near(books) == {}

    await use(books)

    assert await near(books) == {limit_id: 0.8}
    assert await near(books, 0.9) == {}


async def test_what_is_held_counts(books):
    """Calls in flight count with what they hold."""
    money = await books.limit("usd", "month", 10)
    places = await books.limit("concurrency", None, 2)
    holds = [books.hold(nanos=5) for _ in range(2)]
    assert await books.admitted(holds) == [True, True]

    assert await near(books) == {money: 1.0, places: 1.0}
    for hold in holds:
        await books.settle(hold, 1, 1)
    assert await near(books) == {}


async def test_a_window_that_ended_does_not_count(books):
    """What was used yesterday is not near any end today."""
    await books.limit("requests", "day", 1)
    await use(books)
    assert len(await near(books)) == 1

    await books.age_by_a_day()

    assert await near(books) == {}


async def test_a_raise_in_force_counts(books):
    """The ceiling is the one in force: a raise moves the end away, and a lower one brings it
    near."""
    limit_id = await books.limit("requests", "day", 10)
    await use(books, 5)

    async def raise_to(ceiling, hours):
        await books.connection.execute(RAISE, limit_id, ceiling, timedelta(hours=hours))

    assert await near(books) == {}
    await raise_to(5, 1)
    assert await near(books) == {limit_id: 1.0}
    await raise_to(5, -1)
    assert await near(books) == {}
    await use(books, 5)
    assert await near(books) == {limit_id: 1.0}
    await raise_to(100, 1)
    assert await near(books) == {}


async def test_what_binds_nothing_is_left_out(books):
    """Limits of revoked keys and deleted limits are left out."""
    of_key = await books.limit("requests", "day", 1, key=books.keys[0])
    deleted = await books.limit("requests", "day", 1)
    await use(books)
    assert set(await near(books)) == {of_key, deleted}

    await books.connection.execute(REVOKE, books.keys[0])
    await books.connection.execute(
        "UPDATE public.limits SET deleted_at = now() WHERE id = $1", deleted
    )

    assert await near(books) == {}


async def test_a_ceiling_of_zero_is_at_its_end(books):
    """A limit that lets nothing pass has no room left."""
    limit_id = await books.limit("requests", "day", 0)

    assert await near(books) == {limit_id: 1.0}
