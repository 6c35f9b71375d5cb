"""``rialto status``."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import click
import msgspec

from service import upstream
from service.commands import probe
from service.commands.limits import NEAR, STANDING_COLUMNS
from service.commands.output import Column, Command, Facts, Result, Rows
from service.commands.work import read_command_settings, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.derived import CauseCount, count_by_cause
from service.reports import calls, standings
from service.reports import usage as usage_reports
from service.reports.funds import funds_of
from service.reports.standings import Standing
from service.reports.usage import Filter, Group
from service.settings import Settings
from service.telemetry.console import format_duration
from service.upstream import StoredKey

MAX_LISTED: Final = 10
DAY: Final = timedelta(days=1)
HOURS_A_YEAR: Final = 365 * 24


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to know at a glance.

    ``health`` and ``venice`` are what the service on this machine answers, null if none does.
    Today and this month begin at midnight UTC. ``hours_left`` is how long the largest balance of a
    key lasts at the rate of the last 24 hours, null if nobody knows.
    """

    url: str
    health: str | None
    venice: str | None
    in_flight: int
    calls_today: int
    failures_today: int
    refusals_today: int
    spent_today_usd: str
    spent_month_usd: str
    balance_usd: str | None
    hours_left: int | None
    near_limits: Sequence[Standing]
    failing_models: Sequence[Group]
    refusals: Sequence[CauseCount]
    upstream_keys: Sequence[StoredKey]


COLUMNS: Final = (
    Column("service", lambda one: one.health or "does not answer here", "state"),
    Column("address", "url"),
    Column("Venice", "venice", "state", "unknown"),
    Column("in flight", "in_flight", "count"),
    Column("spent today", "spent_today_usd", "usd"),
    Column("this month", "spent_month_usd", "usd"),
    Column("balance", "balance_usd", "usd", "unknown"),
    Column("lasts", lambda one: _format_left(one.hours_left), none="unknown"),
    Column("calls today", "calls_today", "count"),
    Column("failures", "failures_today", "count"),
    Column("refusals", "refusals_today", "count"),
)
FAILING: Final = (
    Column("model", "key", none="(none)"),
    Column("calls", "calls", "count"),
    Column("failures", "failures", "count"),
    Column("first byte p95", "first_byte_p95_ms", "milliseconds"),
)
CAUSES: Final = (
    Column("code", "code"),
    Column("refusals", "count", "count"),
    Column("last", "last_at", "time"),
)
UNWELL: Final = (
    Column("name", "name"),
    Column("status", "status", "state"),
    Column("last check", "last_check", "state", "not checked"),
    Column("balance", "balance_usd", "usd", "unknown"),
)


@click.command("status", cls=Command)
def show_status() -> None:
    """Show health, money and limits on one screen."""
    settings = read_command_settings()

    async def work(database: Database, _: Keyring) -> Result:
        asking = asyncio.create_task(_ask(settings))
        status = await _read(database, probe.own_url(settings), asking)
        parts = [
            ("Limits near their end", status.near_limits, STANDING_COLUMNS),
            ("Models that failed today", status.failing_models, FAILING),
            ("Refusals today", status.refusals, CAUSES),
            ("Venice keys", status.upstream_keys, UNWELL),
        ]
        return Facts(
            item=status,
            columns=COLUMNS,
            parts=[
                (title, Rows(rows=rows, columns=columns)) for title, rows, columns in parts if rows
            ],
            next_steps=_next_steps(status),
        )

    with_database(work)


async def _ask(settings: Settings) -> tuple[str | None, str | None]:
    """Ask the service on this machine how it and Venice are."""
    try:
        answer = await probe.ask(probe.own_url(settings), "/health/full")
    except probe.UNREACHED:
        return None, None
    health = answer.json()
    backend, database = health.get("backend"), health.get("database")
    return (database if backend == "ok" else backend), health.get("venice_api")


async def _read(
    database: Database, url: str, asking: asyncio.Task[tuple[str | None, str | None]]
) -> Status:
    now = await database.now()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    by_model = await usage_reports.report(database, None, "model", Filter(start=today, end=now))
    of_month = await usage_reports.report(database, None, "day", Filter(start=month, end=now))
    of_day = await usage_reports.report(database, None, "hour", Filter(start=now - DAY, end=now))
    refusals = await count_by_cause(database, None, today, now)
    keys = await upstream.list_stored(database)
    funds = funds_of(keys, of_day.total.cost_usd)
    health, venice = await asking
    return Status(
        url=url,
        health=health,
        venice=venice,
        in_flight=await calls.count(database),
        calls_today=by_model.total.calls,
        failures_today=by_model.total.failures,
        refusals_today=sum(cause.count for cause in refusals),
        spent_today_usd=by_model.total.cost_usd,
        spent_month_usd=of_month.total.cost_usd,
        balance_usd=None if funds.largest_usd is None else f"{funds.largest_usd:f}",
        hours_left=None if funds.hours_left is None else int(funds.hours_left),
        near_limits=await standings.near(database, None, NEAR, MAX_LISTED),
        failing_models=[group for group in by_model.groups if group.failures][:MAX_LISTED],
        refusals=refusals[:MAX_LISTED],
        upstream_keys=[key for key in keys if key.last_check not in (None, "well")],
    )


def _format_left(hours: int | None) -> str | None:
    if hours is None:
        return None
    left = "more than a year" if hours > HOURS_A_YEAR else f"about {format_duration(hours * 3600)}"
    return f"{left} at the rate of the last 24 h"


def _next_steps(status: Status) -> Sequence[str]:
    steps = []
    if status.health != "ok":
        steps.append("rialto doctor")
    if status.near_limits:
        steps.append("rialto limits list --near 80%")
    if status.refusals:
        steps.append("rialto refusals")
    return steps or ["rialto usage --group-by organization"]
