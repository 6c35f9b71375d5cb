"""``python -m service organizations``."""

from typing import Any

import click

from service import accounts
from service.commands.work import COMMAND_LINE, FIRST_ID, with_database
from service.crypto import Keyring
from service.database.database import Database


@click.group()
def organizations() -> None:
    """Manage organizations."""


@organizations.command("create")
@click.argument("name")
def create_organization(name: str) -> None:
    """Create an organization."""

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            return await accounts.create_organization(conn, keyring, COMMAND_LINE, name)

    with_database(work)


@organizations.command("list")
def list_organizations() -> None:
    """List organizations, oldest first."""
    with_database(
        lambda database, _: accounts.list_organizations(database, after=FIRST_ID, limit=1000)
    )
