"""The command line, ``python -m service``: serving, migrating, and the operator's verbs."""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, get_args
from uuid import UUID

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports ends the process as it would any other, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import click
import msgspec
import structlog
import uvloop
from aiohttp import web

from service import __version__, accounts, audit, jobs, ledger, logs, schema, upstream
from service.audit import Actor
from service.commands import limits, models
from service.console import (
    COMMAND_LINE,
    FIRST_ID,
    database_address,
    read_settings,
    run_to_the_end,
    with_database,
)
from service.crypto import Keyring
from service.db import Database, first_connection
from service.errors import Conflict
from service.settings import Settings

log = structlog.get_logger()

MIGRATE_TIMEOUT_S: Final = 90.0
COMMAND_TIMEOUT_S: Final = 5.0
DAY: Final = click.DateTime(["%Y-%m-%d"])
LAST_ID: Final = UUID(int=2**128 - 1)


@click.group(invoke_without_command=True)
@click.version_option(__version__, prog_name="rialto")
@click.pass_context
def main(context: click.Context) -> None:
    """Rialto, the gateway for Venice AI. Without a command it serves."""
    if context.invoked_subcommand is None:
        context.invoke(serve)


main.add_command(models)
main.add_command(limits)


@main.command()
def serve() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = read_settings()
    # Not imported by the other commands.
    from service import processes, server  # noqa: PLC0415

    if settings.processes == 1:
        sys.exit(uvloop.run(server.serve(settings, _welcome(settings))))
    sys.exit(uvloop.run(processes.serve(settings)))


def _welcome(settings: Settings) -> Callable[[web.Application, int], Awaitable[None]] | None:
    """What prints the lines for a newcomer, in development."""
    from service import demo  # noqa: PLC0415

    async def welcome(app: web.Application, port: int) -> None:
        click.echo(await demo.welcome(app, port))

    return None if settings.is_production else welcome


@main.command(hidden=True)
@click.argument("number", type=int)
@click.option("--line", type=int, required=True)
@click.option("--socket", "sockets", type=int, required=True, multiple=True)
@click.option("--metrics", "metrics_directory", type=Path, required=True)
@click.option("--sandbox", "sandbox_url")
def process(
    number: int,
    line: int,
    sockets: tuple[int, ...],
    metrics_directory: Path,
    sandbox_url: str | None,
) -> None:
    """Serve as one of several processes; started by ``serve``, with descriptors of its own."""
    settings = read_settings()
    logs.configure(settings.log_level, settings.log_format, process=number)
    from service import server  # noqa: PLC0415

    parent = server.Parent(
        line=socket.socket(fileno=line),
        sockets=[socket.socket(fileno=one) for one in sockets],
        metrics_directory=metrics_directory,
        sandbox_url=sandbox_url,
    )
    welcome = _welcome(settings) if number == 1 else None
    sys.exit(uvloop.run(server.serve(settings, welcome, parent)))


@main.command()
def migrate() -> None:
    """Apply pending migrations and check the fourteen tables."""
    settings = read_settings()
    timeout_s = min(MIGRATE_TIMEOUT_S, settings.startup_database_timeout_s)

    async def run() -> None:
        async with database_address(settings) as address:
            await asyncio.to_thread(schema.apply, address, connect_timeout_s=timeout_s)
            async with first_connection(address, timeout_s) as conn:
                await schema.verify(conn)

    run_to_the_end(run())


@main.group()
def organizations() -> None:
    """Tenants."""


@organizations.command("create")
@click.argument("name")
def create_organization(name: str) -> None:
    """Make an organization."""

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            return await accounts.create_organization(conn, keyring, COMMAND_LINE, name)

    with_database(work)


@organizations.command("list")
def list_organizations() -> None:
    """List the organizations, oldest first."""
    with_database(
        lambda database, _: accounts.list_organizations(database, after=FIRST_ID, limit=1000)
    )


@main.group()
def keys() -> None:
    """Keys of callers."""


@keys.command("create")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--name", required=True)
@click.option("--role", type=click.Choice(["inference", "admin", "operator"]), default="inference")
@click.option(
    "--expires-at",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]),
    metavar="TIME",
    help="When the key ends, with a time zone, as in 2030-01-01T00:00:00Z. Without it: never.",
)
@click.option(
    "--model", "models", multiple=True, help="A model or alias that it may use; repeat for more."
)
def create_key(
    organization_id: UUID,
    name: str,
    role: accounts.Role,
    expires_at: datetime | None,
    models: tuple[str, ...],
) -> None:
    """Make a key. It is shown this once."""
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
    """Put a key out of force, at once and on every replica."""

    async def work(database: Database, _: Keyring) -> Any:
        key = await accounts.find_key(database, api_key_id)
        async with database.transaction() as conn:
            await accounts.revoke_key(conn, COMMAND_LINE, key)
        return await accounts.find_key(database, api_key_id)

    with_database(work)


