"""``rialto keys``."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from msgspec import UNSET

from service import accounts, ledger
from service.accounts import ApiKey, find_key_id, find_organization_id
from service.accounts.settings import StatedKeySettings
from service.commands.catalogue import must_be_models
from service.commands.limits import columns as limit_columns
from service.commands.output import Column, CommandGroup, Facts, Result, Rows
from service.commands.parameters import TIME, Duration, of_organization, optional_organization
from service.commands.prompts import asks_first, confirm
from service.commands.work import COMMAND_LINE, read_all, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import keys as key_reports

SHOWN_ONCE: Final = "The key is shown this once, and stored nowhere."


def _state(key: Any) -> str:
    if key.revoked_at is not None:
        return "revoked"
    is_expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return "expired" if is_expired else "active"


NAME: Final = Column("name", "name")
PREFIX: Final = Column("key", "prefix", "id")
STATE: Final = Column("state", _state, "state")
LIST_COLUMNS: Final = (
    NAME,
    PREFIX,
    Column("organization", "organization_name"),
    Column("role", "role"),
    STATE,
    Column("last used", "last_used_at", "time", "never"),
    Column("expires", "expires_at", "time", "never", is_optional=True),
    Column("models", "models", none="all", is_optional=True),
    Column("id", "id", "id", is_optional=True),
)
COLUMNS: Final = (
    NAME,
    PREFIX,
    Column("role", "role"),
    STATE,
    Column("models", "models", none="all"),
    Column("endpoints", "allowed_endpoints", none="all"),
    Column("addresses", "ip_allow_list", none="any"),
    Column("expires", "expires_at", "time", "never"),
    Column("last used", "last_used_at", "time", "never"),
    Column("old secret until", "previous_until", "time", ""),
    Column("revoked", "revoked_at", "time", ""),
    Column("settings", lambda key: _changed_settings(key) or None, none=""),
    Column("set by", "set_by"),
    Column("created", "created_at", "time"),
    Column("id", "id", "id"),
    Column("organization id", "organization_id", "id"),
)


def _changed_settings(key: ApiKey) -> dict[str, Any]:
    default = msgspec.to_builtins(accounts.KeySettings())
    stated = msgspec.to_builtins(key.settings)
    return {name: value for name, value in stated.items() if value != default[name]}


@click.group(cls=CommandGroup)
def keys() -> None:
    """Manage API keys of callers."""


@keys.command("create")
@of_organization()
@click.option("--name", required=True)
@click.option("--role", type=click.Choice(["inference", "admin", "operator"]), default="inference")
@click.option(
    "--expires-at",
    type=TIME,
    metavar="TIME",
    help="Expire at this time, such as 2030-01-01T00:00:00Z, or day (UTC). Default: never.",
)
@click.option(
    "--model", "models", multiple=True, help="Allow this model or alias. Repeat for more."
)
@click.option(
    "--endpoint", "endpoints", multiple=True, help="Allow this endpoint. Repeat for more."
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="CIDR",
    help="Allow these addresses, such as 203.0.113.0/24. Repeat for more.",
)
def create_key(
    organization: str,
    name: str,
    role: accounts.Role,
    expires_at: datetime | None,
    models: tuple[str, ...],
    endpoints: tuple[str, ...],
    addresses: tuple[str, ...],
) -> None:
    """Create a key. It is shown only once."""
    new = accounts.NewKey(
        name=name,
        role=role,
        expires_at=expires_at,
        models=[*models] or None,
        allowed_endpoints=[*endpoints] or None,
        ip_allow_list=[*addresses] or None,
    )

    async def work(database: Database, keyring: Keyring) -> Result:
        await accounts.check_master_key(database, keyring)
        organization_id = await find_organization_id(database, organization)
        await must_be_models(database, organization_id, models)
        async with database.transaction() as conn:
            key, secret = await accounts.create_key(conn, COMMAND_LINE, organization_id, new)
        return _with_secret(key, secret)

    with_database(work)


@keys.command("list")
@of_organization(required=False, help="List the keys of this organization only.")
@click.option("--prefix", help="List keys that begin with this, such as rk_1a2b.")
@click.option("--name", "text", help="List keys with this in their names.")
def list_keys(organization: str | None, prefix: str | None, text: str | None) -> None:
    """List keys, oldest first."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        found = await read_all(
            lambda after, limit: key_reports.search(
                database, organization_id, prefix, text, after, limit
            )
        )
        return Rows(
            rows=found,
            columns=LIST_COLUMNS,
            empty="There are no such keys.",
            next_steps=["rialto keys show NAME" if found else "rialto keys create --name app"],
        )

    with_database(work)


