"""``rialto usage``."""

import shlex
from datetime import datetime
from typing import Any, Final, get_args

import click

from service import accounts
from service.commands.output import Column, Command, Result, Rows
from service.commands.parameters import (
    TAG,
    in_period,
    of_organization,
    optional_key,
    optional_organization,
    period,
)
from service.commands.work import with_database
from service.crypto import Keyring
from service.database.database import Database
from service.reports import usage as usage_reports
from service.reports.usage import Filter, GroupBy, Report

NOBODY: Final = "(none)"


@click.command("usage", cls=Command)
@of_organization(required=False, help="Sum only this organization. Default: all.")
@click.option("--group-by", type=click.Choice(get_args(GroupBy)), default="day", show_default=True)
@in_period
@click.option("--key", metavar="NAME", help="Sum only this key, by name, prefix or id.")
@click.option("--end-user", help="Sum only the end user with this name. Needs --organization.")
@click.option("--model", help="Sum only this model.")
@click.option("--tag", type=TAG, metavar="NAME=VALUE", help="Sum only calls with this tag.")
def show_usage(
    organization: str | None,
    group_by: GroupBy,
    start: datetime | None,
    end: datetime | None,
    key: str | None,
    end_user: str | None,
    **stated: Any,
) -> None:
    """Sum calls, tokens, costs and times of a period. Default: this month."""
    if end_user is not None and organization is None:
        raise click.UsageError("Give --organization too: names of end users are its own.")

    async def work(database: Database, keyring: Keyring) -> Result:
        since, until = await period(database, start, end)
        organization_id = await optional_organization(database, organization)
        digest = None
        if end_user is not None and organization_id is not None:
            digest = await accounts.end_user_digest(database, keyring, organization_id, end_user)
        wanted = Filter(
            start=since,
            end=until,
            api_key_id=await optional_key(database, key, organization_id),
            end_user=digest,
            **stated,
        )
        report = await usage_reports.report(database, organization_id, group_by, wanted)
        return _rows(report, organization)

    with_database(work)


def _rows(report: Report, organization: str | None) -> Rows:
    notes = []
    if report.is_cut:
        notes.append(
            f"Showing the first {len(report.groups):,} groups. The total includes all groups."
        )
    if report.total.unknown_costs:
        notes.append(f"The cost of {report.total.unknown_costs:,} calls is unknown.")
    one = "" if organization is None else f" --organization {shlex.quote(organization)}"
    return Rows(
        rows=report.groups,
        columns=(
            Column(report.group_by.replace("_", " "), _group_name),
            Column("calls", "calls", "count"),
            Column("failures", "failures", "count"),
            Column("input", "input_tokens", "count"),
            Column("output", "output_tokens", "count"),
            Column("cost", "cost_usd", "usd"),
            Column("first byte p95", "first_byte_p95_ms", "milliseconds"),
            Column("p95", "duration_p95_ms", "milliseconds", is_optional=True),
            Column("first byte p50", "first_byte_p50_ms", "milliseconds", is_optional=True),
            Column("p50", "duration_p50_ms", "milliseconds", is_optional=True),
        ),
        empty=f"No calls from {report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M} UTC.",
        total=report.total if report.groups else None,
        as_json=[report],
        notes=notes,
        next_steps=[f"rialto ledger list{one}"],
    )


def _group_name(sums: Any) -> str:
    """The name of a group where its key is an id, ``total`` for the sums of all."""
    if not hasattr(sums, "key"):
        return "total"
    return getattr(sums, "name", None) or sums.key or NOBODY
