"""``python -m service keys``."""

from datetime import datetime
from typing import Any
from uuid import UUID

import click
import msgspec

from service import accounts
from service.commands.parameters import INSTANT
from service.commands.work import COMMAND_LINE, FIRST_ID, with_database
from service.crypto import Keyring
from service.database.database import Database


@click.group()
def keys() -> None:
    """Manage API keys of callers."""


@keys.command("create")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--name", required=True)
@click.option("--role", type=click.Choice(["inference", "admin", "operator"]), default="inference")
@click.option(
    "--expires-at",
    type=INSTANT,
    metavar="TIME",
    help="Expire at this time, with a time zone, such as 2030-01-01T00:00:00Z. Default: never.",
)
@click.option(
    "--model", "models", multiple=True, help="Allow this model or alias. Repeat for more."
)
def create_key(
    organization_id: UUID,
    name: str,
    role: accounts.Role,
    expires_at: datetime | None,
    models: tuple[str, ...],
) -> None:
    """Create a key. It is shown only once."""
    new = accounts.NewKey(
        name=name, role=role, expires_at=expires_at, models=list(models) if models else None
    )

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            key, secret = await accounts.create_key(conn, COMMAND_LINE, organization_id, new)
        return {**msgspec.to_builtins(key), "key": secret}

    with_database(work)


@keys.command("list")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
def list_keys(organization_id: UUID) -> None:
    """List the keys of an organization, oldest first."""
    with_database(
        lambda database, _: accounts.list_keys(
            database, organization_id, after=FIRST_ID, limit=1000
        )
    )


@keys.command("revoke")
@click.argument("api_key_id", type=click.UUID)
def revoke_key(api_key_id: UUID) -> None:
    """Revoke a key. Takes effect at once on every replica."""

    async def work(database: Database, _: Keyring) -> Any:
        key = await accounts.find_key(database, api_key_id)
        async with database.transaction() as conn:
            await accounts.revoke_key(conn, COMMAND_LINE, key)
        return await accounts.find_key(database, api_key_id)

    with_database(work)
