"""Admissions and settlements that wait together share a transaction, without sharing failures."""

import asyncio

import pytest
from books import entry_of
from support import make_settings

from service import ledger
from service.database.pool import open_pool
from service.errors import RateLimited, Unavailable
from service.ids import uuid7
from service.ledger import Hold, Ledger
from service.ledger.batches import Batches

SAME_TRANSACTION = """
    SELECT count(DISTINCT w.version)
    FROM (
        SELECT xmin::text AS version FROM holds
        UNION ALL
        SELECT xmin::text FROM ledger_entries
    ) w
"""


async def admitted(books, count=1, **amounts):
    """Admit so many holds and return them."""
    holds = [books.hold(**amounts) for _ in range(count)]
    await asyncio.gather(*map(books.ledger.admit, holds))
    return holds


@pytest.mark.parametrize(("count", "batches"), [(8, [8]), (24, [8, 8, 8]), (60, [20, 20, 20])])
async def test_a_batch_leaves_calls_for_the_process(books, count, batches):
    """A batch takes only a part of the open calls, so that the process has work while the database
    runs it."""
    await books.limit("concurrency", None, 100)

    await admitted(books, count)

    sizes = "SELECT array_agg(n) FROM (SELECT count(*) n FROM holds GROUP BY xmin::text) b"
    assert await books.connection.fetchval(sizes) == batches


async def test_calls_without_a_caller_are_settled_in_large_batches(books):
    """Settlements of calls that have ended, as after an outage, are written in large batches,
    because others wait behind them."""
    holds = await admitted(books, 60)
    restarted = Ledger(books.database, uuid7())

    await asyncio.gather(*(restarted.settle(entry_of(hold, 1, 1)) for hold in holds))

    largest = "SELECT max(n) FROM (SELECT count(*) n FROM ledger_entries GROUP BY xmin::text) b"
    assert await books.connection.fetchval(largest) == 20


@pytest.mark.parametrize(
    ("unit", "period"),
    [("concurrency", None), ("usd", "month"), ("tokens", "hour"), ("tokens", "day")],
)
@pytest.mark.parametrize("is_settled_first", [True, False])
async def test_a_settlement_makes_room_for_an_admission_beside_it(
    books, unit, period, is_settled_first
):
    """A settlement and an admission share a transaction, and the settlement comes first in it, in
    whatever order they were requested."""
    limit = await books.limit(unit, period, 10 if unit != "concurrency" else 1)
    (first,) = await admitted(books, nanos=10, tokens=10)
    with pytest.raises(RateLimited):
        await books.ledger.admit(books.hold(4, 4))

    second = books.hold(4, 4)
    admitting, settling = books.ledger.admit(second), books.settle(first, 6, 6)
    if is_settled_first:
        _, admission = await asyncio.gather(settling, admitting)
    else:
        admission, _ = await asyncio.gather(admitting, settling)

    assert (admission.bound_nanos, admission.bound_tokens) == (4, 4)
    assert await books.connection.fetchval(SAME_TRANSACTION) == 1
    await books.audit()
    await books.settle(second, 4, 4)
    states = {"usd": ("0.00000001", "0.00"), "tokens": (10, 0), "concurrency": (0, 0)}
    assert await books.state(limit) == states[unit]


async def test_a_refusal_does_not_affect_the_settlement_beside_it(books):
    """A settlement is written although the admission in its batch is refused."""
    limit = await books.limit("usd", "month", 10)
    (first,) = await admitted(books, nanos=10)

    outcomes = await asyncio.gather(
        books.ledger.admit(books.hold(5)),
        books.ledger.settle(entry_of(first, 6, 1)),
        return_exceptions=True,
    )

    assert outcomes[0].limit["used"] == "0.000000006"
    assert await books.state(limit) == ("0.000000006", "0.00")


async def test_a_bad_entry_blocks_no_admission(books):
    """An entry that the database rejects blocks no other entry and no admission: the admissions are
    retried without it, the entries one by one."""
    limit = await books.limit("usd", "month", 100)
    old = await admitted(books, 5)
    new = [books.hold() for _ in range(5)]

    await asyncio.gather(
        *(books.settle(hold, status=10**9 if n == 2 else 200) for n, hold in enumerate(old)),
        *map(books.ledger.admit, new),
    )

    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 4
    assert await books.state(limit) == ("0.000000004", "0.000000006")
    await asyncio.gather(*map(books.settle, [old[2], *new]))
    assert await books.state(limit) == ("0.00000001", "0.00")


async def test_a_bad_hold_blocks_no_settlement(books):
    """A hold that the database rejects blocks no settlement and no other hold."""
    limit = await books.limit("usd", "month", 100)
    old = await admitted(books, 3)
    new = [books.hold(tokens=-1 if n == 1 else 1) for n in range(3)]

    outcomes = await asyncio.gather(
        *map(books.settle, old), *map(books.ledger.admit, new), return_exceptions=True
    )

    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False] * 4 + [True, False]
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 3
    assert await books.state(limit) == ("0.000000003", "0.000000002")
    await asyncio.gather(books.settle(new[0]), books.settle(new[2]))


