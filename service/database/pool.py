"""Opens the connection pool."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from service.database.connections import (
    CONNECT_TIMEOUT_S,
    WAITS_MS,
    Connection,
    connect_arguments,
    keep_alive,
    server_settings,
)
from service.database.database import Database
from service.database.errors import POOLED, behind_pooler
from service.settings import Settings
from service.settings.address import DatabaseAddress

LOCK_TIMEOUT: Final = "SELECT current_setting('lock_timeout')"
CLOSE_TIMEOUT_S: Final = 5.0


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
        keep_alive(connection)

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
        server_settings=server_settings(settings, through_pooler=through_pooler),
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
