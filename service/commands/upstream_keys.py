"""``python -m service upstream-keys``."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import click

from service import accounts, upstream
from service.audit import Actor
from service.commands.console import read_settings
from service.commands.work import COMMAND_LINE, with_database
from service.crypto import Keyring
from service.database.database import Database


@click.group("upstream-keys")
def upstream_keys() -> None:
    """Manage the operator's Venice keys."""


@upstream_keys.command("add")
@click.argument("name")
@click.option(
    "--organization",
    "organization_id",
    type=click.UUID,
    help="Use the key for this organization only.",
)
def add_upstream_key(name: str, organization_id: UUID | None) -> None:
    """Store a Venice key, encrypted. Prompts for it or reads it from standard input.

    Venice is asked about the key at no cost. A key that Venice rejects is stored anyway, with a
    warning.
    """
    is_terminal = sys.stdin.isatty()
    secret = click.prompt("Key", hide_input=True) if is_terminal else sys.stdin.readline()

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            key_id = await upstream.add(
                conn, keyring, COMMAND_LINE, name, secret.strip(), organization_id
            )
        if settings.venice_api_key is not None:
            key = upstream.UpstreamKey(id=key_id, name=name, secret=secret.strip())
            pool = upstream.UpstreamKeys([key])
            async with upstream.open_venice(
                settings, base_url=settings.venice_base_url, keys=pool
            ) as venice:
                checked = await upstream.check(database, venice, key)
            if checked.problem is not None:
                click.echo(f"warning: {name}: {checked.problem}", err=True)
        return [await upstream.find_stored(database, key_id)]

    settings = read_settings(log_level="warning")
    with_database(work)


@upstream_keys.command("list")
def list_upstream_keys() -> None:
    """List the keys with the result and time of their last check."""
    with_database(lambda database, _: upstream.list_stored(database))


@upstream_keys.command("check")
def check_upstream_keys() -> None:
    """Check each enabled key with Venice, at no cost. Exits with status 1 if one is unusable."""
    settings = read_settings(log_level="warning")
    if settings.venice_api_key is None:
        sys.exit("Nothing to check: without VENICE_API_KEY the sandbox replaces Venice.")
    secret = settings.venice_api_key

    async def work(database: Database, keyring: Keyring) -> Any:
        pool = upstream.UpstreamKeys(await upstream.load(database, keyring, secret))
        async with upstream.open_venice(
            settings, base_url=settings.venice_base_url, keys=pool
        ) as venice:
            checked.extend([await upstream.check(database, venice, key) for key in pool.all])
        return checked

    checked: list[upstream.KeyCheck] = []
    with_database(work)
    if not all(key.is_well for key in checked):
        sys.exit(1)


@upstream_keys.command("disable")
@click.argument("key_id", type=click.UUID)
def disable_upstream_key(key_id: UUID) -> None:
    """Disable a key. Takes effect on every replica within seconds."""
    _change_upstream_key(key_id, upstream.disable)


@upstream_keys.command("enable")
@click.argument("key_id", type=click.UUID)
def enable_upstream_key(key_id: UUID) -> None:
    """Enable a disabled key."""
    _change_upstream_key(key_id, upstream.enable)


def _change_upstream_key(
    key_id: UUID, change: Callable[[Any, Actor, UUID], Awaitable[None]]
) -> None:
    async def work(database: Database, _: Keyring) -> Any:
        async with database.transaction() as conn:
            await change(conn, COMMAND_LINE, key_id)
        return [await upstream.find_stored(database, key_id)]

    with_database(work)
