"""``rialto ledger``."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, BinaryIO, Final
from uuid import UUID

import click

from service import accounts, ledger
from service.commands.output import Column, CommandGroup, Facts, Result, Rows
from service.commands.parameters import (
    TAG,
    USD,
    WholeNumber,
    in_period,
    of_organization,
    optional_key,
    optional_organization,
    period,
)
from service.commands.progress import progress
from service.commands.prompts import asks_first, confirm
from service.commands.work import COMMAND_LINE, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.ledger import Outcome
from service.ledger.retention import Month
from service.reports import entries, rollups
from service.reports.entries import EntryFilter

KINDS: Final = ("call", "correction", "credit", "unattributed")
COLUMNS: Final = (
    Column("settled", "counted_at", "time"),
    Column("model", "model", none=""),
    Column("outcome", lambda entry: entry.outcome or entry.kind, "state"),
    Column("input", "input_tokens", "count"),
    Column("output", "output_tokens", "count"),
    Column("cost", "cost_usd", "usd", "unknown"),
    Column("key", "key_name", is_optional=True),
    Column("organization", "organization_name", is_optional=True),
    Column("took", "duration_ms", "milliseconds", is_optional=True),
    Column("request", "request_id", "id", is_optional=True),
)
ENTRY_COLUMNS: Final = (
    Column("id", "id", "id"),
    Column("kind", "kind"),
    Column("amends", "amends_id", "id", ""),
    Column("cost", "cost_usd", "usd", "unknown"),
    Column("cost source", "cost_source"),
    Column("note", "note", none=""),
    Column("model", "model", none=""),
    Column("settled", "counted_at", "time"),
)
MONTH_COLUMNS: Final = (
    Column("month", "month"),
    Column("organizations", "organizations", "count"),
    Column("entries", "entries", "count"),
    Column("requests", "requests", "count"),
    Column("tokens", "tokens", "count"),
    Column("cost", "cost_usd", "usd"),
    Column("dropped", "is_dropped", "state"),
)


@click.group("ledger", cls=CommandGroup)
def ledger_group() -> None:
    """Search, export and amend the ledger."""


@ledger_group.command("list")
@of_organization(required=False, help="List entries of this organization. Default: all.")
@click.option("--key", metavar="NAME", help="Only this key, by name, prefix or id.")
@click.option("--request", "request_id", help="Only this request, whenever it was.")
@click.option("--model", help="Only this model.")
@click.option("--outcome", type=click.Choice([one.value for one in Outcome]))
@click.option("--endpoint", help="Only this endpoint, such as /chat/completions.")
@click.option("--end-user", help="Only the end user with this name. Needs --organization.")
@click.option("--tag", type=TAG, metavar="NAME=VALUE", help="Only calls with this tag.")
@click.option("--cost-over", type=USD, metavar="USD", help="Only entries that cost more.")
@click.option("--kind", type=click.Choice(KINDS))
@in_period
@click.option("--limit", type=WholeNumber(1, 1000), default=20, show_default=True)
def list_ledger(
    organization: str | None,
    key: str | None,
    end_user: str | None,
    limit: int,
    cost_over: int | None,
    **stated: Any,
) -> None:
    """List the newest entries that fit, the newest first."""
    if end_user is not None and organization is None:
        raise click.UsageError("Give --organization too: names of end users are its own.")

    async def work(database: Database, keyring: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        digest = None
        if end_user is not None and organization_id is not None:
            digest = await accounts.end_user_digest(database, keyring, organization_id, end_user)
        wanted = EntryFilter(
            organization_id=organization_id,
            api_key_id=await optional_key(database, key, organization_id),
            end_user=digest,
            cost_over_nanos=cost_over,
            **stated,
        )
        page = await entries.search(database, wanted, None, limit)
        newest = next((one.request_id for one in page.entries if one.request_id), "ID")
        return Rows(
            rows=page.entries,
            columns=COLUMNS,
            empty="No entry fits.",
            notes=[f"The newest {limit} of more."] if page.next is not None else [],
            next_steps=[f"rialto requests show {newest}"],
        )

    with_database(work)


@ledger_group.command("export")
@of_organization()
@click.option("--format", "export_format", type=click.Choice(["csv", "jsonl"]), default="csv")
@in_period
@click.option(
    "--output",
    type=click.File("wb"),
    default="-",
    help="Write to this file instead of standard output.",
)
def export_ledger(
    organization: str,
    export_format: ledger.ExportFormat,
    start: datetime | None,
    end: datetime | None,
    output: BinaryIO,
) -> None:
    """Export the entries settled in a period, oldest first. Default: this month."""

    async def work(database: Database, _: Keyring) -> Result:
        since, until = await period(database, start, end)
        organization_id = await accounts.find_organization_id(database, organization)
        total = None
        if sys.stderr.isatty():
            total = await ledger.count_entries(database, organization_id, since, until)
        count = 0
        with progress("entries", total) as advance:
            async for lines, number in ledger.export(
                database, organization_id, export_format, since, until
            ):
                output.write(lines)
                count += number
                advance(number)
        click.echo(f"{count:,} entries" if sys.stderr.isatty() else f"{count} entries", err=True)
        return None

    with_database(work)


@ledger_group.command("credit")
@click.argument("entry_id", type=click.UUID)
@click.option("--usd", required=True, metavar="0.05", help="Set the amount in US dollars.")
@click.option("--note", required=True, help="Give the reason. It is recorded in the ledger.")
@click.option(
    "--id",
    "credit_id",
    type=click.UUID,
    help="Use this new UUIDv7 for the entry. Repeating the command within a day has no effect.",
)
def credit(entry_id: UUID, usd: str, note: str, credit_id: UUID | None) -> None:
    """Credit money of a call. Adds an entry and frees room in the call's limits."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await ledger.find_owner(database, entry_id)
        new = ledger.NewCredit(usd=usd, note=note, id=credit_id)
        async with database.transaction() as conn:
            made = await ledger.credit(conn, COMMAND_LINE, organization_id, entry_id, new)
        return Facts(
            item=await ledger.find_entry(database, organization_id, made), columns=ENTRY_COLUMNS
        )

    with_database(work)


