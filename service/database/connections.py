"""The connection pool: five connections that are alive when you get them.

asyncpg 0.32 takes ``min_size`` for a floor and so never retires a connection when min equals max,
and it hands out connections whose death it has not read yet. So age, idle time and validation are
kept here: a connection is replaced when it is too old or was idle too long, asked ``SELECT 1`` when
it was idle for a moment, and terminated (not closed, which would wait for a dead peer) together
with its siblings when it does not answer. Every wait has a deadline.
"""

import asyncio
import contextlib
import random
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import asyncpg
import structlog

from service.database.errors import (
    BUSY,
    HOPELESS,
    LOST,
    POOLED,
    POOLER_HINT,
    ConnectionLost,
    behind_pooler,
    translated,
)
from service.errors import StartupError
from service.settings import Settings
from service.settings.address import DatabaseAddress

log = structlog.get_logger()
T = TypeVar("T")

PING: Final = "SELECT 1"
IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
NOW: Final = "SELECT clock_timestamp()"
LOCK_TIMEOUT: Final = "SELECT current_setting('lock_timeout')"
SERVER_PID: Final = "SELECT pg_backend_pid()"
PING_TIMEOUT_S: Final = 1.0
TRUSTED_IDLE_S: Final = 1.0
"""A connection that answered this recently is not asked again."""
CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 1.0
STATEMENT_TIMEOUT_MARGIN_S: Final = 2.0
"""The server gives a statement up this much earlier than the client, so that its word arrives."""
KEEPALIVE_IDLE_S: Final = 30
TCP_USER_TIMEOUT_MS: Final = 15_000
LISTEN_CHECK_S: Final = 20.0
MOST_READERS: Final = 2
READ_TIMEOUT_S: Final = 30.0
WAITS_MS: Final = {"lock_timeout": 3000, "idle_in_transaction_session_timeout": 1000}
"""A process that stops in a transaction loses its locks before others give up waiting for them."""
SET_WAITS: Final = "".join(f"SET LOCAL {name} = {ms};" for name, ms in WAITS_MS.items())
REPEATS: Final = 2
"""A statement whose connection was lost runs this often again at most."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows its age and when it last answered. Times are ``time.monotonic``."""

    born_at: float
    lives_s: float
    answered_at: float

    def start_life(self, max_age_s: float) -> None:
        """Called once, when the connection is new. The jitter keeps siblings from ageing alike."""
        self.born_at = self.answered_at = time.monotonic()
        self.lives_s = max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - not a secret

    def has_answered(self) -> None:
        self.answered_at = time.monotonic()

    def is_too_old(self) -> bool:
        return time.monotonic() - self.born_at > self.lives_s


def connect_arguments(address: DatabaseAddress, *, through_pooler: bool = False) -> dict[str, Any]:
    """The keyword arguments of ``asyncpg.connect`` for an address."""
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "database": address.database,
        "ssl": _tls(address),
        "timeout": CONNECT_TIMEOUT_S,
        # A pooler in transaction mode gives each transaction another server connection.
        "statement_cache_size": 0 if through_pooler else 256,
    }


def _tls(address: DatabaseAddress) -> ssl.SSLContext | str:
    if address.sslmode not in ("verify-ca", "verify-full"):
        return address.sslmode
    context = ssl.create_default_context(cafile=address.sslrootcert)
    context.check_hostname = address.sslmode == "verify-full"
    return context


