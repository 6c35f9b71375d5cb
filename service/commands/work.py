"""Runs an operator's command with a database, and reports its failure on one line."""

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
from service.database.database import Database
from service.database.first_connection import first_connection
from service.database.pool import open_pool
from service.errors import ServiceError, StartupError
from service.settings import Settings
from service.telemetry import logs

log = structlog.get_logger()

COMMAND_TIMEOUT_S: Final = 5.0
COMMAND_LINE: Final = Actor(name="command-line")
FIRST_ID: Final = UUID(int=0)
"""Sorts before every id."""

Work = Callable[[Database, Keyring], Awaitable[Any]]


def with_database(work: Work) -> None:
    """Run a command and print its result: one JSON object, or one per line.

    Log lines go to standard error, and only warnings unless LOG_LEVEL asks for more.
    """
    settings = read_settings(log_level="warning")

    async def run() -> None:
        async with database_address(settings) as address:
            # Reports why the database is unreachable, which a pool cannot.
            async with first_connection(address, COMMAND_TIMEOUT_S):
                pass
            async with open_pool(settings, address) as database:
                result = await work(database, Keyring(settings.encryption_keys))
        for line in result if isinstance(result, list) else [result]:
            click.echo(msgspec.json.encode(line).decode())

    run_command(run())


@contextlib.asynccontextmanager
async def database_address(settings: Settings, *, must_exist: bool = True) -> AsyncIterator[Any]:
    """Yield the database's address without a pooler. In development, start or share the embedded
    one.

    With ``must_exist``, a missing embedded database is not created: the service's own may be
    elsewhere or deleted, so an empty one would only hide the mistake.
    """
    if settings.migration_database is not None:
        yield settings.migration_database
        return
    async with embedded.running(
        Path(settings.data_directory) / "postgres", must_exist=must_exist
    ) as address:
        yield address


def run_command(work: Coroutine[Any, Any, None]) -> None:
    """Run a command to completion. A failure prints one line and exits with status 1."""
    try:
        asyncio.run(work)
    except StartupError as error:
        _fail(f"{error} {error.hint}")
    except ServiceError as error:
        _fail(f"{error.code}: {error}")
    except Exception as error:
        # The exception's text may hold rows of the database, so only a redacted log line has it.
        log.debug("command failed", exc_info=True)
        _fail(
            f"internal_error: {type(error).__name__}. Run `python -m service migrate` if tables"
            " are out of date, or set LOG_LEVEL=debug to see the traceback."
        )


def _fail(text: str) -> NoReturn:
    """Exit with status 1 and print the text after all log lines."""
    logs.flush(logs.EXIT_FLUSH_S)
    sys.exit(text)
