"""``rialto limits``."""

import contextlib
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import click
import msgspec
from msgspec import UNSET

from service import accounts, ledger
from service.accounts import find_key_id, find_organization_id
from service.commands.output import (
    Column,
    CommandGroup,
    Facts,
    Kind,
    Result,
    Rows,
    format_usd,
)
from service.commands.parameters import TIME, Share, of_organization, optional_organization
from service.commands.prompts import asks_first, confirm
from service.commands.work import COMMAND_LINE, read_all, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.formats.parsing import parse_whole
from service.reports import standings

EXAMPLES: Final = {"usd": "5.00/month", "requests": "60/minute", "tokens": "100000/day"}
MAX_STANDINGS: Final = 1000


def format_amount(unit: str, amount: str | int) -> str:
    """Format an amount of a limit, without its unit but for money."""
    return format_usd(str(amount)) if unit == "usd" else f"{amount:,}"


def format_limit(limit: Any) -> str:
    """Format the ceiling of a limit: ``$5.00/month``, ``60 requests/minute``, ``10 at a time``."""
    amount = format_amount(limit.unit, limit.ceiling)
    if limit.unit == "concurrency":
        return f"{amount} at a time"
    return (
        f"{amount}/{limit.period}"
        if limit.unit == "usd"
        else (f"{amount} {limit.unit}/{limit.period}")
    )


def format_scope(limit: Any, key_name: str | None = None) -> str:
    """Format what a limit binds: ``organization``, ``key app``, ``each end user of key app``."""
    key = None if limit.api_key_id is None else f"key {key_name or limit.api_key_id}"
    match limit.scope:
        case "each_end_user":
            return f"each end user of {key}" if key else "each end user"
        case "end_user":
            return f"an end user of {key}" if key else "an end user"
        case _:
            return key or "organization"


def _amount(title: str, field: str, *, is_optional: bool = False) -> Column:
    kind: Kind = "count"
    return Column(
        title,
        lambda limit: format_amount(limit.unit, getattr(limit, field)),
        kind,
        is_optional=is_optional,
    )


def columns(key_names: dict[UUID, str]) -> tuple[Column, ...]:
    """Return the columns of limits. ``key_names`` are those of keys that are bound."""
    return (
        Column("limit", format_limit),
        Column("binds", lambda limit: format_scope(limit, key_names.get(limit.api_key_id))),
        Column("model", "model", none="all", is_optional=True),
        _amount("used", "used"),
        _amount("held", "held", is_optional=True),
        _amount("left", "left", is_optional=True),
        Column("resets", "resets_at", "time", is_optional=True),
        Column("id", "id", "id"),
    )


NEAR: Final = 0.8
"""The share from which on a limit is near its end."""
STANDING_COLUMNS: Final = (
    Column("share", "share", "share"),
    Column("limit", format_limit),
    Column("organization", "organization_name"),
    Column("binds", lambda limit: format_scope(limit, limit.key_name)),
    _amount("used", "used"),
    _amount("held", "held", is_optional=True),
    Column("resets", "resets_at", "time", is_optional=True),
    Column("id", "id", "id", is_optional=True),
)


async def near(
    database: Database, organization_id: UUID | None, share: float, limit: int = MAX_STANDINGS
) -> Rows:
    """List the limits of which at least ``share`` is used or held, the nearest to their end
    first."""
    return Rows(
        rows=await standings.near(database, organization_id, share, limit),
        columns=STANDING_COLUMNS,
        empty=f"No limit has {share:.0%} or more used." if share else "There are no limits.",
        next_steps=["rialto limits update ID --raise-to CEILING --until TIME"],
    )


@click.group(cls=CommandGroup)
def limits() -> None:
    """Manage limits on organizations, keys and end users."""


def _limit_parser(unit: ledger.Unit) -> Callable[[Any, Any, str | None], ledger.NewLimit | None]:
    """Return a parser for an option such as ``5/month`` (ceiling and period), or ``10``."""

    def read(_: Any, __: Any, text: str | None) -> ledger.NewLimit | None:
        if text is None:
            return None
        ceiling, _, period = text.partition("/")
        if unit in EXAMPLES and not period:
            raise click.BadParameter(
                f"{text!r} has no period: minute, hour, day, month or lifetime, as {text}/month."
            )
        facts = {"unit": unit, "ceiling": _parse_ceiling(unit, ceiling), "period": period or None}
        try:
            return msgspec.convert(facts, ledger.NewLimit)
        except msgspec.ValidationError as error:
            raise click.BadParameter(f"{text!r} is not a ceiling and period: {error}") from None

    return read


def _parse_ceiling(unit: ledger.Unit, text: str) -> str | int:
    """Parse a ceiling as the API accepts it: money as text, which the ledger checks, counts as
    numbers."""
    if unit != "usd":
        with contextlib.suppress(ValueError):
            return parse_whole(text)
    return text


