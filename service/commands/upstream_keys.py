"""``rialto upstream-keys``."""

import difflib
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

import click

from service import accounts, upstream
from service.audit import Actor
from service.commands.output import Column, CommandGroup, Facts, Result, Rows
from service.commands.parameters import of_organization, optional_organization
from service.commands.work import COMMAND_LINE, read_command_settings, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.errors import NotFound
from service.upstream import StoredKey

COLUMNS: Final = (
    Column("name", "name"),
    Column("status", "status", "state"),
    Column("last check", "last_check", "state", "not checked"),
    Column("checked", "last_checked_at", "time", "never"),
    Column("balance", "balance_usd", "usd", "unknown"),
    Column("DIEM", "balance_diem", none="unknown", is_optional=True),
    Column("tier", "tier", none="unknown", is_optional=True),
    Column("serves", "organization_id", "id", "all", is_optional=True),
    Column("id", "id", "id", is_optional=True),
)
CHECK_COLUMNS: Final = (
    Column("name", "name"),
    Column("is well", "is_well", "state"),
    Column("problem", "problem"),
)


@click.group("upstream-keys", cls=CommandGroup)
def upstream_keys() -> None:
    """Manage the operator's Venice keys."""


@upstream_keys.command("add")
@click.argument("name")
@of_organization(required=False, help="Use the key for this organization only.")
def add_upstream_key(name: str, organization: str | None) -> None:
    """Store a Venice key, encrypted. Prompts for it or reads it from standard input.

    Venice is asked about the key at no cost. A key that Venice rejects is stored anyway, with a
    warning.
    """
    is_terminal = sys.stdin.isatty()
    secret = click.prompt("Key", hide_input=True) if is_terminal else sys.stdin.readline()

    async def work(database: Database, keyring: Keyring) -> Result:
        await accounts.check_master_key(database, keyring)
        organization_id = await optional_organization(database, organization)
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
        return Facts(
            item=await upstream.find_stored(database, key_id),
            columns=COLUMNS,
            next_steps=["rialto upstream-keys check"],
        )

    settings = read_command_settings()
    with_database(work)


@upstream_keys.command("list")
def list_upstream_keys() -> None:
    """List the keys with the result and time of their last check."""

    async def work(database: Database, _: Keyring) -> Result:
        return Rows(
            rows=await upstream.list_stored(database),
            columns=COLUMNS,
            empty="There are no keys yet: a start stores VENICE_API_KEY as `environment`.",
            next_steps=["rialto upstream-keys check"],
        )

    with_database(work)


@upstream_keys.command("check")
def check_upstream_keys() -> None:
    """Check each enabled key with Venice, at no cost. Exits with status 1 if one is unusable."""
    settings = read_command_settings()
    if settings.venice_api_key is None:
        sys.exit("Nothing to check: without VENICE_API_KEY the sandbox replaces Venice.")
    secret = settings.venice_api_key

    async def work(database: Database, keyring: Keyring) -> Result:
        pool = upstream.UpstreamKeys(await upstream.load(database, keyring, secret))
        async with upstream.open_venice(
            settings, base_url=settings.venice_base_url, keys=pool
        ) as venice:
            checked.extend([await upstream.check(database, venice, key) for key in pool.all])
        return Rows(rows=checked, columns=CHECK_COLUMNS, empty="No key is enabled.")

    checked: list[upstream.KeyCheck] = []
    with_database(work)
    if not all(key.is_well for key in checked):
        sys.exit(1)


@upstream_keys.command("disable")
@click.argument("key")
def disable_upstream_key(key: str) -> None:
    """Disable a key, by name or id. Takes effect on every replica within seconds."""
    _change_upstream_key(key, upstream.disable)


@upstream_keys.command("enable")
@click.argument("key")
def enable_upstream_key(key: str) -> None:
    """Enable a disabled key, by name or id."""
    _change_upstream_key(key, upstream.enable)


def _change_upstream_key(key: str, change: Callable[[Any, Actor, UUID], Awaitable[None]]) -> None:
    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, key)
        async with database.transaction() as conn:
            await change(conn, COMMAND_LINE, found.id)
        return Facts(item=await upstream.find_stored(database, found.id), columns=COLUMNS)

    with_database(work)


async def _find(database: Database, text: str) -> StoredKey:
    """Find a key by name or id. Names are unique.

    :raises NotFound: when there is none; the message suggests a similar name.
    """
    keys = await upstream.list_stored(database)
    for key in keys:
        if text in (key.name, str(key.id)):
            return key
    similar = difflib.get_close_matches(text, [key.name for key in keys], 1)
    hint = f' Did you mean "{similar[0]}"?' if similar else ""
    raise NotFound(f"There is no such upstream key.{hint}")