async def test_without_a_database_admissions_fail_and_settlements_wait(
    books, proxy, proxied_address
):
    """Without a database the admission of a batch fails at once, and its settlement is written when
    the database is back."""
    limit = await books.limit("concurrency", None, 10)
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.2)
    async with open_pool(settings, proxied_address) as pool:
        away = Ledger(pool, uuid7())
        old, new = books.hold(), books.hold()
        await away.admit(old)
        proxy.refuse()
        proxy.reset()
        settling = away.settle(entry_of(old, 1, 1))
        with pytest.raises(Unavailable):
            async with asyncio.timeout(3):
                await away.admit(new)
        assert not settling.done()
        with pytest.raises(Unavailable):
            await away.admit(books.hold())
        await proxy.restore()
        async with asyncio.timeout(10):
            await settling
            await away.admit(books.hold())
        await away.flush(1)

    assert await books.state(limit) == (0, 1)
    await books.connection.execute("UPDATE holds SET lease_until = now() - interval '1 s'")


async def test_admissions_continue_while_settlements_fail(books):
    """When the ledger alone rejects entries, admissions fail once and then run alone; the
    settlements are written later."""
    await books.limit("usd", "month", 1000)
    old = await admitted(books, 3)
    source = await books.connection.fetchval(
        "SELECT pg_get_functiondef('public.settle_and_admit'::regproc)"
    )
    before = "ending := public.end_calls_v2"
    assert before in source
    await books.connection.execute(
        source.replace(before, f"RAISE EXCEPTION 'full' USING ERRCODE = '53100'; {before}")
    )
    settling = [books.ledger.settle(entry_of(hold, 1, 1)) for hold in old[:2]]
    await asyncio.sleep(0.1)

    for _ in range(5):
        await books.ledger.admit(books.hold())
    settling.append(books.ledger.settle(entry_of(old[2], 1, 1)))
    await books.ledger.admit(books.hold())
    assert not any(future.done() for future in settling)

    await books.connection.execute(source)
    async with asyncio.timeout(10):
        await asyncio.gather(*settling)
    assert await books.connection.fetchval("SELECT count(*) FROM ledger_entries") == 3
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 6


async def test_concurrent_replicas_do_not_deadlock(books):
    """Replicas that settle and admit in one transaction lock all limits together in order, so they
    never deadlock."""
    for model in ("m", "other"):
        await books.limit("usd", "month", 10**6, model=model)
    ledgers = [books.ledger, Ledger(books.database, uuid7())]

    async def alternate(number):
        mine = ledgers[number % 2]
        for turn in range(20):
            hold = books.hold(3, model=("m", "other")[(number // 2 + turn) % 2])
            await mine.admit(hold)
            await mine.settle(entry_of(hold, 3, 1))

    await asyncio.gather(*map(alternate, range(12)))

    total = await books.connection.fetchval("SELECT sum(used) FROM limits")
    assert total == 12 * 20 * 3
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await books.connection.fetchval(deadlocks) == 0


async def test_each_admission_times_out_at_its_own_deadline(monkeypatch):
    """One timer serves all admissions without ending a later one early or forgetting it."""
    loop = asyncio.get_running_loop()
    real_time, skipped_s = loop.time, 0
    monkeypatch.setattr(loop, "time", lambda: real_time() + skipped_s)
    writing = asyncio.Event()

    class SilentWriter:
        max_connections = 1

        def connect(self):
            return self

        async def write(self, *_):
            writing.set()
            await asyncio.Event().wait()

        async def give_back(self):
            pass

    hold = Hold(
        organization_id=uuid7(),
        id=uuid7(),
        api_key_id=uuid7(),
        request_id="r",
        endpoint="/chat/completions",
        model="m",
        is_stream=False,
        bound_nanos=1,
        bound_tokens=1,
    )
    batches = Batches(SilentWriter(), {}, max_admitting=10, admit_s=1000)
    waiting = []
    for _ in range(3):
        waiting.append(batches.admit(hold))
        skipped_s += 300
    await writing.wait()

    timed_out = []
    for _ in range(3):
        skipped_s += 300
        # The timer is due; the event loop runs what is due before it reads the clock again.
        await asyncio.sleep(0.01)
        timed_out.append(
            [isinstance(future.exception(), TimeoutError) for future in waiting if future.done()]
        )
    batches.close()

    assert timed_out == [[True], [True] * 2, [True] * 3]


async def test_an_admission_decided_after_its_deadline_is_undone(books, monkeypatch):
    """An admission that nobody waits for any more leaves no hold, whatever the database decides."""
    monkeypatch.setattr(ledger.calls, "ADMIT_TIMEOUT_S", 0.5)
    limit = await books.limit("concurrency", None, 100)
    impatient = Ledger(books.database, uuid7())
    await impatient.admit(books.hold())

    async with books.connection.transaction():
        await books.connection.execute("SELECT FROM limits FOR UPDATE")
        waiting = [impatient.admit(books.hold()) for _ in range(4)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in outcomes] == [Unavailable] * 4

    undone = "SELECT count(*) = 4 FROM ledger_entries WHERE outcome = 'not_sent'"
    await books.wait_for(undone)
    assert await books.connection.fetchval("SELECT count(*) FROM holds") == 1
    assert await books.state(limit) == (0, 1)
    assert await impatient.flush(1) == 0