@limits.command("create")
@of_organization()
@click.option("--key", metavar="NAME", help="Limit this key only, by name, prefix or id.")
@click.option("--end-user", help="Limit the end user with this name.")
@click.option("--each-end-user", is_flag=True, help="Limit each end user separately.")
@click.option("--model", help="Count calls of this model only.")
@click.option("--usd", callback=_limit_parser("usd"), metavar=EXAMPLES["usd"])
@click.option("--requests", callback=_limit_parser("requests"), metavar=EXAMPLES["requests"])
@click.option("--tokens", callback=_limit_parser("tokens"), metavar=EXAMPLES["tokens"])
@click.option("--concurrency", callback=_limit_parser("concurrency"), metavar="10")
def create_limits(
    organization: str,
    key: str | None,
    end_user: str | None,
    each_end_user: bool,
    model: str | None,
    **amounts: ledger.NewLimit | None,
) -> None:
    """Create limits, one for each amount.

    An amount is a ceiling and a period (minute, hour, day, month or lifetime). For concurrency it
    is just the number of concurrent calls.
    """
    new = [limit for limit in amounts.values() if limit is not None]
    if not new:
        raise click.UsageError("Give at least one of --usd, --requests, --tokens, --concurrency.")

    async def work(database: Database, keyring: Keyring) -> Result:
        organization_id = await find_organization_id(database, organization)
        key_id = None if key is None else await find_key_id(database, key, organization_id)
        scope = {
            "api_key_id": key_id,
            "end_user": end_user,
            "each_end_user": each_end_user,
            "model": model,
        }
        digest = None
        if end_user is not None:
            digest = await accounts.end_user_digest(database, keyring, organization_id, end_user)
        async with database.transaction() as conn:
            await accounts.must_have_key(conn, organization_id, key_id)
            made = [
                await ledger.create_limit(
                    conn,
                    COMMAND_LINE,
                    organization_id,
                    msgspec.structs.replace(limit, **scope),
                    digest,
                )
                for limit in new
            ]
            await accounts.announce(conn, organization_id)
        return Rows(
            rows=[await ledger.find_limit(database, limit_id) for limit_id in made],
            columns=columns(await _key_names(database, organization_id)),
            next_steps=[f"rialto limits list --organization {shlex.quote(organization)}"],
        )

    with_database(work)


@limits.command("list")
@of_organization(required=False, help="List the limits of this organization, oldest first.")
@click.option(
    "--near",
    "share",
    type=Share(),
    metavar="SHARE",
    help="List limits of which at least this share is used or held, such as 0.8.",
)
def list_limits(organization: str | None, share: float | None) -> None:
    """List limits with used and held amounts. Without options: of all organizations, those nearest
    to their end first."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        if organization_id is None or share is not None:
            return await near(database, organization_id, share or 0.0)
        return Rows(
            rows=await read_all(
                lambda after, limit: ledger.list_limits(database, organization_id, after, limit)
            ),
            columns=columns(await _key_names(database, organization_id)),
            empty="There are no limits.",
            next_steps=["rialto limits update ID 7.50"],
        )

    with_database(work)


@limits.command("update")
@click.argument("limit_id", type=click.UUID)
@click.argument("ceiling", required=False)
@click.option("--raise-to", metavar="CEILING", help="Raise the ceiling for a time.")
@click.option("--until", type=TIME, metavar="TIME", help="End the raise at this day or time.")
@click.option("--end-raise", is_flag=True, help="End a raise now.")
def update_limit(
    limit_id: UUID,
    ceiling: str | None,
    raise_to: str | None,
    until: datetime | None,
    end_raise: bool,
) -> None:
    """Change the ceiling of a limit, or raise it for a time. Used and held amounts stay."""
    if (raise_to is None) != (until is None):
        raise click.UsageError("Give --raise-to and --until together.")
    if end_raise and raise_to is not None:
        raise click.UsageError("Give --raise-to or --end-raise, not both.")
    if ceiling is None and raise_to is None and not end_raise:
        raise click.UsageError("Give a ceiling, or --raise-to with --until, or --end-raise.")

    async def work(database: Database, _: Keyring) -> Result:
        limit = await ledger.find_limit(database, limit_id)
        change = ledger.LimitChange(
            ceiling=UNSET if ceiling is None else _parse_ceiling(limit.unit, ceiling),
            raised_to=_raised(limit.unit, raise_to, end_raise),
            raised_until=None if end_raise else (until or UNSET),
        )
        async with database.transaction() as conn:
            await ledger.change_limit(conn, COMMAND_LINE, limit, change)
        return await _one(database, limit_id)

    with_database(work)


@limits.command("delete")
@click.argument("limit_id", type=click.UUID)
@asks_first
def delete_limit(limit_id: UUID) -> None:
    """Delete a limit. Calls are no longer bound by it."""

    async def work(database: Database, _: Keyring) -> Result:
        limit = await ledger.find_limit(database, limit_id)
        shown = await _one(database, limit_id)
        confirm(f"Delete the limit of {format_limit(limit)}? This cannot be undone.")
        async with database.transaction() as conn:
            await ledger.delete_limit(conn, COMMAND_LINE, limit)
            await accounts.announce(conn, limit.organization_id)
        return shown

    with_database(work)


def _raised(unit: ledger.Unit, raise_to: str | None, end_raise: bool) -> Any:
    if end_raise:
        return None
    return UNSET if raise_to is None else _parse_ceiling(unit, raise_to)


async def _one(database: Database, limit_id: UUID) -> Facts:
    limit = await ledger.find_limit(database, limit_id)
    return Facts(
        item=limit,
        columns=(
            *columns(await _key_names(database, limit.organization_id)),
            Column("raised until", "raised_until", "time", ""),
            Column("alerts at %", "alert_percents", none=""),
            Column("set by", "set_by"),
        ),
    )


async def _key_names(database: Database, organization_id: UUID) -> dict[UUID, str]:
    keys = await read_all(
        lambda after, limit: accounts.list_keys(database, organization_id, after, limit)
    )
    return {key.id: key.name for key in keys}
