"""The database as its users see it: statements on connections that are alive when you get them.

asyncpg 0.32 takes ``min_size`` for a floor and so never retires a connection when min equals max,
and it hands out connections whose death it has not read yet. So age, idle time and validation are
kept here: a connection is replaced when it is too old or was idle too long, asked ``SELECT 1`` when
it was idle for a moment, and terminated (not closed, which would wait for a dead peer) together
with its siblings when it does not answer. Every wait has a deadline.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import asyncpg
import structlog

from service.database.connections import (
    IS_READ_ONLY,
    PING,
    PING_TIMEOUT_S,
    WAITS_MS,
    is_closed,
    terminate,
)
from service.database.errors import BUSY, LOST, ConnectionLost, translated
from service.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

NOW: Final = "SELECT clock_timestamp()"
TRUSTED_IDLE_S: Final = 1.0
"""A connection that answered this recently is not asked again."""
RELEASE_TIMEOUT_S: Final = 1.0
MAX_READERS: Final = 2
READ_TIMEOUT_S: Final = 30.0
SET_WAITS: Final = "".join(f"SET LOCAL {name} = {ms};" for name, ms in WAITS_MS.items())
REPEATS: Final = 2
"""A statement whose connection was lost, or that gave way to others, runs this often again at
most."""


class Database:
    """The pool. ``fetch`` and its kin repeat a statement when the connection is lost under it or
    the server rolls it back in favour of others, so they are for statements that may run twice:
    reads, and writes keyed by an id of the client's.
    Everything else goes through :meth:`transaction`, on a connection that has just answered.
    """

    def __init__(self, pool: Any, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._readers = asyncio.Semaphore(MAX_READERS)
        self.succeeded_at = time.monotonic()
        self.losses = 0
        """How often a connection was lost under a statement, which the server may yet run."""
        self.in_use = 0
        """How many connections are taken from the pool."""

    @property
    def size(self) -> int:
        """How many connections the pool may have."""
        return self._settings.database_pool_max_size

    @property
    def connections(self) -> tuple[int, int]:
        """How many the pool has, and how many of them are idle."""
        return self._pool.get_size(), self._pool.get_idle_size()

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

    def sticky(self) -> "StickyConnection":
        """A connection to reuse for consecutive statements."""
        return StickyConnection(self, lambda: self._connection(certain=False))

    async def _repeated(self, run: Callable[[Any], Awaitable[T]]) -> T:
        with translated():
            for _ in range(REPEATS):
                with contextlib.suppress(ConnectionLost, asyncpg.TransactionRollbackError):
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
            if is_lost or is_closed(connection):
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
        self.in_use -= 1
        with contextlib.suppress(TimeoutError, *LOST):
            await self._pool.release(connection, timeout=RELEASE_TIMEOUT_S)

    def _succeeded(self, connection: Any) -> None:
        connection.has_answered()
        self.succeeded_at = time.monotonic()

    async def _replace(self, connection: Any) -> None:
        """Terminate, since close() waits for a dead peer; the siblings are suspect too."""
        terminate(connection)
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
            self.in_use += 1
            usable = False
            try:
                usable = await self._is_usable(connection, deadline, certain=certain)
            finally:
                if not usable:
                    terminate(connection)
                    await self._release(connection)
            if usable:
                return connection

    async def _is_usable(self, connection: Any, deadline: float, *, certain: bool) -> bool:
        now = time.monotonic()
        idle_s = now - connection.answered_at
        if now > connection.ends_at:
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


class StickyConnection:
    """Statements of somebody who has one after the other: a connection is kept from one to the
    next, since taking it from the pool and giving it back costs more than a statement. When the
    pool has no other it goes back at once."""

    def __init__(
        self,
        database: Database,
        take: Callable[[], contextlib.AbstractAsyncContextManager[Any]],
    ) -> None:
        self._database = database
        self._size = database.size
        self._take_one = take
        self._taken: contextlib.AbstractAsyncContextManager[Any] | None = None
        self._connection: Any = None
        self._ends_at = 0.0
        self._losses = 0

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """As :meth:`Database.fetch`."""
        try:
            now = time.monotonic()
            if self._taken is None or now > self._ends_at or self._losses != self._database.losses:
                await self._take()
            try:
                rows: list[Any] = await self._connection.fetch(sql, *arguments)
            except BaseException:
                await self._end(*sys.exc_info())
                raise
            self._database.succeeded_at = time.monotonic()
            if self._database.in_use == self._size:
                await self.give_back()
        except (ConnectionLost, asyncpg.TransactionRollbackError):
            return await self._database.fetch(sql, *arguments)
        except Exception:
            # Entered for errors alone: statements follow each other all the time.
            with translated():
                raise
        return rows

    async def give_back(self) -> None:
        """Let others have the connection, if there is one."""
        with contextlib.suppress(ConnectionLost):
            await self._end(None, None, None)

    async def _take(self) -> None:
        """Take another one in place of one that is too old, or whose sibling was lost."""
        await self.give_back()
        taken = self._take_one()
        self._connection = await taken.__aenter__()
        self._taken, self._losses = taken, self._database.losses
        self._ends_at = self._connection.ends_at

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
