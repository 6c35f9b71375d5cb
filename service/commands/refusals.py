"""``rialto refusals``."""

from datetime import datetime
from typing import Any, Final

import click

from service.commands.output import Column, Command, Result, Rows
from service.commands.parameters import (
    WholeNumber,
    in_period,
    of_organization,
    optional_key,
    optional_organization,
    period,
)
from service.commands.work import with_database
from service.crypto import Keyring
from service.database.database import Database
from service.derived import RefusalFilter, count_by_cause, list_refusals

COLUMNS: Final = (
    Column("when", "refused_at", "time"),
    Column("status", "status", "count"),
    Column("code", "code"),
    Column("organization", "organization_name", is_optional=True),
    Column("key", lambda one: one.key_name or one.key_prefix),
    Column("model", lambda one: one.model or one.requested_model, is_optional=True),
    Column("request", "request_id", "id"),
    Column("why", "message", is_optional=True),
)
CAUSE_COLUMNS: Final = (
    Column("code", "code"),
    Column("status", "status", "count"),
    Column("refusals", "count", "count"),
    Column("last", "last_at", "time"),
)


@click.command("refusals", cls=Command)
@of_organization(required=False, help="List refusals of this organization. Default: all.")
@click.option("--key", metavar="NAME", help="Only this key, by name, prefix or id.")
@click.option("--code", help="Only this code, such as limit_exceeded.")
@click.option("--status", type=WholeNumber(400, 599), help="Only this status.")
@click.option("--model", help="Only this model.")
@click.option("--causes", "is_by_cause", is_flag=True, help="Count the causes instead.")
@in_period
@click.option("--limit", type=WholeNumber(1, 1000), default="20", show_default=True)
def list_refused(
    organization: str | None,
    key: str | None,
    is_by_cause: bool,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    **stated: Any,
) -> None:
    """List refused calls, or count their causes.

    The newest come first. Default: this month.
    """

    if is_by_cause and (key is not None or any(one is not None for one in stated.values())):
        raise click.UsageError(
            "--causes counts all refusals of a period: leave out --key, --code, --status, --model."
        )

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        since, until = await period(database, start, end)
        if is_by_cause:
            return Rows(
                rows=await count_by_cause(database, organization_id, since, until),
                columns=CAUSE_COLUMNS,
                empty="No call was refused.",
                next_steps=["rialto refusals --code CODE"],
            )
        wanted = RefusalFilter(
            organization_id=organization_id,
            api_key_id=await optional_key(database, key, organization_id),
            start=since,
            end=until,
            **stated,
        )
        page = await list_refusals(database, wanted, None, limit)
        newest = page.refusals[0].request_id if page.refusals else "ID"
        return Rows(
            rows=page.refusals,
            columns=COLUMNS,
            empty="No call was refused.",
            notes=[f"The newest {limit} of more."] if page.next is not None else [],
            next_steps=[f"rialto requests show {newest}"] if page.refusals else [],
        )

    with_database(work)
