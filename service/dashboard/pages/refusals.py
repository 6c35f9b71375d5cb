"""Refusals: which requests were refused and why, with the numbers that prove it."""

from datetime import timedelta
from typing import Final

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service.api.lookups import Status
from service.api.queries import OptionalId, Text, id_of, text_of
from service.dashboard import lookups
from service.dashboard.filters import PeriodQuery, filters_of, period_of
from service.dashboard.page import Page
from service.derived import RefusalFilter, count_by_cause, list_refusals
from service.errors import ClientError

PAGE: Final = 50
FILTERS: Final = ("request_id", "organization", "key", "code", "status", "model", "from", "to")
CAUSES_PERIOD: Final = timedelta(days=1)
"""The period whose causes are counted if the query states none."""
MAX_CAUSES: Final = 12


class RefusalsQuery(PeriodQuery, kw_only=True):
    """The refusals to find. ``before`` is the ``next`` of the page before."""

    organization: Text | UnsetType = UNSET
    key: Text | UnsetType = UNSET
    request_id: Text | UnsetType = UNSET
    code: Text | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    before: OptionalId | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The refusals that fit the filters, newest first, and how many there were by cause."""
    found = causes = start = end = None
    try:
        query = page.query(RefusalsQuery)
        wanted = await _wanted(page, query)
        before = id_of(query.before)
        found = await page.part(list_refusals, page.database, wanted, before, PAGE + 1)
        start, end = wanted.start, wanted.end
        if before is None:
            until = end or page.now
            causes = await page.part(
                count_by_cause,
                page.database,
                wanted.organization_id,
                start or until - CAUSES_PERIOD,
                until,
            )
    except ClientError as error:
        page.error = error
    filters = filters_of(page, FILTERS)
    total = sum(cause.count for cause in causes or ())
    return await page.render(
        "refusals.html",
        found=None if found is None else found.refusals[:PAGE],
        next_id=found.refusals[PAGE - 1].id if found and len(found.refusals) > PAGE else None,
        causes=causes,
        total=total,
        max_causes=MAX_CAUSES,
        is_day=start is None and end is None,
        causes_from=page.now - CAUSES_PERIOD,
        has_organizations=page.viewer.is_operator and not filters["filters"]["organization"],
        **filters,
    )


async def _wanted(page: Page, query: RefusalsQuery) -> RefusalFilter:
    """The filter that the query states. An id of a request is found whenever it was refused.

    :raises ClientError: when it names nothing that the viewer sees, or its period is empty.
    """
    start, end = period_of(query)
    organization_id = await lookups.organization_id_of(page, text_of(query.organization))
    wanted = RefusalFilter(
        organization_id=organization_id,
        api_key_id=await lookups.key_id_of(page, text_of(query.key), organization_id),
        request_id=text_of(query.request_id),
        code=text_of(query.code),
        status=None if query.status is UNSET else query.status,
        model=text_of(query.model),
        start=start,
        end=end,
    )
    if wanted.request_id is not None:
        return msgspec.structs.replace(wanted, start=None, end=None)
    return wanted