def _server_settings(settings: Settings, *, through_pooler: bool) -> dict[str, str]:
    if through_pooler:
        return {"application_name": "rialto"}
    statement_s = max(0.1, settings.database_command_timeout_s - STATEMENT_TIMEOUT_MARGIN_S)
    return {
        "application_name": "rialto",
        "statement_timeout": f"{int(statement_s * 1000)}",
        **{name: str(milliseconds) for name, milliseconds in WAITS_MS.items()},
        "tcp_keepalives_idle": f"{KEEPALIVE_IDLE_S}",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "jit": "off",
    }


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Let the kernel find a dead peer. asyncpg has no public way to the socket."""
    transport = connection._transport  # noqa: SLF001
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT_MS),
    ):
        if (option := getattr(socket, name, None)) is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)


class Database:
    """The pool. ``fetch`` and its kin repeat a statement when the connection is lost under it, so
    they are for statements that may run twice: reads, and writes keyed by an id of the client's.
    Everything else goes through :meth:`transaction`, on a connection that has just answered.
    """

    def __init__(self, pool: Any, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._readers = asyncio.Semaphore(MOST_READERS)
        self.succeeded_at = time.monotonic()
        self.losses = 0
        """How often a connection was lost under a statement, which the server may yet run."""

    @property
    def connections(self) -> tuple[int, int]:
        """How many the pool has, and how many of them are idle."""
        return self._pool.get_size(), self._pool.get_idle_size()

    @property
    def has_idle(self) -> bool:
        """Whether anybody could take a connection now."""
        return bool(self._pool.get_idle_size())

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """All rows."""
        return await self._repeated(lambda connection: connection.fetch(sql, *arguments))

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        """The first row, or None."""
        return await self._repeated(lambda connection: connection.fetchrow(sql, *arguments))

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._repeated(lambda connection: connection.fetchval(sql, *arguments))

    async def now(self) -> datetime:
        """The database's time, which is the only one that the books know: processes' clocks may
        differ from it and from each other."""
        now: datetime = await self.fetchval(NOW)
        return now

    async def ping(self, timeout: float, *, must_write: bool = False) -> None:
        """``SELECT 1`` within ``timeout`` seconds; ``must_write`` also asks for a primary.

        :raises Exception: the driver's own, untranslated: health reports its class.
        """
        deadline = time.monotonic() + timeout
        async with (
            asyncio.timeout(timeout),
            self._connection(certain=False, timeout=timeout) as connection,
        ):
            # A little less than what is left: the driver's own timeout ends a connection to a dead
            # peer at once, a cancellation waits for the peer.
            left_s = deadline - time.monotonic()
            await connection.fetchval(PING, timeout=left_s * (0.4 if must_write else 0.9))
            if must_write and await connection.fetchval(IS_READ_ONLY, timeout=left_s * 0.5):
                raise asyncpg.ReadOnlySQLTransactionError

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A transaction on a connection that answered just now.

        :raises Unavailable: when the database is gone or too slow; nothing is committed then,
            unless it went away during the commit itself.
        """
        with translated():
            async with self._connection(certain=True) as connection, connection.transaction():
                if self._settings.database_unpooled is not None:
                    # A pooler takes no settings of a connection.
                    await connection.execute(SET_WAITS)
                yield connection

    @contextlib.asynccontextmanager
    async def reading(self, timeout: float = READ_TIMEOUT_S) -> AsyncIterator[Any]:
        """A transaction that only reads, all of it as of one instant, for reports and proofs: they
        may take longer than other statements, and at most two of them run at a time, so that calls
        always find a connection.

        :raises Unavailable: when the database is gone, or nothing is free within the deadline.
        """
        with translated():
            async with asyncio.timeout(self._settings.database_acquire_timeout_s):
                await self._readers.acquire()
            try:
                async with (
                    self._connection(certain=True) as connection,
                    connection.transaction(isolation="repeatable_read", readonly=True),
                ):
                    await connection.execute(
                        f"SET LOCAL statement_timeout = {round(timeout * 1000)};"
                        f" SET LOCAL idle_in_transaction_session_timeout = {round(timeout * 1000)};"
                        " SET LOCAL timezone = 'UTC'"
                    )
                    yield _Reader(connection, timeout)
            finally:
                self._readers.release()

    def kept(self) -> "Kept":
        """For who has one statement after the other."""
        return Kept(self, lambda: self._connection(certain=False), self._succeeded)

    async def _repeated(self, run: Callable[[Any], Awaitable[T]]) -> T:
        with translated():
            for _ in range(REPEATS):
                with contextlib.suppress(ConnectionLost):
                    async with self._connection(certain=False) as connection:
                        return await run(connection)
            async with self._connection(certain=True) as connection:
                return await run(connection)

    @contextlib.asynccontextmanager
    async def _connection(
        self, *, certain: bool, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """:raises ConnectionLost: when it was lost; it and its siblings are replaced then."""
        timeout = timeout or self._settings.database_acquire_timeout_s
        connection = await self._acquire(timeout, certain=certain)
        try:
            yield connection
            self._succeeded(connection)
        except BaseException as error:
            # asyncpg says InterfaceError when a closed connection is rolled back, and also for
            # mistakes of ours, which must not pass for a lost connection.
            # A statement that took too long is no sign of a lost connection either.
            is_lost = isinstance(error, LOST) and not isinstance(error, asyncpg.QueryCanceledError)
            if is_lost or _is_closed(connection):
                self.losses += 1
                await self._replace(connection)
                raise ConnectionLost from error
            raise
        finally:
            await self._release(connection)

    async def _release(self, connection: Any) -> None:
        """Give the connection back. One whose last statement was cancelled has to wait for the
        server; asyncpg terminates it at the deadline, and who was cancelled hears of that alone.
        One that breaks as it is closed, since its siblings were lost, is gone as it should be."""
        with contextlib.suppress(TimeoutError, *LOST):
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)

    def _succeeded(self, connection: Any) -> None:
        connection.has_answered()
        self.succeeded_at = time.monotonic()

    async def _replace(self, connection: Any) -> None:
        """Terminate, since close() waits for a dead peer; the siblings are suspect too."""
        _terminate(connection)
        await self._pool.expire_connections()

    async def _acquire(self, timeout: float, *, certain: bool) -> Any:
        """A connection that works: it answered within the last second, or just now if ``certain``.

        :raises TimeoutError: when there is none within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        pause_s = 0.02
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no database connection within {timeout} s")
            if self._pool.is_closing():
                raise ConnectionLost("the pool is closing")
            try:
                connection = await self._pool.acquire(timeout=left_s)
            except (*LOST, asyncpg.TooManyConnectionsError) as error:
                log.debug("database connection failed", error=type(error).__name__)
                await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
                pause_s = min(pause_s * 2, 0.5)
                continue
            usable = False
            try:
                usable = await self._is_usable(connection, deadline, certain=certain)
            finally:
                if not usable:
                    _terminate(connection)
                    await self._release(connection)
            if usable:
                return connection

    async def _is_usable(self, connection: Any, deadline: float, *, certain: bool) -> bool:
        now = time.monotonic()
        idle_s = now - connection.answered_at
        if connection.is_too_old():
            return False
        if idle_s > self._settings.database_max_inactive_s:
            return False
        if idle_s <= TRUSTED_IDLE_S and not certain:
            return True
        try:
            await connection.fetchval(PING, timeout=max(0.05, min(PING_TIMEOUT_S, deadline - now)))
        except (*LOST, *BUSY) as error:
            log.warning("dead database connection replaced", error=type(error).__name__)
            await self._replace(connection)
            return False
        self._succeeded(connection)
        return True


class Kept:
    """Statements of somebody who has one after the other: a connection is kept from one to the
    next, since taking it from the pool and giving it back costs more than a statement. When the
    pool has no other it goes back at once."""

    def __init__(
        self,
        database: Database,
        take: Callable[[], contextlib.AbstractAsyncContextManager[Any]],
        succeeded: Callable[[Any], None],
    ) -> None:
        self._database = database
        self._take_one = take
        self._succeeded = succeeded
        self._taken: contextlib.AbstractAsyncContextManager[Any] | None = None
        self._connection: Any = None
        self._losses = 0

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """As :meth:`Database.fetch`."""
        with translated(), contextlib.suppress(ConnectionLost):
            await self._take()
            try:
                rows: list[Any] = await self._connection.fetch(sql, *arguments)
                self._succeeded(self._connection)
            except BaseException:
                await self._end(*sys.exc_info())
                raise
            if not self._database.has_idle:
                await self.give_back()
            return rows
        return await self._database.fetch(sql, *arguments)

    async def give_back(self) -> None:
        """Let others have the connection, if there is one."""
        with contextlib.suppress(ConnectionLost):
            await self._end(None, None, None)

    async def _take(self) -> None:
        """Another one when it is gone or too old, or when a sibling was lost."""
        if self._taken is not None and (
            self._losses != self._database.losses
            or _is_closed(self._connection)
            or self._connection.is_too_old()
        ):
            await self.give_back()
        if self._taken is None:
            taken = self._take_one()
            self._connection = await taken.__aenter__()
            self._taken, self._losses = taken, self._database.losses

    async def _end(self, *error: Any) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            await taken.__aexit__(*error)


class _Reader:
    """A connection whose statements may take longer than the pool's others."""

    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """All rows."""
        rows: list[Any] = await self._connection.fetch(sql, *arguments, timeout=self._timeout)
        return rows

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        """The first row, or None."""
        return await self._connection.fetchrow(sql, *arguments, timeout=self._timeout)

    async def execute(self, sql: str) -> None:
        """A statement without rows."""
        await self._connection.execute(sql, timeout=self._timeout)


