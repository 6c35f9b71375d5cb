"""``rialto audit-events``."""

from typing import Any, Final

import click

from service.commands.output import Column, Command, Result, Rows
from service.commands.parameters import WholeNumber, of_organization, optional_organization
from service.commands.work import with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import events
from service.reports.events import EventFilter, EventLine


def _detail(event: EventLine) -> str:
    """The detail of an event on one line, as ``name=value``."""
    stated: Any = event.detail
    shown = {name: value for name, value in stated.items() if value not in (None, False)}
    return " ".join(f"{name}={value}" for name, value in shown.items())


COLUMNS: Final = (
    Column("when", "created_at", "time"),
    Column("who", lambda event: event.actor_name or event.actor),
    Column("did", "action"),
    Column("to", lambda event: event.target_name or event.target, is_cut=True),
    Column("organization", "organization_name", is_optional=True),
    Column("what", _detail, is_cut=True),
)


@click.command("audit-events", cls=Command)
@of_organization(required=False, help="List changes in this organization. Default: all.")
@click.option("--action", help="Only actions that begin so: limit, limit.change.")
@click.option("--actor", help="Only changes by this key, by name, prefix or id, or by operator.")
@click.option("--limit", type=WholeNumber(1, 1000), default="20", show_default=True)
def list_audit_events(
    organization: str | None, action: str | None, actor: str | None, limit: int
) -> None:
    """List who changed what, the newest first."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        by = None if actor is None else await events.find_actor(database, actor, organization_id)
        wanted = EventFilter(
            organization_id=organization_id,
            actor=by,
            action=action,
        )
        page = await events.search(database, wanted, None, limit)
        return Rows(
            rows=page.events,
            columns=COLUMNS,
            empty="There are no such events.",
            notes=[f"The newest {limit} of more."] if page.next is not None else [],
            next_steps=["rialto audit"],
        )

    with_database(work)
