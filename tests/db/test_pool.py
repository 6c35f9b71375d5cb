"""The pool: connections die behind its back, and its users do not notice."""

import asyncio
import time

import asyncpg
import pytest
from support import make_settings

from service.database import connections
from service.errors import NotFound, Unavailable
from service.ids import uuid7

BACKEND = "SELECT pg_backend_pid()"


@pytest.fixture
async def pool(proxied_address):
    """A pool behind a proxy that breaks connections."""
    settings = make_settings(proxied_address, "http://venice.invalid")
    async with connections.open_pool(settings, proxied_address) as pool:
        yield pool


async def all_backends(pool):
    """The backends of all connections: as many sleepers as there are connections."""
    return set(
        await asyncio.gather(
            *(pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.05)") for _ in range(5))
        )
    )


async def terminate_all(server, address):
    """End every backend of the database from outside of the pool."""
    connection = await asyncpg.connect(**connections.connect_arguments(server.address))
    try:
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            address.database,
        )
    finally:
        await connection.close()


async def test_five_connections(pool):
    """Five statements at once have a connection each, and a sixth waits for one of them."""
    assert len(await all_backends(pool)) == 5


@pytest.mark.parametrize("idle_s", [0, 1.05])
async def test_backends_are_terminated(server, proxied_address, pool, idle_s):
    """Backends that are terminated behind the pool's back: none of 50 statements fails, whether
    the connection was trusted because it had just answered or was validated."""
    repeats = 50 if not idle_s else 5
    for _ in range(repeats):
        await pool.fetchval(BACKEND)
        await asyncio.sleep(idle_s)
        await terminate_all(server, proxied_address)
        assert await pool.fetchval("SELECT 7") == 7


async def test_transactions_survive_termination(server, proxied_address, pool):
    """A transaction begins on a connection that has just answered: none of 20 fails."""
    for _ in range(20):
        await pool.fetchval(BACKEND)
        await terminate_all(server, proxied_address)
        async with pool.transaction() as conn:
            assert await conn.fetchval("SELECT 7") == 7


async def test_connections_are_reset(proxy, pool):
    """TCP resets: none of 50 statements fails."""
    for _ in range(50):
        await pool.fetchval(BACKEND)
        proxy.reset()
        assert await pool.fetchval("SELECT 7") == 7


async def test_connections_are_half_open(proxy, pool):
    """A peer that vanished costs one waiting for a ping's timeout, and its siblings nothing."""
    await all_backends(pool)
    await asyncio.sleep(connections.TRUSTED_IDLE_S + 0.1)
    proxy.blackhole(new=False)

    started = time.monotonic()
    assert await pool.fetchval("SELECT 7") == 7
    assert time.monotonic() - started < connections.PING_TIMEOUT_S + 1

    started = time.monotonic()
    assert len(await all_backends(pool)) == 5
    assert time.monotonic() - started < 1


async def test_everything_is_half_open(proxy, pool):
    """When new connections hang too, a statement ends within its deadline, and later ones work."""
    await all_backends(pool)
    await asyncio.sleep(connections.TRUSTED_IDLE_S + 0.1)
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
    """A restart of the server under load: every statement waits it out."""
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
    async with connections.open_pool(settings, own_server.address) as pool:
        asking = [asyncio.create_task(ask(pool)) for _ in range(10)]
        await asyncio.sleep(0.3)
        before = done
        await asyncio.to_thread(own_server.restart)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*asking)

    assert failures == []
    assert done > before > 0


async def test_a_connection_that_died_unseen_is_given_back_quietly(own_server):
    """Its statement was answered: that it breaks as it is closed is nothing to its user."""
    settings = make_settings(own_server.address, "http://venice.invalid")
    async with connections.open_pool(settings, own_server.address) as pool:
        async with pool._connection(certain=False) as connection:
            assert await connection.fetchval("SELECT 7") == 7
            await pool._pool.expire_connections()
            # The loop does not run meanwhile, so it does not hear of it.
            own_server.kill()
        own_server.start()
        assert await pool.fetchval("SELECT 7") == 7


async def test_age_retires_a_connection(proxied_address):
    """A connection that is too old is replaced before its next use, although min equals max."""
    settings = make_settings(proxied_address, "http://x", database_max_age_s=0.3)
    async with connections.open_pool(settings, proxied_address) as pool:
        first = await all_backends(pool)
        await asyncio.sleep(0.4)

        assert not first & await all_backends(pool)


async def test_idleness_retires_a_connection(proxied_address):
    """A connection that was idle for too long is replaced before its next use."""
    settings = make_settings(proxied_address, "http://x", database_max_inactive_s=0.3)
    async with connections.open_pool(settings, proxied_address) as pool:
        first = await all_backends(pool)
        await asyncio.sleep(0.4)

        assert not first & await all_backends(pool)


async def test_an_exhausted_pool_is_a_503(proxied_address):
    """Who finds no connection within the deadline is told to come back; then it works again."""
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.2)
    async with connections.open_pool(settings, proxied_address) as pool:
        busy = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.6)")) for _ in range(5)]
        await asyncio.sleep(0.05)

        with pytest.raises(Unavailable):
            await pool.fetchval("SELECT 7")
        await asyncio.gather(*busy)
        assert await pool.fetchval("SELECT 7") == 7


