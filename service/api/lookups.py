"""Routes that find what became of requests."""

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service.api.auth import authenticate_key, database_of
from service.api.operations import Operation
from service.api.queries import Moment, PageQuery, Text, read_query, text_of
from service.api.requests import Request
from service.api.wire import json_response
from service.derived import RefusalFilter, RefusalPage, list_refusals
from service.errors import ClientError
from service.reports import story
from service.reports.story import Story

Status = Annotated[int, msgspec.Meta(ge=100, le=599)]


class OwnRefusalsQuery(PageQuery, kw_only=True):
    """A page of refusals, optionally of one code, status, model or period."""

    code: Text | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    start: Moment | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Moment | UnsetType = msgspec.field(name="to", default=UNSET)

    def as_filter(self) -> RefusalFilter:
        """The filter that the query states.

        :raises ClientError: when its period ends before it starts.
        """
        start = None if self.start is UNSET else self.start.at
        end = None if self.end is UNSET else self.end.at
        if start is not None and end is not None and start >= end:
            raise ClientError("from: must be before to.", param="from")
        return RefusalFilter(
            code=text_of(self.code),
            status=None if self.status is UNSET else self.status,
            model=text_of(self.model),
            start=start,
            end=end,
        )


class RefusalsQuery(OwnRefusalsQuery, kw_only=True):
    """Filters for refusals, optionally of one organization, by its id or name, or of one key, by
    its id, prefix or name."""

    organization: Text | UnsetType = UNSET
    key: Text | UnsetType = UNSET


async def find_request(operation: Operation) -> Story:
    """``GET /admin/v1/requests/{request_id}``: the whole story of a call or a refusal, by the id of
    the request, the ledger entry or the refusal. An administrator sees its own organization's."""
    request_id = operation.request.match_info["request_id"]
    return await story.find(operation.database, request_id, operation.own_organization)


async def refusals(operation: Operation) -> RefusalPage:
    """``GET /admin/v1/refusals?code=&status=&organization=&key=&model=&from=&to=``: list what was
    refused and why, newest first. An administrator sees its own organization's."""
    query = operation.read_query(RefusalsQuery)
    organization_id = await operation.stated_organization(query.organization)
    api_key_id = await operation.find_key(query.key, organization_id) if query.key else None
    wanted = msgspec.structs.replace(
        query.as_filter(), organization_id=organization_id, api_key_id=api_key_id
    )
    return await list_refusals(operation.database, wanted, query.after_id, query.limit)


async def own_refusals(request: Request) -> web.Response:
    """``GET /v1/refusals?code=&status=&model=&from=&to=``: list which requests of the caller's key
    were refused and why, newest first."""
    caller, api_key_id = await authenticate_key(request)
    query = read_query(request, OwnRefusalsQuery)
    wanted = msgspec.structs.replace(
        query.as_filter(), organization_id=caller.organization_id, api_key_id=api_key_id
    )
    page = await list_refusals(database_of(request), wanted, query.after_id, query.limit)
    return json_response(page)
