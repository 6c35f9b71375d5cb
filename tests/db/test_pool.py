"""The pool: connections fail behind its back, and its users do not notice."""

import asyncio
import time

import asyncpg
import pytest
from support import make_settings

from service.database.connections import PING_TIMEOUT_S, connect_arguments
from service.database.database import TRUSTED_IDLE_S
from service.database.listening import listen
from service.database.pool import CLOSE_TIMEOUT_S, open_pool
from service.errors import NotFound, Unavailable
from service.ids import uuid7

BACKEND = "SELECT pg_backend_pid()"


@pytest.fixture
async def pool(proxied_address):
    """A pool behind a proxy that breaks connections."""
    settings = make_settings(proxied_address, "http://venice.invalid")
    async with open_pool(settings, proxied_address) as pool:
        yield pool


async def all_backends(pool):
    """Return the backends of all connections, found with one sleeping statement on each."""
    return set(
        await asyncio.gather(
            *(pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.05)") for _ in range(5))
        )
    )


async def terminate_all(server, address):
    """Terminate every backend of the database from outside the pool."""
    connection = await asyncpg.connect(**connect_arguments(server.address))
    try:
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            address.database,
        )
    finally:
        await connection.close()


async def test_five_connections(pool):
    """Five concurrent statements have a connection each, and a sixth waits for one of them."""
    assert len(await all_backends(pool)) == 5


@pytest.mark.parametrize("idle_s", [0, 1.05])
async def test_backends_are_terminated(server, proxied_address, pool, idle_s):
    """None of 50 statements fails after their backends were terminated, whether the connection was
    trusted as recent or was validated."""
    repeats = 50 if not idle_s else 5
    for _ in range(repeats):
        await pool.fetchval(BACKEND)
        await asyncio.sleep(idle_s)
        await terminate_all(server, proxied_address)
        assert await pool.fetchval("SELECT 7") == 7


async def test_transactions_survive_termination(server, proxied_address, pool):
    """None of 20 transactions fails that begin on a connection whose backend was terminated."""
    for _ in range(20):
        await pool.fetchval(BACKEND)
        await terminate_all(server, proxied_address)
        async with pool.transaction() as conn:
            assert await conn.fetchval("SELECT 7") == 7


async def test_connections_are_reset(proxy, pool):
    """None of 50 statements fails after TCP resets."""
    for _ in range(50):
        await pool.fetchval(BACKEND)
        proxy.reset()
        assert await pool.fetchval("SELECT 7") == 7


async def test_connections_are_half_open(proxy, pool):
    """A peer that vanished delays one statement by a ping's timeout, and the other connections not
    at all."""
    await all_backends(pool)
    await asyncio.sleep(TRUSTED_IDLE_S + 0.1)
    proxy.blackhole(new=False)

    started = time.monotonic()
    assert await pool.fetchval("SELECT 7") == 7
    assert time.monotonic() - started < PING_TIMEOUT_S + 1

    started = time.monotonic()
    assert len(await all_backends(pool)) == 5
    assert time.monotonic() - started < 1


async def test_everything_is_half_open(proxy, pool):
    """When new connections hang too, a statement ends within its deadline, and later ones work."""
    await all_backends(pool)
    await asyncio.sleep(TRUSTED_IDLE_S + 0.1)
    proxy.blackhole()

    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await pool.fetchval("SELECT 7")
    assert time.monotonic() - started < 7
    assert caught.value.retry_after_s

    await proxy.restore()
    async with asyncio.timeout(10):
        assert await pool.fetchval("SELECT 7") == 7


async def test_the_server_restarts_under_load(own_server):
    """Every statement under load waits out a restart of the server."""
    failures, done = [], 0
    stop = asyncio.Event()

    async def ask(pool):
        nonlocal done
        while not stop.is_set():
            try:
                await pool.fetchval("SELECT 7")
                done += 1
            except Unavailable as error:
                failures.append(error)
            await asyncio.sleep(0.01)

    settings = make_settings(own_server.address, "http://venice.invalid")
    async with open_pool(settings, own_server.address) as pool:
        asking = [asyncio.create_task(ask(pool)) for _ in range(10)]
        async with asyncio.timeout(20):
            while done < 10:
                await asyncio.sleep(0.1)
        before = done
        await asyncio.to_thread(own_server.restart)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*asking)

    assert failures == []
    assert done > before > 0


