"""``rialto calls``."""

from typing import Final

import click

from service.commands.output import Column, Command, Result, Rows
from service.commands.parameters import WholeNumber, of_organization, optional_organization
from service.commands.work import with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import calls

COLUMNS: Final = (
    Column("age", lambda call: call.age_s * 1000, "milliseconds"),
    Column("organization", "organization_name"),
    Column("key", "key_name"),
    Column("model", "model"),
    Column("endpoint", "endpoint", is_optional=True),
    Column("held", "held_usd", "usd", "unknown"),
    Column("tokens", "held_tokens", "count", is_optional=True),
    Column("stream", "is_stream", is_optional=True),
    Column("request", "request_id", "id", is_optional=True),
)


@click.command("calls", cls=Command)
@of_organization(required=False, help="List calls of this organization. Default: all.")
@click.option("--limit", type=WholeNumber(1, 1000), default="100", show_default=True)
def list_calls(organization: str | None, limit: int) -> None:
    """List the calls in flight, with what is held for each, the oldest first."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        found = await calls.in_flight(database, organization_id, limit)
        return Rows(rows=found, columns=COLUMNS, empty="No call is in flight.")

    with_database(work)
