"""What an organization used: sums by day, model, key and more, and by its end users."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import ledger
from service.accounts import Organization
from service.api.queries import Tag, Text, text_of
from service.dashboard import lookups
from service.dashboard.charts import Chart
from service.dashboard.filters import PeriodQuery, filters_of, input_time, period_of
from service.dashboard.page import Page
from service.dashboard.paths import url
from service.dashboard.spending import cost_over_time, start_of_day, start_of_month
from service.errors import ClientError
from service.reports import usage
from service.reports.usage import Filter, Group, Report

By = Literal["day", "hour", "model", "key", "endpoint", "outcome", "end_user", "tag"]

FILTERS: Final = ("group_by", "key", "model", "end_user", "tag", "from", "to")
LABELS: Final = {
    "day": "Day",
    "hour": "Hour",
    "model": "Model",
    "key": "Key",
    "endpoint": "Endpoint",
    "outcome": "Outcome",
    "end_user": "End user",
    "tag": "Tag",
}
SLOW: Final = ("end_user", "tag")
"""The groups that no roll-up has."""
SHOWN: Final = 100
"""Groups that the page shows; the total has all of them."""
SHOWN_LIMITS: Final = 50
SHORT_DAYS: Final = 7
"""The days of a report that has to read each entry, if no period is stated."""
FIRST_ID: Final = UUID(int=0)


class UsageQuery(PeriodQuery, kw_only=True):
    """By what is summed, and which entries. Without a period it is this month until now, or the
    last days if each entry has to be read."""

    group_by: By = "day"
    key: Text | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    end_user: Text | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET


class EndUsersQuery(msgspec.Struct, kw_only=True):
    """The end user to look up, by the plain name or as ``digest:<hex>``."""

    end_user: Text | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The sums of a period."""
    organization = await lookups.organization_of(page)
    group_by: By = "day"
    report = None
    try:
        query = page.query(UsageQuery)
        group_by = query.group_by
        wanted = await _wanted(page, query, organization)
        report = await page.part(usage.report, page.database, organization.id, group_by, wanted)
    except ClientError as error:
        page.error = error
    filters = filters_of(page, FILTERS)
    base = base_links(organization.id, report, filters["links"])
    return await page.render(
        "organization_usage.html",
        organization=organization,
        report=report,
        groups=shown_groups(report),
        chart=None if report is None else _chart(report, base),
        group_by=group_by,
        labels=LABELS,
        shown=SHOWN,
        base=base,
        links_of=links_of,
        failures_url=failures_url,
        **filters,
    )


async def show_end_users(page: Page) -> web.StreamResponse:
    """The last days' sums by end user, and what is known of one of them."""
    organization = await lookups.organization_of(page)
    database, owner = page.database, organization.id
    start = short_start(page.now)
    looked_up: dict[str, Any] = {"digest": None, "limits": None, "own_usage": None}
    try:
        text = text_of(page.query(EndUsersQuery).end_user)
        digest = await lookups.end_user_of(page, text, owner)
        if digest is not None:
            wanted = Filter(start=start, end=page.now, end_user=digest)
            looked_up = {
                "digest": digest.hex(),
                "limits": await page.part(
                    ledger.list_limits, database, owner, FIRST_ID, SHOWN_LIMITS, digest
                ),
                "own_usage": await page.part(usage.report, database, owner, "model", wanted),
            }
    except ClientError as error:
        page.error = error
    wanted = Filter(start=start, end=page.now)
    return await page.render(
        "organization_end_users.html",
        organization=organization,
        report=await page.part(usage.report, database, owner, "end_user", wanted),
        start=start.date(),
        days=SHORT_DAYS,
        shown=SHOWN,
        **looked_up,
        **filters_of(page, ("end_user",)),
    )


async def _wanted(page: Page, query: UsageQuery, organization: Organization) -> Filter:
    """The entries that the query asks for.

    :raises ClientError: when a filter names nothing that is there, or the period is empty.
    """
    start, end = period_of(query)
    end = end or page.now
    is_slow = query.group_by in SLOW or query.end_user is not UNSET or query.tag is not UNSET
    start = start or (short_start(end) if is_slow else start_of_month(end))
    if start >= end:
        raise ClientError("from: must be in the past.", param="from")
    text = text_of(query.key)
    return Filter(
        start=start,
        end=end,
        api_key_id=await lookups.key_id_of(page, text, organization.id),
        end_user=await lookups.end_user_of(page, text_of(query.end_user), organization.id),
        model=text_of(query.model),
        tag=None if query.tag is UNSET else query.tag.pair,
    )


def short_start(now: datetime) -> datetime:
    """The start of the last days, today included."""
    return start_of_day(now) - timedelta(days=SHORT_DAYS - 1)


def base_links(
    organization_id: UUID, report: Report | None, stated: Mapping[str, str]
) -> dict[str, Any]:
    """The filters of the list of requests that makes up the total of a report: what is stated, and
    where the period starts."""
    period = {} if report is None else {"from": input_time(report.start)}
    own = {name: text for name, text in stated.items() if name != "group_by"}
    return {"organization": organization_id, **period, **own}


def links_of(group: Any, report: Report, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """The filters of the list of requests that makes up a group; None if no filter finds it."""
    if group.key is None:
        return None
    if report.group_by in ("day", "hour"):
        start = datetime.fromisoformat(group.key).replace(tzinfo=UTC)
        return _within(report, base, start, start + _step_of(report))
    if report.group_by == "end_user":
        return {**base, "end_user": f"digest:{group.key}"}
    return {**base, report.group_by: group.key}


def failures_url(group: Any, report: Report, base: Mapping[str, Any]) -> str:
    """The URL of a group's calls by their outcomes; empty if no filter finds the group."""
    own = links_of(group, report, base)
    if own is None or report.group_by in ("endpoint", "outcome"):
        return ""
    owner = own.pop("organization")
    return url("organization_usage", **{**own, "id": owner, "group_by": "outcome"})


def shown_groups(report: Report | None) -> Sequence[Group]:
    """The groups that the page shows: of days and hours the newest, newest first, else those that
    cost most."""
    if report is None:
        return ()
    newest_first = report.group_by in ("day", "hour")
    return report.groups[: -SHOWN - 1 : -1] if newest_first else report.groups[:SHOWN]


def _step_of(report: Report) -> timedelta:
    return timedelta(hours=1) if report.group_by == "hour" else timedelta(days=1)


def _within(
    report: Report, base: Mapping[str, Any], start: datetime, end: datetime
) -> dict[str, Any]:
    """The filters of a day or an hour, as far as it is in the period of the report."""
    if "to" in base:
        end = min(end, report.end)
    return {**base, "from": input_time(max(start, report.start)), "to": input_time(end)}


def _chart(report: Report, base: Mapping[str, Any]) -> Chart | None:
    """The chart of a report over time; None of another."""
    if report.group_by not in ("day", "hour"):
        return None

    def of_column(start: datetime, end: datetime) -> str:
        return url("requests", **_within(report, base, start, end))

    return cost_over_time(report, of_column)
