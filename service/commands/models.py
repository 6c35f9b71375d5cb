"""``rialto models``."""

from typing import Final, get_args

import click
import msgspec

from service import catalog
from service.catalog import ListedName
from service.commands.output import Column, CommandGroup, Result, Rows
from service.commands.parameters import WholeNumber, of_organization, optional_organization
from service.commands.prompts import asks_first, confirm
from service.commands.work import COMMAND_LINE, read_all, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import usage as usage_reports
from service.reports.usage import DeprecatedModel

OWNER: Final = "The organization that owns the alias. Default: all share the alias."


def _price(direction: str) -> Column:
    """The column of a model's price for a million tokens, where Venice states one."""

    def read(model: ListedName) -> str | None:
        stated = None if model.prices is None else msgspec.json.decode(model.prices)
        price = stated.get(direction) if isinstance(stated, dict) else None
        amount = price.get("usd") if isinstance(price, dict) else None
        return None if amount is None else str(amount)

    return Column(f"{direction} /M", read, "usd")


def _leads_to(model: ListedName) -> str | None:
    return None if model.targets is None else ", ".join(model.targets)


def _end(model: ListedName) -> str | None:
    """When and how the model ends, by Venice's word."""
    if model.retired_at is not None:
        return "retired"
    stated = None if model.deprecation is None else msgspec.json.decode(model.deprecation)
    if not isinstance(stated, dict):
        return None
    removed_on = stated.get("removesAt") or stated.get("date")
    return f"from {str(removed_on)[:10]}" if removed_on else "deprecated"


COLUMNS: Final = (
    Column("name", "name"),
    Column("type", lambda model: model.type or model.kind),
    Column("leads to", _leads_to, is_optional=True),
    _price("input"),
    _price("output"),
    Column("context", "context_tokens", "count"),
    Column("ends", _end, is_optional=True),
    Column("organization", "organization_id", "id", "all", is_optional=True),
)
USERS: Final = (
    Column("model", lambda used: used[0].model),
    Column("ends", lambda used: _removal(used[0])),
    Column("replacement", lambda used: used[0].replacement),
    Column("organization", lambda used: used[1].organization_name),
    Column("key", lambda used: used[1].key_name),
    Column("calls", lambda used: used[1].calls, "count"),
    Column("cost", lambda used: used[1].cost_usd, "usd"),
)


def _removal(model: DeprecatedModel) -> str | None:
    if model.retired_at is not None:
        return "retired"
    return None if model.removed_on is None else f"from {model.removed_on[:10]}"


@click.group(cls=CommandGroup)
def models() -> None:
    """List models and manage aliases."""


@models.command("list")
@click.option("--kind", type=click.Choice(get_args(catalog.Kind)), help="List only this kind.")
@of_organization(required=False, help="Leave out aliases of other organizations.")
def list_models(kind: catalog.Kind | None, organization: str | None) -> None:
    """List models with their prices, retired models, and aliases."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        return Rows(
            rows=await read_all(
                lambda after, limit: catalog.list_names(
                    database, after, limit, organization_id, kind
                )
            ),
            columns=COLUMNS,
            empty="No models are known yet: the service asks Venice for them once it runs.",
        )

    with_database(work)


@models.command("deprecated")
@click.option(
    "--days",
    type=WholeNumber(1, 366),
    default="30",
    show_default=True,
    help="Look at the calls of so many days.",
)
def list_deprecated(days: int) -> None:
    """List deprecated models that were used, and who used them."""

    async def work(database: Database, _: Keyring) -> Result:
        used = await usage_reports.deprecated_models_used(database, days)
        return Rows(
            rows=[(model, user) for model in used for user in model.users],
            columns=USERS,
            as_json=used,
            empty=f"No deprecated model was used within {days} days.",
            next_steps=[f"rialto models set ALIAS {used[0].replacement or 'MODEL'}"]
            if used
            else [],
        )

    with_database(work)


@models.command("set")
@click.argument("alias")
@click.argument("targets", nargs=-1, required=True)
@of_organization(required=False, help=OWNER)
def set_alias(alias: str, targets: tuple[str, ...], organization: str | None) -> None:
    """Point ALIAS at TARGETS, best first. Takes effect on every replica within seconds."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        new = catalog.NewAlias(targets=list(targets), organization_id=organization_id)
        async with database.transaction() as conn:
            await catalog.set_alias(conn, COMMAND_LINE, alias, new)
        return Rows(
            rows=[await catalog.find_alias(database, alias, organization_id)],
            columns=COLUMNS[:3],
        )

    with_database(work)


@models.command("delete")
@click.argument("alias")
@of_organization(required=False, help=OWNER)
@asks_first
def delete_alias(alias: str, organization: str | None) -> None:
    """Delete an alias. Calls that name it are refused within seconds."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        found = await catalog.find_alias(database, alias, organization_id)
        confirm(f"Delete the alias {alias}, which leads to {_leads_to(found)}?")
        async with database.transaction() as conn:
            await catalog.remove_alias(conn, COMMAND_LINE, alias, organization_id)
        return Rows(rows=[found], columns=COLUMNS[:3])

    with_database(work)
