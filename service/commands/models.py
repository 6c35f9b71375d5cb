"""``python -m service models``."""

from typing import Any, Final, get_args
from uuid import UUID

import click

from service import accounts, catalog
from service.commands.work import COMMAND_LINE, FIRST_ID, with_database
from service.crypto import Keyring
from service.database.database import Database

MAX_LISTED: Final = 100_000


@click.group()
def models() -> None:
    """Manage aliases and list models."""


@models.command("list")
@click.option("--kind", type=click.Choice(get_args(catalog.Kind)), help="List only this kind.")
@click.option(
    "--organization",
    "organization_id",
    type=click.UUID,
    help="Leave out aliases of other organizations.",
)
def list_models(kind: catalog.Kind | None, organization_id: UUID | None) -> None:
    """List models with their prices, retired models, and aliases."""
    with_database(
        lambda database, _: catalog.list_names(
            database, FIRST_ID, MAX_LISTED, organization_id, kind
        )
    )


@models.command("set")
@click.argument("alias")
@click.argument("targets", nargs=-1, required=True)
@click.option(
    "--organization",
    "organization_id",
    type=click.UUID,
    help="Set the alias for this organization only.",
)
def set_alias(alias: str, targets: tuple[str, ...], organization_id: UUID | None) -> None:
    """Point ALIAS at TARGETS, best first. Takes effect on every replica within seconds."""
    new = catalog.NewAlias(targets=list(targets), organization_id=organization_id)

    async def work(database: Database, _: Keyring) -> Any:
        if organization_id is not None:
            await accounts.find_organization(database, organization_id)
        async with database.transaction() as conn:
            await catalog.set_alias(conn, COMMAND_LINE, alias, new)
        return await catalog.find_alias(database, alias, organization_id)

    with_database(work)


@models.command("remove")
@click.argument("alias")
@click.option(
    "--organization",
    "organization_id",
    type=click.UUID,
    help="Remove the alias of this organization.",
)
def remove_alias(alias: str, organization_id: UUID | None) -> None:
    """Remove an alias."""

    async def work(database: Database, _: Keyring) -> Any:
        if organization_id is not None:
            await accounts.find_organization(database, organization_id)
        async with database.transaction() as conn:
            await catalog.remove_alias(conn, COMMAND_LINE, alias, organization_id)
        return []

    with_database(work)
