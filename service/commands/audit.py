"""``rialto audit``."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import click
import msgspec

from service import accounts, audit, ledger
from service.audit import OPERATOR_ORGANIZATION_ID
from service.commands.output import Column, Command, Result, Rows
from service.commands.parameters import of_organization
from service.commands.progress import progress
from service.commands.work import COMMAND_LINE, fail, read_all, with_database
from service.crypto import Keyring
from service.database.database import Database

OPERATOR: Final = "operator"


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an organization's check.

    ``chain_breaks_at`` is the sequence number of the first audit event that does not fit, null for
    an intact chain. ``repaired`` are the faults that ``--repair`` has removed.
    """

    organization_id: UUID
    organization_name: str
    limits: int
    holds: int
    entries: int
    faults: Sequence[ledger.Fault]
    chain_breaks_at: int | None
    repaired: Sequence[ledger.Fault]

    @property
    def count(self) -> int:
        """The number of faults, a broken chain included."""
        return len(self.faults) + (self.chain_breaks_at is not None)


COLUMNS: Final = (
    Column("organization", "organization_name"),
    Column("limits", "limits", "count"),
    Column("holds", "holds", "count"),
    Column("entries", "entries", "count"),
    Column("faults", lambda one: len(one.faults), "count"),
    Column(
        "chain",
        lambda one: "intact" if one.chain_breaks_at is None else f"breaks at {one.chain_breaks_at}",
        "state",
    ),
)


@click.command("audit", cls=Command)
@of_organization(required=False, help="Check only this one.")
@click.option(
    "--repair",
    "is_repair",
    is_flag=True,
    help="Repair used and held amounts of limits. Calls continue meanwhile.",
)
def audit_books(organization: str | None, is_repair: bool) -> None:
    """Prove limits, holds, entries, usage and audit events.

    Checks limits and usage against holds and entries, and the chain of audit events. Exits with
    status 1 if there are faults. --repair never changes entries, so faults among entries and broken
    chains remain.
    """
    checked: list[Checked] = []

    async def work(database: Database, _: Keyring) -> Result:
        wanted = await _wanted(database, organization)
        with progress("organizations", len(wanted)) as advance:
            for organization_id, name in wanted:
                checked.append(await _check(database, organization_id, name, is_repair))
                advance(1)
        return Rows(
            rows=checked,
            columns=COLUMNS,
            notes=[
                *(f"repaired {_format_fault(fault)}" for one in checked for fault in one.repaired),
                *(_format_fault(fault) for one in checked for fault in one.faults),
            ],
        )

    with_database(work)
    if faults := sum(one.count for one in checked):
        advice = (
            "--repair does not change entries, holds, usage or the audit chain."
            if is_repair
            else "Use --repair to correct limits, and `ledger rebuild-usage` to correct usage."
        )
        fail(f"books_disagree: Faults found: {faults}. {advice}")


async def _wanted(database: Database, organization: str | None) -> list[tuple[UUID, str]]:
    """Return the organizations to check with their names, the operator's first."""
    if organization is not None:
        organization_id = await accounts.find_organization_id(database, organization)
        found = [await accounts.find_organization(database, organization_id)]
        return [(one.id, one.name) for one in found]
    every = await read_all(lambda after, limit: accounts.list_organizations(database, after, limit))
    return [(OPERATOR_ORGANIZATION_ID, OPERATOR), *((one.id, one.name) for one in every)]


async def _check(database: Database, organization_id: UUID, name: str, is_repair: bool) -> Checked:
    repaired: Sequence[ledger.Fault] = []
    proof = await ledger.prove(database, organization_id)
    if is_repair and proof.faults:
        async with database.transaction() as conn:
            repaired = await ledger.repair(conn, COMMAND_LINE, organization_id)
        proof = await ledger.prove(database, organization_id)
    return Checked(
        organization_id=organization_id,
        organization_name=name,
        limits=proof.limits,
        holds=proof.holds,
        entries=proof.entries,
        faults=proof.faults,
        chain_breaks_at=await audit.first_break(database, organization_id),
        repaired=repaired,
    )


def _format_fault(fault: ledger.Fault) -> str:
    what = fault.what
    if fault.window_at is not None:
        what = f"{what} since {fault.window_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{fault.id} {what}: recorded {fault.recorded}, expected {fault.expected}"
