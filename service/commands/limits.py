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
from service.database.connections import Database
from service.formats.parsing import parse_whole


@click.group()
def limits() -> None:
    """How much an organization, a key or an end user may use."""


def _amount(unit: ledger.Unit) -> Callable[[Any, Any, str | None], ledger.NewLimit | None]:
    """Reads an option like ``5/month`` (a ceiling a period), or ``10`` for concurrency."""

    def read(_: Any, __: Any, text: str | None) -> ledger.NewLimit | None:
        if text is None:
            return None
        ceiling, _, period = text.partition("/")
        facts = {"unit": unit, "ceiling": _ceiling(unit, ceiling), "period": period or None}
        try:
            return msgspec.convert(facts, ledger.NewLimit)
        except msgspec.ValidationError as error:
            raise click.BadParameter(f"{text!r} is no ceiling and period: {error}") from None

    return read


def _ceiling(unit: ledger.Unit, text: str) -> str | int:
    """As the API takes it: money as text, which is checked there, and counts as numbers."""
    if unit != "usd":
        with contextlib.suppress(ValueError):
            return parse_whole(text)
    return text


@limits.command("create")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--key", "api_key_id", type=click.UUID, help="Bind this key, not the organization.")
@click.option("--end-user", help="Bind this end user, as calls name it.")
@click.option("--each-end-user", is_flag=True, help="Bind each end user, with a counter for each.")
@click.option("--model", help="Count calls of this model only.")
@click.option("--usd", callback=_amount("usd"), metavar="5.00/month")
@click.option("--requests", callback=_amount("requests"), metavar="60/minute")
@click.option("--tokens", callback=_amount("tokens"), metavar="100000/day")
@click.option("--concurrency", callback=_amount("concurrency"), metavar="10")
def create_limits(
    organization_id: UUID,
    api_key_id: UUID | None,
    end_user: str | None,
    each_end_user: bool,
    model: str | None,
    **amounts: ledger.NewLimit | None,
) -> None:
    """Set limits, one for each amount: a ceiling and a period (minute, hour, day, month, lifetime),
    for concurrency just the number of calls at a time."""
    new = [limit for limit in amounts.values() if limit is not None]
    if not new:
        raise click.UsageError("Give at least one of --usd, --requests, --tokens, --concurrency.")

    binds = {
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
            made = [
                await ledger.create_limit(
                    conn,
                    COMMAND_LINE,
                    organization_id,
                    msgspec.structs.replace(limit, **binds),
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
    """List an organization's limits with what is used and held."""
    with_database(
        lambda database, _: ledger.list_limits(
            database, organization_id, after=FIRST_ID, limit=1000
        )
    )


@limits.command("change")
@click.argument("limit_id", type=click.UUID)
@click.argument("ceiling")
def change_limit(limit_id: UUID, ceiling: str) -> None:
    """Set another ceiling; what is used and held stays."""

    async def work(database: Database, _: Keyring) -> Any:
        limit = await ledger.find_limit(database, limit_id)
        change = ledger.LimitChange(ceiling=_ceiling(limit.unit, ceiling))
        async with database.transaction() as conn:
            await ledger.change_limit(conn, COMMAND_LINE, limit, change)
        return await ledger.find_limit(database, limit_id)

    with_database(work)


@limits.command("delete")
@click.argument("limit_id", type=click.UUID)
def delete_limit(limit_id: UUID) -> None:
    """Take a limit out of force."""

    async def work(database: Database, _: Keyring) -> Any:
        limit = await ledger.find_limit(database, limit_id)
        async with database.transaction() as conn:
            await ledger.delete_limit(conn, COMMAND_LINE, limit)
            await accounts.announce(conn, limit.organization_id)
        return limit

    with_database(work)