async def test_a_connection_that_dies_after_its_statement_raises_nothing(own_server):
    """A connection whose statement was answered and that breaks when it is released raises
    nothing."""
    settings = make_settings(own_server.address, "http://venice.invalid")
    async with open_pool(settings, own_server.address) as pool:
        async with pool._connection(certain=False) as connection:
            assert await connection.fetchval("SELECT 7") == 7
            await pool._pool.expire_connections()
            # The event loop does not run meanwhile, so it does not notice the loss.
            own_server.kill()
        own_server.start()
        assert await pool.fetchval("SELECT 7") == 7


async def test_age_retires_a_connection(proxied_address):
    """A connection that is too old is replaced before its next use, although min equals max."""
    settings = make_settings(proxied_address, "http://x", database_max_age_s=0.3)
    async with open_pool(settings, proxied_address) as pool:
        first = await all_backends(pool)
        await asyncio.sleep(0.4)

        assert not first & await all_backends(pool)


async def test_idleness_retires_a_connection(proxied_address):
    """A connection that was idle for too long is replaced before its next use."""
    settings = make_settings(proxied_address, "http://x", database_max_inactive_s=0.3)
    async with open_pool(settings, proxied_address) as pool:
        first = await all_backends(pool)
        await asyncio.sleep(0.4)

        assert not first & await all_backends(pool)


async def test_an_exhausted_pool_is_a_503(proxied_address):
    """A user that gets no connection within the deadline gets a 503, and later statements work."""
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.2)
    async with open_pool(settings, proxied_address) as pool:
        busy = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.6)")) for _ in range(5)]
        await asyncio.sleep(0.05)

        with pytest.raises(Unavailable):
            await pool.fetchval("SELECT 7")
        await asyncio.gather(*busy)
        assert await pool.fetchval("SELECT 7") == 7


async def test_a_sticky_connection_is_released_when_others_wait(proxied_address):
    """Consecutive statements share a connection until the pool has no other, when a waiting user
    gets it."""
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.5)
    async with open_pool(settings, proxied_address) as pool:
        sticky = pool.sticky()
        backends = {(await sticky.fetch(BACKEND))[0][0] for _ in range(20)}
        assert len(backends) == 1
        assert pool.connections == (5, 4)

        busy = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.8)")) for _ in range(4)]
        await asyncio.sleep(0.05)
        asking = asyncio.create_task(pool.fetchval("SELECT 7"))
        for _ in range(20):
            await sticky.fetch(BACKEND)
        assert await asking == 7
        await pool.ping(0.5)
        await asyncio.gather(*busy)

        await sticky.fetch(BACKEND)
        await sticky.give_back()
        assert pool.connections == (5, 5)


async def test_a_lost_sticky_connection_is_replaced(server, proxy, proxied_address, pool):
    """No statement fails when the sticky connection is terminated, reset, or suspect because
    another one was lost."""
    sticky = pool.sticky()
    for _ in range(10):
        await sticky.fetch(BACKEND)
        await terminate_all(server, proxied_address)
        assert (await sticky.fetch("SELECT 7"))[0][0] == 7
        proxy.reset()
        assert (await sticky.fetch("SELECT 7"))[0][0] == 7

    with pytest.raises(asyncpg.DivisionByZeroError):
        await sticky.fetch("SELECT 1 / 0")
    first = (await sticky.fetch(BACKEND))[0][0]
    pool.losses += 1
    await pool._pool.expire_connections()
    assert (await sticky.fetch(BACKEND))[0][0] != first
    await sticky.give_back()


@pytest.mark.parametrize("is_sticky", [True, False])
async def test_a_statement_that_gives_way_is_repeated(pool, is_sticky):
    """A statement that the server rolls back in favour of others, as in a deadlock, runs again: so
    often at most as one whose connection is lost."""
    await pool.fetch("CREATE SEQUENCE runs")
    give_way = """
        CREATE FUNCTION give_way(times integer) RETURNS integer LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('runs') <= times THEN
                RAISE EXCEPTION 'deadlock' USING ERRCODE = 'deadlock_detected';
            END IF;
            RETURN times;
        END $$
    """
    await pool.fetch(give_way)
    user = pool.sticky() if is_sticky else pool

    assert (await user.fetch("SELECT give_way(2)"))[0]["give_way"] == 2

    with pytest.raises(Unavailable):
        await user.fetch("SELECT give_way(1000)")
    assert await pool.fetchval("SELECT last_value FROM runs") == (7 if is_sticky else 6)
    assert pool.losses == 0
    if is_sticky:
        await user.give_back()
    assert pool.in_use == 0