@main.group("upstream-keys")
def upstream_keys() -> None:
    """The operator's keys at Venice."""


@upstream_keys.command("add")
@click.argument("name")
@click.option(
    "--organization", "organization_id", type=click.UUID, help="For the calls of this one only."
)
def add_upstream_key(name: str, organization_id: UUID | None) -> None:
    """Store a key of Venice's, sealed. It is asked for, or read from standard input."""
    is_terminal = sys.stdin.isatty()
    secret = click.prompt("Key", hide_input=True) if is_terminal else sys.stdin.readline()

    async def work(database: Database, keyring: Keyring) -> Any:
        await accounts.check_master_key(database, keyring)
        async with database.transaction() as conn:
            key_id = await upstream.add(
                conn, keyring, COMMAND_LINE, name, secret.strip(), organization_id
            )
        return [await upstream.find_stored(database, key_id)]

    with_database(work)


@upstream_keys.command("list")
def list_upstream_keys() -> None:
    """List them, with what Venice last said of their balance."""
    with_database(lambda database, _: upstream.list_stored(database))


@upstream_keys.command("check")
def check_upstream_keys() -> None:
    """Ask Venice about each key in use, at no cost, and list what it says. With status 1 when one
    is not well."""
    settings = read_settings(log_level="warning")
    if settings.venice_api_key is None:
        sys.exit("Without VENICE_API_KEY the sandbox plays Venice: there is nothing to check.")
    secret = settings.venice_api_key

    async def work(database: Database, keyring: Keyring) -> Any:
        pool = upstream.UpstreamKeys(await upstream.load(database, keyring, secret))
        async with upstream.open_venice(
            settings, base_url=settings.venice_base_url, keys=pool
        ) as venice:
            checked.extend([await upstream.check(database, venice, key) for key in pool.all])
        return checked

    checked: list[upstream.Checked] = []
    with_database(work)
    if not all(key.is_well for key in checked):
        sys.exit(1)


@upstream_keys.command("disable")
@click.argument("key_id", type=click.UUID)
def disable_upstream_key(key_id: UUID) -> None:
    """Put a key out of use, on every replica within seconds."""
    _change_upstream_key(key_id, upstream.disable)


@upstream_keys.command("enable")
@click.argument("key_id", type=click.UUID)
def enable_upstream_key(key_id: UUID) -> None:
    """Put a key that was disabled to use again."""
    _change_upstream_key(key_id, upstream.enable)


def _change_upstream_key(
    key_id: UUID, change: Callable[[Any, Actor, UUID], Awaitable[None]]
) -> None:
    async def work(database: Database, _: Keyring) -> Any:
        async with database.transaction() as conn:
            await change(conn, COMMAND_LINE, key_id)
        return [await upstream.find_stored(database, key_id)]

    with_database(work)


@main.command("audit")
@click.option("--organization", "organization_id", type=click.UUID, help="This one only.")
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Set what limits have used and hold to what is proven; calls go on meanwhile.",
)
def audit_books(organization_id: UUID | None, is_repair: bool) -> None:
    """Prove the books: limits by holds and entries, and the chain of audit events.

    One line an organization and one a fault; exit status 1 if there is any. Entries are never
    changed, so --repair leaves faults among them, and a broken chain, as they are.
    """

    async def work(database: Database, _: Keyring) -> Any:
        if organization_id is None:
            wanted = [found async for found in jobs.every_organization(database)]
        else:
            wanted = [(await accounts.find_organization(database, organization_id)).id]
        if is_repair:
            for one in wanted:
                await _repair(database, one)
        click.echo(f"{'organization':36} {'limits':>7} {'holds':>7} {'entries':>10} faults chain")
        faults = [await _proven(database, one) for one in wanted]
        if sum(faults):
            raise Conflict(f"The books do not agree: {sum(faults)} faults.", code="books_disagree")
        return []

    with_database(work)


async def _proven(database: Database, organization_id: UUID) -> int:
    """Print what is proven of an organization; how many faults there are."""
    proof = await ledger.prove(database, organization_id)
    break_at = await audit.first_break(database, organization_id)
    chain = "whole" if break_at is None else f"breaks at {break_at}"
    click.echo(
        f"{organization_id} {proof.limits:>7} {proof.holds:>7} {proof.entries:>10}"
        f" {len(proof.faults):>6} {chain}"
    )
    for fault in proof.faults:
        click.echo(f"  {_line(fault)}")
    return len(proof.faults) + (break_at is not None)


async def _repair(database: Database, organization_id: UUID) -> None:
    """Repair an organization's limits and print what was wrong with them."""
    if not (await ledger.prove(database, organization_id)).faults:
        return
    async with database.transaction() as conn:
        repaired = await ledger.repair(conn, COMMAND_LINE, organization_id)
    for fault in repaired:
        click.echo(f"repaired {_line(fault)}")