async def test_a_kept_connection_stays_while_others_are_there(proxied_address):
    """Statements one after the other have one connection; when the pool has no other it goes back,
    and who waits for one gets it."""
    settings = make_settings(proxied_address, "http://x", database_acquire_timeout_s=0.5)
    async with connections.open_pool(settings, proxied_address) as pool:
        kept = pool.kept()
        backends = {(await kept.fetch(BACKEND))[0][0] for _ in range(20)}
        assert len(backends) == 1
        assert pool.connections == (5, 4)

        busy = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.8)")) for _ in range(4)]
        await asyncio.sleep(0.05)
        asking = asyncio.create_task(pool.fetchval("SELECT 7"))
        for _ in range(20):
            await kept.fetch(BACKEND)
        assert await asking == 7
        await pool.ping(0.5)
        await asyncio.gather(*busy)

        await kept.fetch(BACKEND)
        await kept.give_back()
        assert pool.connections == (5, 5)


async def test_a_kept_connection_is_replaced_when_it_is_lost(server, proxy, proxied_address, pool):
    """Terminated, reset, or suspect since a sibling was lost: no statement fails."""
    kept = pool.kept()
    for _ in range(10):
        await kept.fetch(BACKEND)
        await terminate_all(server, proxied_address)
        assert (await kept.fetch("SELECT 7"))[0][0] == 7
        proxy.reset()
        assert (await kept.fetch("SELECT 7"))[0][0] == 7

    first = (await kept.fetch(BACKEND))[0][0]
    with pytest.raises(asyncpg.DivisionByZeroError):
        await kept.fetch("SELECT 1 / 0")
    pool.losses += 1
    await pool._pool.expire_connections()
    assert (await kept.fetch(BACKEND))[0][0] != first
    await kept.give_back()


async def test_a_kept_connection_grows_too_old(proxied_address):
    """As any other does, however busy it is."""
    settings = make_settings(proxied_address, "http://x", database_max_age_s=0.3)
    async with connections.open_pool(settings, proxied_address) as pool:
        kept = pool.kept()
        first = await kept.fetch(BACKEND)
        await asyncio.sleep(0.4)
        assert await kept.fetch(BACKEND) != first
        await kept.give_back()


async def test_a_statement_has_a_deadline(proxied_address):
    """A statement that takes too long is given up by the server, and the connection lives on."""
    settings = make_settings(proxied_address, "http://x", database_command_timeout_s=2.2)
    async with connections.open_pool(settings, proxied_address) as pool:
        with pytest.raises(Unavailable):
            await pool.fetchval("SELECT pg_sleep(5)")
        assert await pool.fetchval("SELECT 7") == 7


async def test_a_failed_transaction_leaves_nothing(pool):
    """What raises inside a transaction is rolled back; the connection is clean."""
    await pool.fetchval("CREATE TABLE public.scratch (id int)")

    with pytest.raises(RuntimeError):
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO public.scratch VALUES (1)")
            raise RuntimeError

    assert await pool.fetchval("SELECT count(*) FROM public.scratch") == 0


async def test_a_cancellation_storm_leaks_nothing(pool):
    """A thousand users, most of them cancelled at random points: five connections work after."""
    tasks = [asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.01)")) for _ in range(1000)]
    for number, task in enumerate(tasks):
        if number % 3:
            asyncio.get_running_loop().call_later(number / 4000, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(result) for result in results} <= {str, type(None), asyncio.CancelledError}
    assert len(await all_backends(pool)) == 5


async def test_constraints_have_meanings(proxied_address, pool):
    """A violated constraint that is known is an error of ours; one that is not is a bug."""
    await pool.fetchval(
        "CREATE TABLE public.a (id int CONSTRAINT api_keys_organization_id_fkey CHECK (id > 0))"
    )
    with pytest.raises(NotFound):
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO public.a VALUES (0)")
    await pool.fetchval("CREATE TABLE public.b (id int CONSTRAINT b_check CHECK (id > 0))")
    with pytest.raises(asyncpg.CheckViolationError):
        async with pool.transaction() as conn:
            await conn.execute("INSERT INTO public.b VALUES (0)")


async def test_closing_has_a_deadline(proxy, proxied_address):
    """Closing does not wait for a dead peer."""
    settings = make_settings(proxied_address, "http://x")
    async with connections.open_pool(settings, proxied_address) as pool:
        await all_backends(pool)
        proxy.blackhole()
        started = time.monotonic()

    assert time.monotonic() - started < connections.CLOSE_TIMEOUT_S + 1


async def test_listening_comes_back(proxy, proxied_address):
    """The listen connection hears what is said, and after a loss says that it missed something."""
    heard = []
    listening = asyncio.create_task(connections.listen(proxied_address, "channel", heard.append))
    settings = make_settings(proxied_address, "http://x")

    async def until(count):
        async with asyncio.timeout(5):
            while len(heard) < count:
                await asyncio.sleep(0.01)

    async with connections.open_pool(settings, proxied_address) as pool:
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
    """UUIDv7: version and variant, and the order of their making to a fraction of a millisecond."""
    ids = []
    for _ in range(200):
        ids.append(uuid7())
        time.sleep(0.00001)

    assert all((made.version, made.variant) == (7, "specified in RFC 4122") for made in ids)
    assert ids == sorted(ids)
    assert abs((ids[0].int >> 80) - time.time() * 1000) < 60_000