@ledger_group.command("retain")
@click.option("--months", type=WholeNumber(1, 1200), required=True, help="Keep this many months.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show the months, drop none.")
@asks_first
def retain(months: int, is_dry_run: bool) -> None:
    """Drop months that ended at least this long ago. This cannot be undone.

    Export the entries first if you need them. Prints each month with its totals.
    """

    async def work(database: Database, _: Keyring) -> Result:
        found = await ledger.expired(database, months)
        if found and not is_dry_run:
            confirm(_question(found))
            with progress("months", len(found)) as advance:
                found = await ledger.retain(database, COMMAND_LINE, months, lambda _: advance(1))
        return Rows(
            rows=found,
            columns=MONTH_COLUMNS,
            empty=f"No month ended {months} months ago or more.",
            next_steps=[f"rialto ledger retain --months {months}"] if is_dry_run else [],
        )

    with_database(work)


@ledger_group.command("rebuild-usage")
def rebuild_usage() -> None:
    """Count usage again from the entries, day by day.

    Reports stay right and calls continue meanwhile.
    """

    async def work(database: Database, _: Keyring) -> Result:
        days = 0
        with progress("days", None) as advance:
            async for _day in rollups.rebuild(database):
                days += 1
                advance(1)
        click.echo(f"days counted: {days}", err=True)
        return None

    with_database(work)


def _question(months: Sequence[Month]) -> str:
    count = sum(month.entries for month in months)
    span = months[0].month if len(months) == 1 else f"{months[0].month} to {months[-1].month}"
    return f"Drop {span} with {count:,} entries? This cannot be undone."