def _line(fault: ledger.Fault) -> str:
    what = fault.what
    if fault.window_at is not None:
        what = f"{what} since {fault.window_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{fault.id} {what}: {fault.stands} stands, {fault.proven} is proven"


@main.group("ledger")
def ledger_group() -> None:
    """The books."""


@ledger_group.command("list")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=20)
def list_ledger(organization_id: UUID, limit: int) -> None:
    """List the newest entries."""
    with_database(
        lambda database, _: ledger.list_entries(
            database, organization_id, before=LAST_ID, limit=limit
        )
    )


@ledger_group.command("export")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--format", "export_format", type=click.Choice(["csv", "jsonl"]), default="csv")
@click.option("--from", "start", type=DAY, metavar="DAY", help="The first day, UTC.")
@click.option("--to", "end", type=DAY, metavar="DAY", help="The day after the last, UTC.")
@click.option("--output", type=click.File("wb"), default="-", help="A file; else standard output.")
def export_ledger(
    organization_id: UUID,
    export_format: ledger.ExportFormat,
    start: datetime | None,
    end: datetime | None,
    output: BinaryIO,
) -> None:
    """Write the entries settled in a period, oldest first; without --from those of this month."""
    since, until = _period(start, end)

    async def work(database: Database, _: Keyring) -> Any:
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


@main.command("usage")
@click.option("--organization", "organization_id", type=click.UUID, required=True)
@click.option("--group-by", type=click.Choice(get_args(ledger.GroupBy)), default="day")
@click.option("--from", "start", type=DAY, metavar="DAY", help="The first day, UTC.")
@click.option("--to", "end", type=DAY, metavar="DAY", help="The day after the last, UTC.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object instead of a table.")
def show_usage(
    organization_id: UUID,
    group_by: ledger.GroupBy,
    start: datetime | None,
    end: datetime | None,
    is_json: bool,
) -> None:
    """Sum what was used in a period; without --from in this month."""
    since, until = _period(start, end)

    async def work(database: Database, _: Keyring) -> Any:
        await accounts.find_organization(database, organization_id)
        wanted = ledger.Filter(start=since, end=until)
        report = await ledger.report(database, organization_id, group_by, wanted)
        if is_json:
            return report
        _show(report)
        return []

    with_database(work)


def _show(report: ledger.Report) -> None:
    """The report as a table."""
    rows: list[tuple[str, ledger.Sums]] = [(group.key or "-", group) for group in report.groups]
    rows.append(("total", report.total))
    width = max(len(report.group_by), *(len(key) for key, _ in rows))
    click.echo(f"{report.group_by:{width}} {'calls':>9} {'input':>13} {'output':>13} {'USD':>18}")
    for key, sums in rows:
        click.echo(
            f"{key:{width}} {sums.calls:>9,} {sums.input_tokens:>13,} {sums.output_tokens:>13,}"
            f" {sums.cost_usd:>18}"
        )
    if report.is_cut:
        click.echo(f"Only the first {len(report.groups):,} groups; the total is of all.")
    if report.total.unknown_costs:
        click.echo(f"The cost of {report.total.unknown_costs:,} calls is not known.")


def _period(start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    since = (
        start.replace(tzinfo=UTC)
        if start
        else now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    )
    until = end.replace(tzinfo=UTC) if end else now
    if since >= until:
        raise click.BadParameter("must be before --to", param_hint="--from")
    return since, until


@ledger_group.command("credit")
@click.argument("entry_id", type=click.UUID)
@click.option("--usd", required=True, metavar="0.05", help="How much, in US dollars.")
@click.option("--note", required=True, help="Why; it stands in the ledger.")
@click.option(
    "--id",
    "credit_id",
    type=click.UUID,
    help="A new UUIDv7 for the entry: the same command again within a day changes nothing.",
)
def credit(entry_id: UUID, usd: str, note: str, credit_id: UUID | None) -> None:
    """Give money of a call back: an entry of its own, and room in the call's limits."""

    async def work(database: Database, _: Keyring) -> Any:
        organization_id = await ledger.find_owner(database, entry_id)
        new = ledger.NewCredit(usd=usd, note=note, id=credit_id)
        async with database.transaction() as conn:
            made = await ledger.credit(conn, COMMAND_LINE, organization_id, entry_id, new)
        return await ledger.find_entry(database, organization_id, made)

    with_database(work)


@ledger_group.command("retain")
@click.option("--months", type=click.IntRange(1, 1200), required=True, help="What to keep.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would be dropped.")
def retain(months: int, is_dry_run: bool) -> None:
    """Drop the months whose last entry is older than that. There is no way back: what is to be kept
    elsewhere is exported before. Each month is a line with its totals."""

    async def work(database: Database, _: Keyring) -> Any:
        if is_dry_run:
            return await ledger.expired(database, months)
        return await ledger.retain(database, COMMAND_LINE, months)

    with_database(work)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main(prog_name="python -m service")