async def test_an_old_sticky_connection_is_replaced(proxied_address):
    """A sticky connection that is too old is replaced, however busy it is."""
    settings = make_settings(proxied_address, "http://x", database_max_age_s=0.3)
    async with open_pool(settings, proxied_address) as pool:
        sticky = pool.sticky()
        first = await sticky.fetch(BACKEND)
        await asyncio.sleep(0.4)
        assert await sticky.fetch(BACKEND) != first
        await sticky.give_back()


async def test_a_statement_has_a_deadline(proxied_address):
    """The server cancels a statement that takes too long, and the connection lives on."""
    settings = make_settings(proxied_address, "http://x", database_command_timeout_s=2.2)
    async with open_pool(settings, proxied_address) as pool:
        with pytest.raises(Unavailable):
            await pool.fetchval("SELECT pg_sleep(5)")
        assert await pool.fetchval("SELECT 7") == 7


async def test_a_failed_transaction_leaves_nothing(pool):
    """A transaction that raises is rolled back, and its connection is clean."""
    await pool.fetchval("CREATE TABLE public.scratch (id int)")

    with pytest.raises(RuntimeError):
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO public.scratch VALUES (1)")
            raise RuntimeError

    assert await pool.fetchval("SELECT count(*) FROM public.scratch") == 0


async def test_a_cancellation_storm_leaks_nothing(pool):
    """After a thousand users, most of them cancelled at random points, five connections work."""
    tasks = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.01)")) for _ in range(1000)]
    for number, task in enumerate(tasks):
        if number % 3:
            asyncio.get_running_loop().call_later(number / 4000, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} <= {str, type(None), asyncio.CancelledError}
    assert len(await all_backends(pool)) == 5


async def test_constraints_are_translated(proxied_address, pool):
    """A violated known constraint is an error of the service, also where a part of a divided table
    adds to its name; an unknown one is a bug."""
    for table, end in (("a", ""), ("c", "_102008")):
        await pool.fetchval(
            f"CREATE TABLE public.{table}"
            f" (id int CONSTRAINT api_keys_organization_id_fkey{end} CHECK (id > 0))"
        )
        with pytest.raises(NotFound):
            async with pool.transaction() as conn:
                await conn.execute(f"INSERT INTO public.{table} VALUES (0)")
    await pool.fetchval("CREATE TABLE public.b (id int CONSTRAINT b_check CHECK (id > 0))")
    with pytest.raises(asyncpg.CheckViolationError):
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO public.b VALUES (0)")


async def test_closing_has_a_deadline(proxy, proxied_address):
    """Closing does not wait for a dead peer."""
    settings = make_settings(proxied_address, "http://x")
    async with open_pool(settings, proxied_address) as pool:
        await all_backends(pool)
        proxy.blackhole()
        started = time.monotonic()

    assert time.monotonic() - started < CLOSE_TIMEOUT_S + 1


async def test_listening_recovers(proxy, proxied_address):
    """The listening connection receives notifications, and after a loss reports that it may have
    missed some."""
    heard = []
    listening = asyncio.create_task(listen(proxied_address, "channel", heard.append))
    settings = make_settings(proxied_address, "http://x")

    async def until(count):
        async with asyncio.timeout(5):
            while len(heard) < count:
                await asyncio.sleep(0.01)

    async with open_pool(settings, proxied_address) as pool:
        await until(1)
        await pool.fetchval("SELECT pg_notify('channel', 'one')")
        await until(2)
        proxy.reset()
        await until(3)
        await pool.fetchval("SELECT pg_notify('channel', 'two')")
        await until(4)
    listening.cancel()

    assert heard == ["", "one", "", "two"]


def test_ids_are_ordered():
    """UUIDv7 ids have their version and variant, and are ordered to a fraction of a millisecond."""
    ids = []
    for _ in range(200):
        ids.append(uuid7())
        time.sleep(0.00001)

    assert all((made.version, made.variant) == (7, "specified in RFC 4122") for made in ids)
    assert ids == sorted(ids)
    assert abs((ids[0].int >> 80) - time.time() * 1000) < 60_000
