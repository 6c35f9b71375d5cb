"""How a verb of the operator runs: with a database, and with one line about what went wrong."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import UUID

import click
import msgspec
import structlog

from service.audit import Actor
from service.commands.console import read_settings
from service.crypto import Keyring
from service.database import embedded
from service.database.connections import Database, first_connection, open_pool
from service.errors import ServiceError, StartupError
from service.settings import Settings
from service.telemetry import logs

log = structlog.get_logger()

COMMAND_TIMEOUT_S: Final = 5.0
COMMAND_LINE: Final = Actor(name="command-line")
FIRST_ID: Final = UUID(int=0)
"""The one before every id."""

Work = Callable[[Database, Keyring], Awaitable[Any]]


def with_database(work: Work) -> None:
    """Run one verb and print what it returns: one JSON object, or one a line. It stands alone:
    steps are logged only when LOG_LEVEL asks for them, and to standard error."""
    settings = read_settings(log_level="warning")

    async def run() -> None:
        async with database_address(settings) as address:
            # Says why there is none, which a pool cannot.
            async with first_connection(address, COMMAND_TIMEOUT_S):
                pass
            async with open_pool(settings, address) as database:
                result = await work(database, Keyring(settings.encryption_keys))
        for line in result if isinstance(result, list) else [result]:
            click.echo(msgspec.json.encode(line).decode())

    run_to_the_end(run())


@contextlib.asynccontextmanager
async def database_address(settings: Settings, *, must_exist: bool = True) -> AsyncIterator[Any]:
    """The database without a pooler in between; in development the embedded one, shared with a
    service that runs. Where that does not exist a command finds nothing and changes nothing, so it
    makes none: the service's own may be elsewhere, or deleted."""
    if settings.migration_database is not None:
        yield settings.migration_database
        return
    async with embedded.running(
        Path(settings.data_directory) / "postgres", must_exist=must_exist
    ) as address:
        yield address


def run_to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; a failure is one line that says what to do, and exit status 1."""
    try:
        asyncio.run(work)
    except StartupError as error:
        _fail(f"{error} {error.hint}")
    except ServiceError as error:
        _fail(f"{error.code}: {error}")
    except Exception as error:
        # Its text may hold rows of the database, so it is not printed; a log line is redacted.
        log.debug("command failed", exc_info=True)
        _fail(
            f"internal_error: {type(error).__name__}. `python -m service migrate` brings the tables"
            " up to date; LOG_LEVEL=debug shows where it happened."
        )


def _fail(text: str) -> NoReturn:
    """End with status 1; the text is the last line, after all that was logged."""
    logs.flush(logs.EXIT_FLUSH_S)
    sys.exit(text)