@keys.command("show")
@click.argument("key")
@of_organization(required=False, help="Look for the name in this organization only.")
def show_key(key: str, organization: str | None) -> None:
    """Show a key, by prefix, name or id, with the limits that bind its calls."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, key, organization)
        owner = await accounts.find_organization(database, found.organization_id)
        limits = await ledger.list_binding(database, found.organization_id, found.id, b"")
        shown = Rows(
            rows=limits, columns=limit_columns({found.id: found.name}), empty="No limit binds it."
        )
        return Facts(
            item=found,
            columns=(Column("organization", lambda _: owner.name), *COLUMNS),
            parts=[("Limits", shown)],
            next_steps=[f"rialto usage --key {found.prefix}", f"rialto keys rotate {found.prefix}"],
        )

    with_database(work)


@keys.command("update")
@click.argument("key")
@of_organization(required=False, help="Look for the name in this organization only.")
@click.option("--name", help="Rename the key.")
@click.option("--expires-at", type=TIME, metavar="TIME", help="Expire at this day or time.")
@click.option("--never-expires", is_flag=True, help="Remove the expiry.")
@click.option("--model", "models", multiple=True, help="Allow only this model. Repeat for more.")
@click.option("--all-models", is_flag=True, help="Allow every model.")
@click.option(
    "--endpoint", "endpoints", multiple=True, help="Allow only this endpoint. Repeat for more."
)
@click.option("--all-endpoints", is_flag=True, help="Allow every endpoint.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="CIDR",
    help="Allow only these addresses, such as 203.0.113.0/24. Repeat for more.",
)
@click.option("--any-address", is_flag=True, help="Allow every address.")
@click.option("--settings", metavar="JSON", help="Replace the settings, as in the API.")
def update_key(key: str, organization: str | None, **stated: Any) -> None:
    """Change what a key may do. Takes effect at once on every replica."""
    change = _change(stated)

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, key, organization)
        if isinstance(change.models, list):
            await must_be_models(database, found.organization_id, change.models)
        async with database.transaction() as conn:
            await accounts.change_key(conn, COMMAND_LINE, found, change)
        return Facts(item=await accounts.find_key(database, found.id), columns=COLUMNS)

    with_database(work)


@keys.command("rotate")
@click.argument("key")
@of_organization(required=False, help="Look for the name in this organization only.")
@click.option(
    "--overlap",
    "overlap_s",
    type=Duration(accounts.MAX_OVERLAP_S),
    default="24h",
    show_default=True,
    help="How long the old key works beside the new one, as 30min, 24h or 7d. 0s ends it now.",
)
@asks_first
def rotate_key(key: str, organization: str | None, overlap_s: int) -> None:
    """Give a key another secret, shown only once. Its id, limits and history stay."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, key, organization)
        if overlap_s == 0:
            confirm(f"End the old secret of {_described(found)} now? Its calls fail at once.")
        async with database.transaction() as conn:
            secret = await accounts.rotate_key(conn, COMMAND_LINE, found, overlap_s)
        return _with_secret(await accounts.find_key(database, found.id), secret)

    with_database(work)


@keys.command("revoke")
@click.argument("key")
@of_organization(required=False, help="Look for the name in this organization only.")
@asks_first
def revoke_key(key: str, organization: str | None) -> None:
    """Revoke a key for ever. Takes effect at once on every replica."""

    async def work(database: Database, _: Keyring) -> Result:
        found = await _find(database, key, organization)
        confirm(f"Revoke {_described(found)}? Its calls fail at once. This cannot be undone.")
        async with database.transaction() as conn:
            await accounts.revoke_key(conn, COMMAND_LINE, found)
        return Facts(item=await accounts.find_key(database, found.id), columns=COLUMNS)

    with_database(work)


async def _find(database: Database, text: str, organization: str | None) -> ApiKey:
    organization_id = await optional_organization(database, organization)
    return await accounts.find_key(database, await find_key_id(database, text, organization_id))


def _described(key: ApiKey) -> str:
    return f"key {key.name!r} ({key.prefix})"


def _with_secret(key: ApiKey, secret: str) -> Facts:
    shown = msgspec.to_builtins(key)
    return Facts(
        item=key,
        columns=(Column("key", lambda _: secret), *COLUMNS),
        as_json={**shown, "key": secret},
        notes=["", SHOWN_ONCE],
        next_steps=[f"export OPENAI_API_KEY={secret}", f"rialto keys show {key.prefix}"],
    )


def _change(options: Mapping[str, Any]) -> accounts.KeyChange:
    """Return the change that the options state.

    :raises click.UsageError: when they contradict each other or state nothing.
    """
    settings = options["settings"]
    stated: dict[str, Any] = {
        "name": UNSET if options["name"] is None else options["name"],
        "expires_at": _or_null(options, "expires_at", "never_expires"),
        "models": _or_null(options, "models", "all_models"),
        "allowed_endpoints": _or_null(options, "endpoints", "all_endpoints"),
        "ip_allow_list": _or_null(options, "addresses", "any_address"),
        "settings": UNSET if settings is None else _settings(settings),
    }
    stated = {field: value for field, value in stated.items() if value is not UNSET}
    if not stated:
        raise click.UsageError("Give at least one option that changes the key.")
    return accounts.KeyChange(**stated)


def _or_null(options: Mapping[str, Any], name: str, null_name: str) -> Any:
    """The value of an option, null where another one removes it, UNSET without either."""
    value = options[name]
    if not options[null_name]:
        return UNSET if not value else [*value] if isinstance(value, tuple) else value
    if value:
        option = f"--{null_name.replace('_', '-')}"
        raise click.UsageError(f"{option} cannot be combined with the values that it removes.")
    return None


def _settings(text: str) -> Any:
    try:
        return msgspec.json.decode(text, type=StatedKeySettings)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise click.BadParameter(f"{error}.", param_hint="--settings") from None
