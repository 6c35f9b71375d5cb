"""``python -m service ledger`` and ``usage``."""

import sys
from datetime import datetime
from typing import Any, BinaryIO, get_args
from uuid import UUID

import click

from service import accounts, ledger
from service.commands.parameters import DAY, WholeNumber
from service.commands.work import COMMAND_LINE, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import rollups, usage
from service.reports.entries import EntryFilter, search


@click.group("ledger")
def ledger_group() -> None:
    """Read and amend the ledger."""


@ledger_group.command("list")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--limit", type=WholeNumber(1, 1000), default=20)
def list_ledger(organization_id: UUID, limit: int) -> None:
    """List the newest entries."""

    async def work(database: Database, _: Keyring) -> Any:
        wanted = EntryFilter(organization_id=organization_id)
        return (await search(database, wanted, None, limit)).entries

    with_database(work)


@ledger_group.command("export")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--format", "export_format", type=click.Choice(["csv", "jsonl"]), default="csv")
@click.option("--from", "start", type=DAY, metavar="DAY", help="Start at this day, UTC.")
@click.option("--to", "end", type=DAY, metavar="DAY", help="End before this day, UTC.")
@click.option(
    "--output",
    type=click.File("wb"),
    default="-",
    help="Write to this file instead of standard output.",
)
def export_ledger(
    organization_id: UUID,
    export_format: ledger.ExportFormat,
    start: datetime | None,
    end: datetime | None,
    output: BinaryIO,
) -> None:
    """Export the entries settled in a period, oldest first. Default: this month."""

    async def work(database: Database, _: Keyring) -> Any:
        since, until = await _period(database, start, end)
        await accounts.find_organization(database, organization_id)
        count = 0
        async for lines, entries in ledger.export(
            database, organization_id, export_format, since, until
        ):
            output.write(lines)
            count += entries
            if sys.stderr.isatty():
                click.echo(f"\r{count:,} entries", nl=False, err=True)
        click.echo(f"\r{count:,} entries" if sys.stderr.isatty() else f"{count} entries", err=True)
        return []

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

    async def work(database: Database, _: Keyring) -> Any:
        organization_id = await ledger.find_owner(database, entry_id)
        new = ledger.NewCredit(usd=usd, note=note, id=credit_id)
        async with database.transaction() as conn:
            made = await ledger.credit(conn, COMMAND_LINE, organization_id, entry_id, new)
        return await ledger.find_entry(database, organization_id, made)

    with_database(work)


@ledger_group.command("retain")
@click.option("--months", type=WholeNumber(1, 1200), required=True, help="Keep this many months.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show the months, drop none.")
def retain(months: int, is_dry_run: bool) -> None:
    """Drop months that ended at least this long ago. This cannot be undone.

    Export the entries first if you need them. Prints each month with its totals.
    """

    async def work(database: Database, _: Keyring) -> Any:
        if is_dry_run:
            return await ledger.expired(database, months)
        return await ledger.retain(database, COMMAND_LINE, months)

    with_database(work)


@ledger_group.command("rebuild-usage")
def rebuild_usage() -> None:
    """Count usage again from the entries, day by day.

    Reports stay right and calls continue meanwhile.
    """

    async def work(database: Database, _: Keyring) -> Any:
        days = 0
        async for day in rollups.rebuild(database):
            days += 1
            if sys.stderr.isatty():
                click.echo(f"\r{day:%Y-%m-%d}", nl=False, err=True)
        click.echo(f"\r{days} days" if sys.stderr.isatty() else f"{days} days", err=True)
        return []

    with_database(work)


@click.command("usage")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--group-by", type=click.Choice(get_args(usage.GroupBy)), default="day")
@click.option("--from", "start", type=DAY, metavar="DAY", help="Start at this day, UTC.")
@click.option("--to", "end", type=DAY, metavar="DAY", help="End before this day, UTC.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead of a table.")
def show_usage(
    organization_id: UUID,
    group_by: usage.GroupBy,
    start: datetime | None,
    end: datetime | None,
    is_json: bool,
) -> None:
    """Show the usage of a period. Default: this month."""

    async def work(database: Database, _: Keyring) -> Any:
        since, until = await _period(database, start, end)
        await accounts.find_organization(database, organization_id)
        wanted = usage.Filter(start=since, end=until)
        report = await usage.report(database, organization_id, group_by, wanted)
        if is_json:
            return report
        _print_report(report)
        return []

    with_database(work)


def _print_report(report: usage.Report) -> None:
    """Print the report as a table."""
    rows: list[tuple[str, usage.Sums]] = [(group.key or "-", group) for group in report.groups]
    rows.append(("total", report.total))
    width = max(len(report.group_by), *(len(key) for key, _ in rows))
    click.echo(f"{report.group_by:{width}} {'calls':>9} {'input':>13} {'output':>13} {'USD':>18}")
    for key, sums in rows:
        click.echo(
            f"{key:{width}} {sums.calls:>9,} {sums.input_tokens:>13,} {sums.output_tokens:>13,}"
            f" {sums.cost_usd:>18}"
        )
    if report.is_cut:
        click.echo(
            f"Showing the first {len(report.groups):,} groups. The total includes all groups."
        )
    if report.total.unknown_costs:
        click.echo(f"The cost of {report.total.unknown_costs:,} calls is unknown.")


async def _period(
    database: Database, start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    now = await database.now()
    since = start or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    until = end or now
    if since >= until:
        raise click.BadParameter("must be before --to", param_hint="--from")
    return since, until
