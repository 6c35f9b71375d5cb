"""``python -m service audit``."""

from typing import Any
from uuid import UUID

import click

from service import accounts, audit, ledger
from service.background import proofs
from service.commands.work import COMMAND_LINE, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.errors import Conflict


@click.command("audit")
@click.option("--organization", "organization_id", type=click.UUID, help="Check only this one.")
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Repair used and held amounts of limits. Calls continue meanwhile.",
)
def audit_books(organization_id: UUID | None, is_repair: bool) -> None:
    """Check limits and usage against holds and entries, and the audit chain.

    Prints one line per organization and one per fault. Exits with status 1 if there are faults.
    --repair never changes entries, so faults among entries and broken chains remain.
    """

    async def work(database: Database, _: Keyring) -> Any:
        if organization_id is None:
            wanted = [found async for found in proofs.every_organization(database)]
        else:
            wanted = [(await accounts.find_organization(database, organization_id)).id]
        if is_repair:
            for one in wanted:
                await _repair(database, one)
        click.echo(f"{'organization':36} {'limits':>7} {'holds':>7} {'entries':>10} faults chain")
        faults = [await _check(database, one) for one in wanted]
        if sum(faults):
            advice = (
                "--repair does not change entries, holds, usage or the audit chain."
                if is_repair
                else "Use --repair to correct limits, and `ledger rebuild-usage` to correct usage."
            )
            raise Conflict(f"Faults found: {sum(faults)}. {advice}", code="books_disagree")
        return []

    with_database(work)


async def _check(database: Database, organization_id: UUID) -> int:
    """Print the result of an organization's check. Returns the number of faults."""
    proof = await ledger.prove(database, organization_id)
    break_at = await audit.first_break(database, organization_id)
    chain = "intact" if break_at is None else f"breaks at {break_at}"
    click.echo(
        f"{organization_id} {proof.limits:>7} {proof.holds:>7} {proof.entries:>10}"
        f" {len(proof.faults):>6} {chain}"
    )
    for fault in proof.faults:
        click.echo(f"  {_format_fault(fault)}")
    return len(proof.faults) + (break_at is not None)


async def _repair(database: Database, organization_id: UUID) -> None:
    """Repair an organization's limits and print what was repaired."""
    if not (await ledger.prove(database, organization_id)).faults:
        return
    async with database.transaction() as conn:
        repaired = await ledger.repair(conn, COMMAND_LINE, organization_id)
    for fault in repaired:
        click.echo(f"repaired {_format_fault(fault)}")


def _format_fault(fault: ledger.Fault) -> str:
    what = fault.what
    if fault.window_at is not None:
        what = f"{what} since {fault.window_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{fault.id} {what}: recorded {fault.recorded}, expected {fault.expected}"
