"""``rialto organizations``."""

import shlex
from typing import Final

import click

from service import accounts
from service.commands.output import Column, CommandGroup, Facts, Result, Rows
from service.commands.prompts import asks_first, confirm
from service.commands.work import COMMAND_LINE, read_all, with_database
from service.crypto import Keyring
from service.database.database import Database

COLUMNS: Final = (
    Column("name", "name"),
    Column("status", "status", "state"),
    Column("created", "created_at", "time"),
    Column("id", "id", "id"),
)
SETTINGS: Final = (
    Column("Venice parameters", lambda one: one.settings.venice_parameters or None, none=""),
    Column("on small budget", lambda one: one.settings.on_small_budget, none=""),
)


@click.group(cls=CommandGroup)
def organizations() -> None:
    """Manage organizations."""


@organizations.command("create")
@click.argument("name")
def create_organization(name: str) -> None:
    """Create an organization."""

    async def work(database: Database, keyring: Keyring) -> Result:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            made = await accounts.create_organization(conn, keyring, COMMAND_LINE, name)
        one = f"--organization {shlex.quote(name)}"
        return Facts(
            item=made,
            columns=COLUMNS,
            next_steps=[
                f"rialto keys create {one} --name app",
                f"rialto limits create {one} --usd 5/month",
            ],
        )

    with_database(work)


@organizations.command("list")
def list_organizations() -> None:
    """List organizations, oldest first."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await read_all(
            lambda after, limit: accounts.list_organizations(database, after, limit)
        )
        return Rows(
            rows=found,
            columns=COLUMNS,
            empty="There are no organizations.",
            next_steps=[] if found else ["rialto organizations create acme"],
        )

    with_database(work)


@organizations.command("show")
@click.argument("organization")
def show_organization(organization: str) -> None:
    """Show an organization, by name or id."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, organization)
        one = f"--organization {shlex.quote(found.name)}"
        return Facts(
            item=found,
            columns=(*COLUMNS, *SETTINGS),
            next_steps=[
                f"rialto keys list {one}",
                f"rialto limits list {one}",
                f"rialto usage {one}",
            ],
        )

    with_database(work)


@organizations.command("update")
@click.argument("organization")
@click.option("--name", required=True, help="Rename the organization.")
def update_organization(organization: str, name: str) -> None:
    """Change the name of an organization."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, organization)
        async with database.transaction() as conn:
            await accounts.rename_organization(conn, COMMAND_LINE, found.id, name)
        return Facts(item=await _find(database, str(found.id)), columns=COLUMNS)

    with_database(work)


@organizations.command("suspend")
@click.argument("organization")
@asks_first
def suspend_organization(organization: str) -> None:
    """Refuse every call of an organization, until it is resumed."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, organization)
        confirm(f"Suspend {found.name}? Every call of its keys is refused at once.")
        async with database.transaction() as conn:
            await accounts.suspend_organization(conn, COMMAND_LINE, found.id)
        return Facts(
            item=await _find(database, str(found.id)),
            columns=COLUMNS,
            next_steps=[f"rialto organizations resume {shlex.quote(found.name)}"],
        )

    with_database(work)


@organizations.command("resume")
@click.argument("organization")
def resume_organization(organization: str) -> None:
    """Take calls of a suspended organization again."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, organization)
        async with database.transaction() as conn:
            await accounts.resume_organization(conn, COMMAND_LINE, found.id)
        return Facts(item=await _find(database, str(found.id)), columns=COLUMNS)

    with_database(work)


@organizations.command("delete")
@click.argument("organization")
@asks_first
def delete_organization(organization: str) -> None:
    """Delete an organization for ever. Its ledger entries stay.

    Its keys stop working, and its data key is shredded: names of end users can no longer be
    matched with their entries.
    """

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, organization)
        confirm(
            f"Delete {found.name}? Its keys stop working at once and its data key is shredded."
            " This cannot be undone."
        )
        async with database.transaction() as conn:
            await accounts.delete_organization(conn, COMMAND_LINE, found.id)
        return Facts(item=await _find(database, str(found.id)), columns=COLUMNS)

    with_database(work)


async def _find(database: Database, text: str) -> accounts.Organization:
    return await accounts.find_organization(
        database, await accounts.find_organization_id(database, text)
    )
