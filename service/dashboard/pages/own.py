"""The pages of a key's holder: what its key may still use, what it used, and what was refused.

Each of them asks for the viewer's own key, so no page has anything of another key.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.api.queries import Moment, OptionalId, Text, id_of, text_of
from service.dashboard import charts, formats
from service.dashboard.charts import Chart, Point
from service.dashboard.page import Page
from service.dashboard.paths import url
from service.derived import RefusalFilter, list_refusals
from service.ledger import Outcome
from service.reports import entries, usage
from service.reports.entries import EntryFilter
from service.reports.usage import Filter, Report

RECENT: Final = 8
PAGE: Final = 50
DAYS: Final = 30


class CallsQuery(msgspec.Struct, kw_only=True):
    """The calls to show. ``before`` is the ``next`` of the page before."""

    model: Text | UnsetType = UNSET
    outcome: Text | UnsetType = UNSET
    request_id: Text | UnsetType = UNSET
    start: Moment | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Moment | UnsetType = msgspec.field(name="to", default=UNSET)
    before: Text | UnsetType = UNSET


class RefusalsQuery(msgspec.Struct, kw_only=True):
    """The refusals to show. ``before`` is the ``next`` of the page before."""

    code: Text | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    before: OptionalId | UnsetType = UNSET


def own_key_id(page: Page) -> UUID:
    """The viewer's key.

    :raises TypeError: for the operator's key of the settings, which these pages are not for.
    """
    key_id = page.viewer.api_key_id
    if key_id is None:
        raise TypeError("The operator's key has no pages of its own.")
    return key_id


async def show(page: Page) -> web.StreamResponse:
    """What is left, what the last 30 days were used for, and the last calls and refusals. An
    administrator's key makes no calls, so its page is that of the key."""
    if page.viewer.role != "inference":
        return page.redirect("own_key")
    database, organization_id = page.database, page.viewer.caller.organization_id
    key_id = own_key_id(page)
    today = page.now.replace(hour=0, minute=0, second=0, microsecond=0)
    start = today - timedelta(days=DAYS - 1)
    wanted = Filter(start=start, end=page.now, api_key_id=key_id)
    by_day = await page.part(usage.report, database, organization_id, "day", wanted)
    return await page.render(
        "own.html",
        key=await accounts.find_key(database, key_id),
        limits=await page.part(ledger.list_binding, database, organization_id, key_id, b""),
        by_day=by_day,
        by_model=await page.part(usage.report, database, organization_id, "model", wanted),
        chart=None if by_day is None else _cost_by_day(by_day, start, today),
        calls=await page.part(entries.search, database, own_entries(page), None, RECENT),
        refusals=await page.part(list_refusals, database, own_refusals(page), None, RECENT),
        start=start,
        days=DAYS,
    )


async def calls(page: Page) -> web.StreamResponse:
    """The key's calls, newest first."""
    query = page.query(CallsQuery)
    wanted = msgspec.structs.replace(
        own_entries(page),
        model=text_of(query.model),
        outcome=text_of(query.outcome),
        request_id=text_of(query.request_id),
        start=None if query.start is UNSET else query.start.at,
        end=None if query.end is UNSET else query.end.at,
    )
    before = text_of(query.before)
    found = await page.part(entries.search, page.database, wanted, before, PAGE)
    filters = _stated(page, "model", "outcome", "request_id", "from", "to")
    return await page.render(
        "own_calls.html", found=found, outcomes=[str(outcome) for outcome in Outcome], **filters
    )


async def refusals(page: Page) -> web.StreamResponse:
    """The key's refusals, newest first, each with the numbers that prove it."""
    query = page.query(RefusalsQuery)
    wanted = msgspec.structs.replace(
        own_refusals(page), code=text_of(query.code), model=text_of(query.model)
    )
    found = await page.part(list_refusals, page.database, wanted, id_of(query.before), PAGE)
    return await page.render("own_refusals.html", found=found, **_stated(page, "code", "model"))


def own_entries(page: Page) -> EntryFilter:
    """The ledger entries of the viewer's key."""
    return EntryFilter(
        organization_id=page.viewer.caller.organization_id, api_key_id=own_key_id(page)
    )


def own_refusals(page: Page) -> RefusalFilter:
    """The refusals of the viewer's key."""
    return RefusalFilter(
        organization_id=page.viewer.caller.organization_id, api_key_id=own_key_id(page)
    )


def _stated(page: Page, *names: str) -> dict[str, Any]:
    """What a list shows of its filters: their texts, whether there are any, and the links to other
    pages of the list."""
    filters = {name: page.request.query.get(name, "") for name in names}
    return {
        "filters": filters,
        "links": {f"{name}_": text for name, text in filters.items()},
        "is_filtered": any(filters.values()),
        "is_later": bool(page.request.query.get("before")),
    }


def _cost_by_day(report: Report, start: datetime, today: datetime) -> Chart:
    """One column for each day, days without calls included."""
    cost = {group.key: group for group in report.groups}
    points: list[Point] = []
    day = start
    while day <= today:
        label = f"{day:%Y-%m-%d}"
        group = cost.get(label)
        amount = "0" if group is None else group.cost_usd
        calls = 0 if group is None else group.calls
        points.append(
            Point(
                label=label,
                value=Decimal(amount),
                text=f"{formats.usd(amount)}, {calls:,} {'call' if calls == 1 else 'calls'}",
                url=_calls_of_day(day),
            )
        )
        day += timedelta(days=1)
    return charts.columns(points)


def _calls_of_day(day: datetime) -> str:
    from_, to = f"{day:%Y-%m-%d}", f"{day + timedelta(days=1):%Y-%m-%d}"
    return url("own_calls", from_=from_, to=to)
