"""The first connection of a start, which waits for the database to be there."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import structlog

from service.database.connections import IS_READ_ONLY, Connection, connect_arguments
from service.database.errors import BUSY, HOPELESS, LOST, POOLED, POOLER_HINT, behind_pooler
from service.errors import StartupError
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

SERVER_PID: Final = "SELECT pg_backend_pid()"


@contextlib.asynccontextmanager
async def first_connection(
    address: DatabaseAddress, timeout: float, *, must_write: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """A single connection for the start, waited for with backoff; each attempt is logged. With
    ``must_write`` a server that takes no writes is waited for, and a warning is logged if a pooler
    answers instead of PostgreSQL.

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
            if must_write:
                if await connection.fetchval(IS_READ_ONLY):
                    connection.terminate()
                    raise asyncpg.ReadOnlySQLTransactionError
                await _warn_of_pooler(connection)
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
        yield connection
    except POOLED as error:
        raise behind_pooler(address, error) from error
    finally:
        connection.terminate()


async def is_pooled(address: DatabaseAddress, timeout: float) -> bool:
    """Return whether a pooler answers at the address instead of PostgreSQL.

    :raises StartupError: as :func:`first_connection`.
    """
    async with first_connection(address, timeout) as connection:
        return await _has_pooler(connection)


async def _has_pooler(connection: Connection) -> bool:
    """A pooler answers with a process id that is not the server's."""
    return bool(await connection.fetchval(SERVER_PID) != connection.get_server_pid())


async def _warn_of_pooler(connection: Connection) -> None:
    if await _has_pooler(connection):
        log.warning("a pooler stands before the database", hint=POOLER_HINT)