def _is_closed(connection: Any) -> bool:
    """asyncpg takes a connection that was lost away from its user, whose next word to it raises."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def _terminate(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


@contextlib.asynccontextmanager
async def open_pool(settings: Settings, address: DatabaseAddress) -> AsyncIterator[Database]:
    """The pool, open for the length of the block.

    :raises asyncpg.PostgresError, OSError: when no connection can be made.
    :raises StartupError: when a pooler answers that the settings do not name.
    """
    through_pooler = settings.database_unpooled is not None
    # asyncpg says "Failed to restore the pool connection floor" with a traceback each second
    # while the database is away; that it is away is logged by those who notice.
    asyncpg.pool.logger.setLevel("CRITICAL")

    async def init(connection: Connection) -> None:
        connection.start_life(settings.database_max_age_s)
        _keep_alive(connection)

    async def reset(_: Any) -> None:
        """Nothing here outlives its transaction: SET LOCAL only, no LISTEN, no session locks."""

    pool = asyncpg.create_pool(
        **connect_arguments(address, through_pooler=through_pooler),
        min_size=settings.database_pool_min_size,
        max_size=settings.database_pool_max_size,
        max_inactive_connection_lifetime=settings.database_max_inactive_s,
        max_queries=2**31,
        command_timeout=settings.database_command_timeout_s,
        connection_class=Connection,
        server_settings=_server_settings(settings, through_pooler=through_pooler),
        init=init,
        reset=reset,
    )
    try:
        await pool
    except POOLED as error:
        raise behind_pooler(address, error) from error
    try:
        if not through_pooler:
            await _check_unpooled(pool, address)
        yield Database(pool, settings)
    finally:
        # close() waits for connections in use and terminates what is left at the deadline.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()


async def _check_unpooled(pool: Any, address: DatabaseAddress) -> None:
    """A pooler that is set to ignore the settings of a connection drops them silently.

    :raises StartupError: when the settings are lost.
    """
    async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
        try:
            lock_timeout = await connection.fetchval(LOCK_TIMEOUT)
        except POOLED as error:
            raise behind_pooler(address, error) from error
        if lock_timeout != f"{WAITS_MS['lock_timeout'] // 1000}s":
            raise behind_pooler(address)


async def _warn_of_pooler(connection: Connection) -> None:
    """A pooler answers with a process id that is not the server's."""
    if await connection.fetchval(SERVER_PID) != connection.get_server_pid():
        log.warning("a pooler stands before the database", hint=POOLER_HINT)


