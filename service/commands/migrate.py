"""``rialto migrate``."""

import asyncio
from typing import Final

import click

from service.commands.console import read_settings
from service.commands.work import database_address, run_command
from service.database import schema
from service.database.first_connection import first_connection

MIGRATE_TIMEOUT_S: Final = 90.0


@click.command()
def migrate() -> None:
    """Apply pending migrations and check the tables.

    Applies functions too. In development without DATABASE_URL it makes the embedded database, as a
    start does.
    """
    settings = read_settings()
    timeout_s = min(MIGRATE_TIMEOUT_S, settings.startup_database_timeout_s)

    async def run() -> None:
        async with database_address(settings, must_exist=False) as address:
            await asyncio.to_thread(
                schema.apply, address, connect_timeout_s=timeout_s, restore=True
            )
            async with first_connection(address, timeout_s) as conn:
                await schema.verify(conn)

    run_command(run())
