"""Overview: what is spent, how calls end, which limits are near their end, and how Venice does."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import derived, upstream
from service.api.state import VENICE
from service.dashboard import charts
from service.dashboard.charts import Chart, Point
from service.dashboard.formats import NEAR_SHARE, usd
from service.dashboard.page import PART_HEADER, Page
from service.dashboard.paths import url
from service.reports import calls, standings, usage
from service.reports.funds import funds_of
from service.reports.usage import Filter, Report

By = Literal["organization", "key", "model"]

DAY: Final = timedelta(days=1)
SHOWN: Final = 10
RUNNING: Final = "running-calls"
"""The part that loads again by itself."""
"""Rows of each table; all others are a link away."""
DEPRECATION_DAYS: Final = 30


class OverviewQuery(msgspec.Struct, kw_only=True):
    """By what the month's spend is shown."""

    by: By | UnsetType = UNSET


class Periods(msgspec.Struct, frozen=True, kw_only=True):
    """The times that an overview compares."""

    now: datetime
    today: datetime
    month: datetime
    before_month: datetime
    """The start of the month before."""
    before_now: datetime
    """The same day and time in the month before, which may have fewer days."""

    @property
    def yesterday(self) -> datetime:
        return self.today - DAY

    @property
    def yesterday_now(self) -> datetime:
        return self.now - DAY

    @property
    def last_day(self) -> datetime:
        """The start of the last 24 hours."""
        return self.now - DAY


async def show(page: Page) -> web.StreamResponse:
    """The page that a viewer sees first. A caller has a page of its own instead."""
    if page.viewer.role == "inference":
        return page.redirect("own")
    stated = page.query(OverviewQuery).by
    by: By = stated if stated is not UNSET else "organization" if page.viewer.is_operator else "key"
    if page.request.headers.get(PART_HEADER) == RUNNING:
        running = await page.part(
            calls.in_flight, page.database, page.viewer.organization_id, SHOWN
        )
        return await page.render("overview_running.html", running=running, running_part=RUNNING)
    periods = periods_at(page.now)
    context = {
        "running_part": RUNNING,
        **await _spend(page, periods, by),
        **await _ends(page, periods),
        **await _now(page),
        "by": by,
        "periods": periods,
    }
    if page.viewer.is_operator:
        context |= await _venice(page, context["models"])
    return await page.render("overview.html", **context)


def periods_at(now: datetime) -> Periods:
    """The periods that end now, in UTC."""
    now = now.astimezone(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    before_month = (month - DAY).replace(day=1)
    return Periods(
        now=now,
        today=today,
        month=month,
        before_month=before_month,
        before_now=min(before_month + (now - month), month),
    )


async def _spend(page: Page, periods: Periods, by: By) -> dict[str, Any]:
    """What was spent today and this month, beside the same days before."""

    async def report(group_by: Any, start: datetime, end: datetime) -> Report | None:
        wanted = Filter(start=start, end=end)
        return await page.part(
            usage.report, page.database, page.viewer.organization_id, group_by, wanted
        )

    month = await report("day", periods.month, periods.now)
    before = await report("day", periods.before_month, periods.before_now)
    return {
        "month": month,
        "before": before,
        "yesterday": await report("outcome", periods.yesterday, periods.yesterday_now),
        "today": await report("outcome", periods.today, periods.now),
        "groups": await report(by, periods.month, periods.now),
        "models": await report("model", periods.last_day, periods.now),
        "chart": None if month is None else spend_chart(month, before, periods),
    }


def spend_chart(month: Report, before: Report | None, periods: Periods) -> Chart:
    """A column for each day of the month so far, with the same day of the month before behind."""
    spent = {group.key: Decimal(group.cost_usd) for group in month.groups}
    was = {group.key: Decimal(group.cost_usd) for group in before.groups} if before else {}
    points = []
    day = periods.month
    while day < periods.now:
        # A shorter month has no such day.
        other = periods.before_month + (day - periods.month)
        has_other = before is not None and other < periods.month
        value, earlier = spent.get(f"{day:%Y-%m-%d}", Decimal()), was.get(f"{other:%Y-%m-%d}")
        earlier = (earlier or Decimal()) if has_other else None
        points.append(
            Point(
                label=f"{day:%-d %b}",
                value=value,
                text=usd(value),
                before=earlier,
                before_text="" if earlier is None else usd(earlier),
                url=url("requests", from_=f"{day:%Y-%m-%d}", to=f"{day + DAY:%Y-%m-%d}"),
            )
        )
        day += DAY
    return charts.columns(points)


async def _ends(page: Page, periods: Periods) -> dict[str, Any]:
    """How requests were refused today, and which limits refuse next."""
    scope = page.viewer.organization_id
    return {
        "refusals": await page.part(
            derived.count_by_cause, page.database, scope, periods.today, periods.now
        ),
        "near": await page.part(standings.near, page.database, scope, float(NEAR_SHARE), SHOWN),
    }


async def _now(page: Page) -> dict[str, Any]:
    """What runs now."""
    scope = page.viewer.organization_id
    return {
        "running": await page.part(calls.in_flight, page.database, scope, SHOWN),
        "deprecated": await page.part(
            usage.deprecated_models_used, page.database, DEPRECATION_DAYS, scope
        ),
    }


async def _venice(page: Page, models: Report | None) -> dict[str, Any]:
    """The keys at Venice, their balances and cooldowns, and how long the balance lasts."""
    keys = await page.part(upstream.list_stored, page.database)
    return {
        "keys": keys,
        "cooldowns": page.app[VENICE].keys.cooldowns(),
        "funds": None
        if keys is None
        else funds_of(keys, None if models is None else models.total.cost_usd),
        "epoch": periods_at(page.now).today + DAY,
    }