async def connect_once(address: DatabaseAddress, timeout: float) -> None:
    """Prove that a connection of its own, outside the pool, works.

    :raises Exception: asyncpg's own.
    """
    async with asyncio.timeout(timeout):
        connection = await asyncpg.connect(**connect_arguments(address))
        try:
            await connection.fetchval(PING)
        finally:
            connection.terminate()


@contextlib.asynccontextmanager
async def first_connection(
    address: DatabaseAddress, timeout: float, *, must_write: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """A single connection for the start, waited for with backoff; each attempt is logged. It is to
    lead to PostgreSQL itself, so a pooler that answers is logged too.

    :raises StartupError: when there is none within ``timeout`` seconds, or never will be.
    """
    started = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            connection = await asyncpg.connect(
                **connect_arguments(address), command_timeout=60, connection_class=Connection
            )
            if must_write and await connection.fetchval(IS_READ_ONLY):
                connection.terminate()
                raise asyncpg.ReadOnlySQLTransactionError
            break
        except POOLED as error:
            raise behind_pooler(address, error) from error
        except HOPELESS as error:
            raise StartupError(
                f"The database at {address} refuses the connection: {type(error).__name__}.",
                "Check user, password, database and sslmode in DATABASE_URL.",
            ) from error
        except (*LOST, *BUSY) as error:
            waited_s = time.monotonic() - started
            pause_s = min(5.0, 0.2 * 2**attempt) * random.uniform(0.8, 1.2)  # noqa: S311
            if waited_s + pause_s > timeout:
                raise StartupError(
                    f"No database at {address} within {timeout:g} s: {type(error).__name__}.",
                    "Check that the database service runs and DATABASE_URL names its primary;"
                    " STARTUP_DATABASE_TIMEOUT is how long a start waits.",
                ) from error
            log.warning(
                "database not there yet",
                attempt=attempt,
                error=type(error).__name__,
                waited_s=round(waited_s, 1),
                next_try_s=round(pause_s, 1),
            )
            await asyncio.sleep(pause_s)
    try:
        await _warn_of_pooler(connection)
        yield connection
    except POOLED as error:
        raise behind_pooler(address, error) from error
    finally:
        connection.terminate()


async def listen(address: DatabaseAddress, channel: str, on_notify: Callable[[str], None]) -> None:
    """Listen on a connection apart from the pool, for ever; reconnects with backoff.

    ``on_notify`` gets each payload, and an empty one after every (re)connection, since what was
    said in between was missed.
    """
    pause_s = 0.2
    while True:
        try:
            connection = await asyncpg.connect(**connect_arguments(address), command_timeout=5)
            try:
                _keep_alive(connection)
                ended = asyncio.Event()
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                await connection.add_listener(channel, lambda *said: on_notify(str(said[-1])))
                on_notify("")
                pause_s = 0.2
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LISTEN_CHECK_S):
                            await ended.wait()
                        break
                    await connection.fetchval(PING, timeout=PING_TIMEOUT_S)
                raise ConnectionResetError("the server ended the connection")
            finally:
                connection.terminate()
        except (*POOLED, *LOST, *BUSY, *HOPELESS) as error:
            hint = {"hint": POOLER_HINT} if isinstance(error, POOLED) else {}
            log.warning(
                "listen connection lost", error=type(error).__name__, retry_s=pause_s, **hint
            )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)
