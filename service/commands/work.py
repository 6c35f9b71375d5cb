"""Runs an operator's command with a database, and reports its failure on one line."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from uuid import UUID

import click
import structlog

from service.audit import Actor
from service.commands import output
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
PAGE: Final = 1000

T = TypeVar("T")
Work = Callable[[Database, Keyring], Awaitable[output.Result]]


def with_database(work: Work) -> None:
    """Run a command and print its result.

    Log lines go to standard error, and only warnings unless LOG_LEVEL asks for more.
    """
    settings = read_command_settings()
    run_command(_with_database(settings, work))


def read_command_settings() -> Settings:
    """Read the settings of a command, which makes no secrets where there is no service yet."""
    return read_settings(makes_secrets=False, log_level="warning")


async def _with_database(settings: Settings, work: Work) -> None:
    async with open_database(settings) as database:
        result = await work(database, Keyring(settings.encryption_keys))
    output.show(result)


async def read_all(read_page: Callable[[UUID, int], Awaitable[Sequence[T]]]) -> list[T]:
    """Read a list of any length. ``read_page`` gets the last id so far and the size of a page."""
    rows: list[Any] = []
    while True:
        page = await read_page(rows[-1].id if rows else FIRST_ID, PAGE)
        rows += page
        if len(page) < PAGE:
            return rows


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open a pool for the length of the block.

    :raises StartupError: when the database cannot be reached, with the reason.
    """
    async with database_address(settings) as address:
        # Reports why the database is unreachable, which a pool cannot.
        async with first_connection(address, COMMAND_TIMEOUT_S):
            pass
        async with open_pool(settings, address) as database:
            yield database


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
    """Run a command to completion. A failure prints one line and exits with status 1; a mistake in
    the command itself, status 2."""
    try:
        asyncio.run(work)
    except (click.ClickException, click.Abort, BrokenPipeError):
        # click reports the first two, and ends without a word if nobody reads the output.
        logs.flush(logs.EXIT_FLUSH_S)
        raise
    except StartupError as error:
        fail(f"{error} {error.hint}")
    except ServiceError as error:
        fail(f"{error.code}: {error}")
    except Exception as error:
        # The exception's text may hold rows of the database, so only a redacted log line has it.
        log.debug("command failed", exc_info=True)
        fail(
            f"internal_error: {type(error).__name__}. Run `rialto migrate` if tables are out of"
            " date, or set LOG_LEVEL=debug to see the traceback."
        )


def fail(text: str) -> NoReturn:
    """Exit with status 1 and print the text after all log lines."""
    logs.flush(logs.EXIT_FLUSH_S)
    sys.exit(text)
