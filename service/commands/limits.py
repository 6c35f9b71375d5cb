"""``python -m service limits``."""

import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import click
import msgspec

from service import accounts, ledger
from service.commands.work import COMMAND_LINE, FIRST_ID, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.formats.parsing import parse_whole


@click.group()
def limits() -> None:
    """Manage limits on organizations, keys and end users."""


def _limit_parser(unit: ledger.Unit) -> Callable[[Any, Any, str | None], ledger.NewLimit | None]:
    """Return a parser for an option such as ``5/month`` (ceiling and period), or ``10``."""

    def read(_: Any, __: Any, text: str | None) -> ledger.NewLimit | None:
        if text is None:
            return None
        ceiling, _, period = text.partition("/")
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
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--key", "api_key_id", type=click.UUID, help="Limit this key only.")
@click.option("--end-user", help="Limit the end user with this name.")
@click.option("--each-end-user", is_flag=True, help="Limit each end user separately.")
@click.option("--model", help="Count calls of this model only.")
@click.option("--usd", callback=_limit_parser("usd"), metavar="5.00/month")
@click.option("--requests", callback=_limit_parser("requests"), metavar="60/minute")
@click.option("--tokens", callback=_limit_parser("tokens"), metavar="100000/day")
@click.option("--concurrency", callback=_limit_parser("concurrency"), metavar="10")
def create_limits(
    organization_id: UUID,
    api_key_id: UUID | None,
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

    scope = {
        "api_key_id": api_key_id,
        "end_user": end_user,
        "each_end_user": each_end_user,
        "model": model,
    }

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.find_organization(database, organization_id)
        digest = None
        if end_user is not None:
            digest = await accounts.end_user_digest(database, keyring, organization_id, end_user)
        async with database.transaction() as conn:
            await accounts.must_have_key(conn, organization_id, api_key_id)
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
        return [await ledger.find_limit(database, limit_id) for limit_id in made]

    with_database(work)


@limits.command("list")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
def list_limits(organization_id: UUID) -> None:
    """List an organization's limits with used and held amounts."""
    with_database(
        lambda database, _: ledger.list_limits(
            database, organization_id, after=FIRST_ID, limit=1000
        )
    )


@limits.command("change")
@click.argument("limit_id", type=click.UUID)
@click.argument("ceiling")
def change_limit(limit_id: UUID, ceiling: str) -> None:
    """Change the ceiling of a limit. Used and held amounts stay."""

    async def work(database: Database, _: Keyring) -> Any:
        limit = await ledger.find_limit(database, limit_id)
        change = ledger.LimitChange(ceiling=_parse_ceiling(limit.unit, ceiling))
        async with database.transaction() as conn:
            await ledger.change_limit(conn, COMMAND_LINE, limit, change)
        return await ledger.find_limit(database, limit_id)

    with_database(work)


@limits.command("delete")
@click.argument("limit_id", type=click.UUID)
def delete_limit(limit_id: UUID) -> None:
    """Delete a limit."""

    async def work(database: Database, _: Keyring) -> Any:
        limit = await ledger.find_limit(database, limit_id)
        async with database.transaction() as conn:
            await ledger.delete_limit(conn, COMMAND_LINE, limit)
            await accounts.announce(conn, limit.organization_id)
        return limit

    with_database(work)
