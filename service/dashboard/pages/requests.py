"""Requests: the ledger with its search, and the calls in flight."""

from typing import Final, Literal
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service.api.lists import KindName, OutcomeName, Usd
from service.api.queries import OptionalId, Tag, Text, id_of, text_of
from service.dashboard import lookups
from service.dashboard.filters import PeriodQuery, filters_of, period_of
from service.dashboard.page import PART_HEADER, Page
from service.errors import ClientError
from service.ledger import Outcome
from service.reports import calls, entries
from service.reports.entries import EntryFilter

PAGE: Final = 50
CALLS_PAGE: Final = 100
FILTERS: Final = (
    "request_id",
    "organization",
    "key",
    "model",
    "outcome",
    "endpoint",
    "end_user",
    "tag",
    "cost_over",
    "kind",
    "from",
    "to",
)
RARE: Final = ("endpoint", "end_user", "tag", "cost_over", "kind", "from", "to")
"""The filters that the form shows on demand, or if one of them is set."""
NEWEST: Final = "newest"
"""The part of the page that loads again by itself, as the script asks for it."""


class RequestsQuery(PeriodQuery, kw_only=True):
    """The ledger entries to find. ``before`` is the ``next`` of the page before. With ``live`` the
    first page loads again by itself."""

    organization: Text | UnsetType = UNSET
    key: Text | UnsetType = UNSET
    request_id: Text | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    outcome: OutcomeName | UnsetType = UNSET
    endpoint: Text | UnsetType = UNSET
    end_user: Text | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    cost_over: Usd | UnsetType = UNSET
    kind: KindName | UnsetType = UNSET
    before: Text | UnsetType = UNSET
    live: Literal["1"] | UnsetType = UNSET


class CallsQuery(msgspec.Struct, kw_only=True):
    """The calls in flight to show. ``after`` is the last call of the page before."""

    organization: Text | UnsetType = UNSET
    after: OptionalId | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The entries that fit the filters, newest first. What is wrong with a filter is shown beside
    it."""
    found, is_live = None, False
    try:
        query = page.query(RequestsQuery)
        wanted = await _wanted(page, query)
        before = text_of(query.before)
        is_live = query.live is not UNSET and before is None
        found = await page.part(entries.search, page.database, wanted, before, PAGE)
    except ClientError as error:
        page.error = error
    filters = filters_of(page, FILTERS)
    is_part = is_live and page.request.headers.get(PART_HEADER) == NEWEST
    return await page.render(
        "requests_newest.html" if is_part else "requests.html",
        found=found,
        is_live=is_live,
        newest=NEWEST,
        has_organizations=page.viewer.is_operator and not filters["filters"]["organization"],
        has_rare=any(filters["filters"][name] for name in RARE),
        outcomes=[("", "any"), *((one.value, one.value.replace("_", " ")) for one in Outcome)],
        **filters,
    )


async def _wanted(page: Page, query: RequestsQuery) -> EntryFilter:
    """The filter that the query states.

    :raises ClientError: when it names nothing that the viewer sees, or its period is empty.
    """
    start, end = period_of(query)
    organization_id = await lookups.organization_id_of(page, text_of(query.organization))
    return EntryFilter(
        organization_id=organization_id,
        api_key_id=await lookups.key_id_of(page, text_of(query.key), organization_id),
        request_id=text_of(query.request_id),
        model=text_of(query.model),
        outcome=None if query.outcome is UNSET else query.outcome.name,
        endpoint=text_of(query.endpoint),
        end_user=await lookups.end_user_of(page, text_of(query.end_user), organization_id),
        tag=None if query.tag is UNSET else query.tag.pair,
        cost_over_nanos=None if query.cost_over is UNSET else query.cost_over.nanos,
        kind=None if query.kind is UNSET else query.kind.name,
        start=start,
        end=end,
    )


async def show_calls(page: Page) -> web.StreamResponse:
    """The calls in flight, oldest first."""
    found = None
    after: UUID | None = None
    try:
        query = page.query(CallsQuery)
        after = id_of(query.after)
        organization_id = await lookups.organization_id_of(page, text_of(query.organization))
        found = await page.part(
            calls.in_flight, page.database, organization_id, CALLS_PAGE + 1, after
        )
    except ClientError as error:
        page.error = error
    filters = filters_of(page, ("organization",), cursor="after")
    return await page.render(
        "calls.html",
        found=None if found is None else found[:CALLS_PAGE],
        next_id=found[CALLS_PAGE - 1].id if found and len(found) > CALLS_PAGE else None,
        has_organizations=page.viewer.is_operator and not filters["filters"]["organization"],
        **filters,
    )
