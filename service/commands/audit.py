"""``python -m service audit``."""

from typing import Any
from uuid import UUID

import click

from service import accounts, audit, ledger
from service.background import proofs
from service.commands.work import COMMAND_LINE, with_database
from service.crypto import Keyring
from service.database.connections import Database
from service.errors import Conflict


@click.command("audit")
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
            wanted = [found async for found in proofs.every_organization(database)]
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
    return f"{fault.id} {what}: recorded {fault.recorded}, expected {fault.expected}"
